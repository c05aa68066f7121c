"""A run in virtual time: its fleet, what is checked before it, and what the journal keeps of it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from fedge.errors import PayloadError
from fedge.federated.federation import Clients, Federation
from fedge.federated.journal import Journal
from fedge.federated.prepare import Prepared
from fedge.seeding import derive
from fedge.simulation.clock import Spent, VirtualClients
from fedge.simulation.cost import Work
from fedge.simulation.profiles import DAY, Profile, deal, load_fleet
from fedge.simulation.reachable import check_reachable, welcome_bytes
from fedge.simulation.world import World


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
    """What can be said before the student is there: its multiply-adds and the first download are left out.

    Raises:
        ConfigError: as ``check_reachable``.
    """
    if profiles := profiles_of(world):
        check_reachable(world.config, profiles, work_of(world, 0))


class VirtualFleet(Clients, Protocol):
    """``Clients`` in virtual time: ``VirtualClients``, or edge servers above such."""

    @property
    def now(self) -> float:
        """Virtual seconds since the midnight before the start."""

    @property
    def spent(self) -> Mapping[str, Spent]:
        """By client."""

    def present(self) -> Collection[str]:
        """Who can be asked now."""

    def wait(self) -> None:
        """Let time pass until somebody else is there."""

    def sleep(self, seconds: float) -> None:
        """Let so much time pass."""

    def to_bytes(self) -> bytes:
        """Everything that a run which goes on later needs to know."""

    def restore(self, content: bytes) -> None:
        """Go on from what ``to_bytes`` gave."""


@dataclass(frozen=True)
class VirtualRun:
    """A fleet in virtual time, and the journal that lets it go on after a kill."""

    fleet: VirtualFleet
    journal: Journal

    @staticmethod
    def of(
        world: World,
        prepared: Prepared,
        clients: Clients,
        journal: Journal,
        members: Collection[str] | None = None,
    ) -> "VirtualRun | None":
        """The fleet as it was after the journal's last round; None for a run without virtual time.

        ``members`` are the participants that are in it; all of them, unless given.

        Raises:
            ConfigError: the fleet can never do what the rounds need.
            SetupError: the journal does not have the clock of that round.
        """
        config = world.config
        if not (profiles := profiles_of(world)):
            return None
        if members is not None:
            profiles = {c: profiles[c] for c in members}
        work = work_of(world, prepared.plan.spec.multiply_adds())
        check_reachable(config, profiles, work, welcome_bytes(prepared))
        fleet = VirtualClients(
            clients,
            profiles,
            work,
            derive(config.seed, "fleet"),
            keeps_late=config.rounds.late == "count",
            now=config.fleet.start_hour * DAY / 24,
        )
        return VirtualRun.restored(fleet, journal)

    @staticmethod
    def restored(fleet: VirtualFleet, journal: Journal) -> "VirtualRun":
        """The fleet as it was after the journal's last round.

        Raises:
            SetupError: the journal does not have the clock of that round.
        """
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
