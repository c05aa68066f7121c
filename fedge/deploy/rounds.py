"""The work of a deployed federation: prepare once, then rounds, from wherever the journal stands.

It is what a run does (``server_app``). A run is disposable, this is not: the journal in the state directory
holds what has been completed, and the next run goes on from there. The server has its own data only; scores
are what clients say of themselves.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedge import plugins
from fedge.config import config_from
from fedge.deploy.deadlines import for_deployment
from fedge.deploy.deployment import Deployment
from fedge.deploy.federation import REGISTRY, RELEASES, Federation
from fedge.deploy.own_data import read_data, server_data
from fedge.deploy.registry import Registry
from fedge.deploy.state_directory import JOURNAL, METRICS, bind
from fedge.deploy.status_file import About
from fedge.deploy.status_writer import Status
from fedge.errors import PayloadError, SetupError
from fedge.federated.federation import Federation as Rounds
from fedge.federated.journal import Journal
from fedge.federated.prepare import prepared_once
from fedge.federated.publish import Publisher
from fedge.federated.server import run_rounds
from fedge.federated.state import FederationState
from fedge.flower.grid_clients import GridClients
from fedge.flower.robust import robust
from fedge.observe import JsonlSink, Tee, Terminal
from fedge.release.keys import OnlineKeys
from fedge.release.repository import Repository
from fedge.tasks import Task

_RENEWED = 3600.0  # seconds between two looks at what the online keys have signed


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


def run(clients: GridClients, deployment: Deployment) -> None:
    """All rounds that are left.

    Raises:
        InputError: settings, data or the state directory cannot be used.
    """
    config = for_deployment(config_from(str(deployment.settings["config"])))
    federation = Federation.load(deployment.server)
    clients.keep_late(config.rounds.deadline_seconds if config.rounds.late == "count" else None)
    enrolled = Enrolled(deployment.server / REGISTRY)
    with (
        _Told(deployment.state / JOURNAL) as journal,
        JsonlSink(deployment.state / METRICS) as sink,
    ):
        bind(journal, config, federation.id)
        task: Task = plugins.load("task", config.task).TASK
        names = (federation.id, federation.name, config.scenario, config.task, task.metric)
        status = Status(deployment.state, About(*names, planned=config.rounds.rounds))
        journal.show(status)
        observer = Tee(Terminal(), sink, status)
        dataset = read_data(config, task)
        data = server_data(config, dataset)
        channels, classes = dataset.channels, len(dataset.classes)
        prepared = prepared_once(journal, config, task, data, classes, channels, observer, federation.id)
        repository = open_repository(deployment)
        publisher = Publisher(
            repository=repository,
            classes=dataset.classes,
            channels=dataset.channels,
            samples=data.labelled.x,
        )
        look = looked_at(clients, enrolled, status, repository)
        gather(look, enrolled, config.rounds.gather_seconds)
        run_rounds(
            Rounds(
                config=config,
                task=task,
                prepared=prepared,
                clients=clients,
                enrolled=enrolled,
                publisher=publisher,
                journal=journal,
                observer=observer,
                score=lambda _weights: {},
                present=look,
                tags={m.name: m.tags for m in enrolled.registry().members.values()},
                robust=robust(config),
            )
        )


def gather(look: Callable[[], Collection[str]], enrolled: Collection[str], seconds: float) -> None:
    """Wait until everyone is there, or so long: devices come back one by one after a restart, and the first
    must not run the rounds alone.
    """
    end = time.monotonic() + seconds
    while not set(enrolled) <= set(look()) and time.monotonic() < end:
        time.sleep(0.2)


def open_repository(deployment: Deployment) -> Repository:
    """The releases in the state directory, begun with what ``fedge provision`` had signed.

    Raises:
        SetupError: keys or files cannot be read, or the folder cannot be written.
        ReleaseError: it holds another federation's releases, or is damaged.
    """
    folder = deployment.server / RELEASES
    repository = Repository(deployment.state / RELEASES, OnlineKeys.load(folder))
    repository.start({path.name: path.read_bytes() for path in sorted(folder.glob("*.json"))})
    return repository


def looked_at(
    clients: GridClients, enrolled: Collection[str], status: Status, repository: Repository | None = None
) -> Callable[[], Collection[str]]:
    """Who can be asked now, shown in ``status`` at each look. What was signed for a few days is renewed."""
    renewed = time.monotonic()

    def look() -> Collection[str]:
        nonlocal renewed
        if repository is not None and time.monotonic() - renewed > _RENEWED:
            renewed = time.monotonic()
            repository.refresh()
        there, members = clients.ids(), set(enrolled)
        status.there(members.intersection(there), len(members))
        return there

    return look


class _Told(Journal):
    """A journal that tells ``status.json`` of each round once it is committed."""

    status: Status | None = None

    def commit_round(self, number: int, record: Mapping[str, Any], state: bytes) -> None:
        """As in any journal, and tell."""
        super().commit_round(number, record, state)
        if self.status is not None:
            self.status.committed(record, FederationState.from_bytes(state).clients)

    def show(self, status: Status) -> None:
        """From now on in ``status``, which is brought to where this journal stands."""
        try:
            saved = self.state()
            status.resume(0 if saved is None else FederationState.from_bytes(saved).round, self.rounds)
        except PayloadError as error:
            raise self.damaged(error) from None
        self.status = status
