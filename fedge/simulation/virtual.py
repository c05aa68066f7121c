"""A run in virtual time: its fleet, what is checked before it, and what the journal keeps of it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fedge.config import Config
from fedge.errors import ConfigError, PayloadError
from fedge.federated.federation import Clients, Federation
from fedge.federated.journal import Journal
from fedge.federated.strategy import needed
from fedge.models.student import StudentSpec
from fedge.seeding import derive
from fedge.simulation.clock import VirtualClients
from fedge.simulation.cost import Work
from fedge.simulation.profiles import DAY, Profile, deal, load_fleet
from fedge.simulation.world import World

_FRAME = 200
"""Bytes that a round takes at the very least, either way, for the check before the run."""


def profiles_of(world: World) -> dict[str, Profile]:
    """What each participant's device is like; empty for a run without virtual time.

    Raises:
        ConfigError: there is no such fleet, or it is malformed.
    """
    devices = world.config.fleet.devices
    return deal(load_fleet(devices), world.roles.participants) if devices else {}


def work_of(world: World, multiply_adds: int) -> dict[str, Work]:
    """What a round asks of each participant, with a student of so many multiply-adds a window."""
    local = world.config.local
    people = dict.fromkeys(map(world.person, world.roles.participants))
    parts = {c: world.parts[c] for c in people}
    work = {
        c: Work(multiply_adds, len(p.train), len(p.later), local.epochs, local.batch)
        for c, p in parts.items()
    }
    return {c: work[world.person(c)] for c in world.roles.participants}


def check_fleet(world: World) -> None:
    """What can be said before the student is there: its multiply-adds are left out.

    Raises:
        ConfigError: as ``check_reachable``.
    """
    if profiles := profiles_of(world):
        check_reachable(world.config, profiles, work_of(world, 0))


def check_reachable(config: Config, profiles: Mapping[str, Profile], work: Mapping[str, Work]) -> None:
    """Refuse a fleet that can never give a round what it needs, with the numbers.

    Raises:
        ConfigError: too few devices answer within the deadline, or are there at the same time.
    """
    least, deadline = max(1, needed(config, len(profiles))), config.rounds.deadline_seconds
    if deadline:
        fast = [c for c, p in profiles.items() if _shortest(p, work[c]) <= deadline]
        if len(fast) < least:
            quickest = min(_shortest(p, work[c]) for c, p in profiles.items())
            raise ConfigError(
                f"a round needs {least} update(s); {len(fast)} of {len(profiles)} devices can answer within "
                f"rounds.deadline_seconds = {deadline:g}; the fastest takes {quickest:.3g} s"
            )
    edges = {start for p in profiles.values() for start, _ in p.hours}
    most = max(sum(p.there(edge) for p in profiles.values()) for edge in edges)
    if most < max(least, config.rounds.least):
        raise ConfigError(
            f"a round needs {max(least, config.rounds.least)} update(s), and never are more than {most} of "
            f"{len(profiles)} devices there at the same time; see hours in {config.fleet.devices}"
        )


def _shortest(profile: Profile, work: Work) -> float:
    radio = 8 * _FRAME * (1 / profile.uplink + 1 / profile.downlink)
    return 2 * profile.latency + radio + work.training_seconds() / profile.compute


@dataclass(frozen=True)
class VirtualRun:
    """A fleet in virtual time, and the journal that lets it go on after a kill."""

    fleet: VirtualClients
    journal: Journal

    @staticmethod
    def of(world: World, spec: StudentSpec, clients: Clients, journal: Journal) -> "VirtualRun | None":
        """The fleet as it was after the journal's last round; None for a run without virtual time.

        Raises:
            ConfigError: the fleet can never do what the rounds need.
            SetupError: the journal does not have the clock of that round.
        """
        config = world.config
        if not (profiles := profiles_of(world)):
            return None
        work = work_of(world, spec.multiply_adds())
        check_reachable(config, profiles, work)
        fleet = VirtualClients(
            clients,
            profiles,
            work,
            derive(config.seed, "fleet"),
            keeps_late=config.rounds.late == "count",
            now=config.fleet.start_hour * DAY / 24,
        )
        if done := len(journal.rounds()):
            saved = journal.stage(_name(done))
            if saved is None:
                raise journal.damaged(PayloadError("the virtual clock is missing"))
            try:
                fleet.restore(saved)
            except PayloadError as error:
                raise journal.damaged(error) from None
        return VirtualRun(fleet, journal)

    def drive(self, federation: Federation) -> Federation:
        """The federation with this fleet's time instead of the machine's."""
        fleet = self.fleet
        return replace(
            federation,
            clients=fleet,
            present=fleet.present,
            sleep=fleet.sleep,
            wait=fleet.wait,
            ended=self.ended,
        )

    def ended(self, number: int) -> Mapping[str, Any]:
        """Keep the clock as it is after round ``number``, beside the one before it, until the commit."""
        self.journal.set_stage(_name(number), self.fleet.to_bytes())
        spent = self.fleet.spent.values()
        return {
            "virtual": {
                "seconds": self.fleet.now,
                "joules": sum(s.joules for s in spent),
                "work_seconds": sum(s.seconds for s in spent),
                "worst_joules": max((s.joules for s in spent), default=0.0),
            }
        }


def _name(number: int) -> str:
    """Two take turns."""
    return f"clock-{number % 2}"
