"""What every run of a server holds open, whether it learns itself or stands below another one.

The journal and the log in the state directory, the status that people look at, and the enrolled clients.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedge.config import Config
from fedge.deploy.deployment import Deployment
from fedge.deploy.federation import REGISTRY, Federation
from fedge.deploy.registry import Registry
from fedge.deploy.state_directory import JOURNAL, METRICS, bind
from fedge.deploy.status_file import About
from fedge.deploy.status_writer import Status
from fedge.errors import PayloadError, SetupError
from fedge.federated.federation import Federation as Rounds
from fedge.federated.journal import Journal
from fedge.federated.prepare import Prepared
from fedge.federated.publish import Publisher
from fedge.federated.state import ClientRecord
from fedge.flower.grid_clients import GridClients
from fedge.flower.robust import robust
from fedge.observe import JsonlSink, Observer, Tee, Terminal
from fedge.release.repository import Repository
from fedge.tasks import Task

_RENEWED = 3600.0  # seconds between two looks at what the online keys have signed

Look = Callable[[], Collection[str]]

Standing = Callable[[bytes], tuple[int, Mapping[str, ClientRecord]]]
"""Of a state in the journal: rounds that are in it, and how the clients stand."""


class Enrolled(Mapping[str, bytes]):
    """The signing keys of the enrolled clients, as the registry says now."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._registry = Registry.load(path)

    def registry(self) -> Registry:
        """Read again if it has changed; what was known, if it cannot be read."""
        with suppress(SetupError):
            self._registry = Registry.load(self._path, self._registry)
        return self._registry

    def __getitem__(self, name: str) -> bytes:
        member = self.registry().members[name]
        if member.revoked:
            raise KeyError(name)
        return member.signing

    def __iter__(self) -> Iterator[str]:
        return iter([m.name for m in self.registry().members.values() if not m.revoked])

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True, eq=False)
class OpenRun:
    """What a run works with.

    Attributes:
        config: its settings.
        clients: carries the frames.
        enrolled: signing keys of who may take part.
        journal: what has been completed.
        status: what is shown of it.
        observer: is told what happens; ``status`` is among those that it tells.
    """

    config: Config
    clients: GridClients
    enrolled: Enrolled
    journal: Journal
    status: Status
    observer: Observer

    def rounds(self, task: Task, prepared: Prepared, present: Look, publisher: Publisher | None) -> Rounds:
        """The federation that the rounds are of; scores are what clients say of themselves."""
        return Rounds(
            config=self.config,
            task=task,
            prepared=prepared,
            clients=self.clients,
            enrolled=self.enrolled,
            publisher=publisher,
            journal=self.journal,
            observer=self.observer,
            score=lambda _weights: {},
            present=present,
            tags={m.name: m.tags for m in self.enrolled.registry().members.values()},
            robust=robust(self.config),
        )

    def gathered(self, repository: Repository | None = None) -> Look:
        """Who can be asked now, shown at each look; returns once all are there, or have had their time.

        Devices come back one by one after a restart, and the first must not run the rounds alone. What
        ``repository`` has signed for a few days is renewed.
        """
        look = _looked_at(self, repository)
        end = time.monotonic() + self.config.rounds.gather_seconds
        while not set(self.enrolled) <= set(look()) and time.monotonic() < end:
            time.sleep(0.2)
        return look


@contextmanager
def opened(
    clients: GridClients,
    deployment: Deployment,
    federation: Federation,
    config: Config,
    about: About,
    standing: Standing,
) -> Iterator[OpenRun]:
    """Open the state directory of a run, and close it at the end.

    Raises:
        SetupError: it is another federation's, or other settings', or cannot be used.
    """
    clients.keep_late(config.rounds.deadline_seconds if config.rounds.late == "count" else None)
    enrolled = Enrolled(deployment.server / REGISTRY)
    with (
        ToldJournal(deployment.state / JOURNAL, standing) as journal,
        JsonlSink(deployment.state / METRICS) as sink,
    ):
        bind(journal, config, federation.id)
        status = Status(deployment.state, about)
        journal.show(status)
        yield OpenRun(config, clients, enrolled, journal, status, Tee(Terminal(), sink, status))


def _looked_at(run: OpenRun, repository: Repository | None) -> Look:
    renewed = time.monotonic()

    def look() -> Collection[str]:
        nonlocal renewed
        if repository is not None and time.monotonic() - renewed > _RENEWED:
            renewed = time.monotonic()
            repository.refresh()
        there, members = run.clients.ids(), set(run.enrolled)
        run.status.there(members.intersection(there), len(members))
        return there

    return look


class ToldJournal(Journal):
    """A journal that tells ``status.json`` of each round once it is committed."""

    def __init__(self, path: Path, standing: Standing) -> None:
        """See ``Journal``; ``standing`` reads the states that are put into this one."""
        super().__init__(path)
        self._standing = standing
        self._status: Status | None = None

    def commit_round(self, number: int, record: Mapping[str, Any], state: bytes) -> None:
        """As in any journal, and tell."""
        super().commit_round(number, record, state)
        if self._status is not None:
            self._status.committed(record, self._standing(state)[1])

    def show(self, status: Status) -> None:
        """From now on in ``status``, which is brought to where this journal stands."""
        try:
            saved = self.state()
            status.resume(0 if saved is None else self._standing(saved)[0], self.rounds)
        except PayloadError as error:
            raise self.damaged(error) from None
        self._status = status
