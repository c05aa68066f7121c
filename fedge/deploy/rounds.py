"""The work of a deployed federation: prepare once, then rounds, from wherever the journal stands.

It is what a run does (``server_app``). A run is disposable, this is not: the journal in the state directory
holds what has been completed, and the next run goes on from there. The server has its own data only; scores
are what clients say of themselves.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedge import plugins
from fedge.config import Config, config_from, config_text
from fedge.data import load
from fedge.data.roles import assign_roles
from fedge.data.types import Dataset, Windows
from fedge.deploy.deployment import Deployment
from fedge.deploy.federation import REGISTRY, RELEASES, Federation
from fedge.deploy.registry import Registry
from fedge.deploy.status_file import About
from fedge.deploy.status_writer import Status
from fedge.deploy.supervisor import locked
from fedge.errors import DataError, PayloadError, SetupError
from fedge.federated.federation import Federation as Rounds
from fedge.federated.journal import Journal
from fedge.federated.judges import held_back
from fedge.federated.prepare import ServerData, prepared_once
from fedge.federated.publish import Publisher
from fedge.federated.server import run_rounds
from fedge.federated.state import FederationState
from fedge.flower.grid_clients import GridClients
from fedge.flower.robust import robust
from fedge.observe import JsonlSink, Tee, Terminal
from fedge.release.keys import OnlineKeys
from fedge.release.repository import Repository
from fedge.tasks import Task

JOURNAL, METRICS = "journal.sqlite", "metrics.jsonl"

_RENEWED = 3600.0  # seconds between two looks at what the online keys have signed
_DEADLINE = 600.0  # seconds, where the settings give none: a device that hangs must not stop the others


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


def for_deployment(config: Config) -> Config:
    """With a deadline and at least one update a round, where the settings leave these open."""
    rounds = config.rounds
    rounds = replace(
        rounds, deadline_seconds=rounds.deadline_seconds or _DEADLINE, least=max(1, rounds.least)
    )
    return replace(config, rounds=rounds)


def read_data(config: Config, task: Task) -> Dataset:
    """The server's own data.

    Raises:
        DataError: they cannot be used.
    """
    settings = config.data
    return load(
        settings.source,
        window=settings.window,
        step=settings.step,
        target=task.target,
        key=settings.target,
        normal=settings.normal,
    )


def server_data(config: Config, dataset: Dataset) -> ServerData:
    """What the server learns from: of a built-in data set its part, of a file everything in it.

    Raises:
        ConfigError: ids that nobody has.
        DataError: nothing to learn from.
    """
    settings, everyone = config.data, dataset.clients
    names = list(everyone)
    if settings.server_clients or settings.source in ("watch", "digits"):
        roles = assign_roles(names, settings.server_clients, settings.unseen_clients)
        names = list(roles.server)
    judges = held_back(config, names)
    labelled = Windows.joined([everyone[c] for c in names if c not in judges]).to_train_on()
    if len(labelled) < 2:
        raise DataError("the server's own data hold fewer than two windows to learn from")
    return ServerData(labelled, None, {c: everyone[c].to_train_on() for c in judges})


def bind(journal: Journal, config: Config, federation: str) -> None:
    """Tie a journal to a federation and its settings, or check that it is tied to them.

    Raises:
        SetupError: it belongs to another federation, or other settings were given than it began with.
    """
    check_bound(journal, config, federation)
    for key, value in (("federation", federation), ("config", config_text(config))):
        if journal.meta(key) is None:
            journal.set_meta(key, value)


def check_bound(journal: Journal, config: Config, federation: str) -> None:
    """The same check, and nothing is written.

    Raises:
        SetupError: likewise.
    """
    mine = {
        "another federation": ("federation", federation),
        "other settings": ("config", config_text(config)),
    }
    for what, (key, value) in mine.items():
        if journal.meta(key) not in (None, value):
            raise SetupError(f"the state directory belongs to {what}; name another with --state")


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


def check_state(state: Path, config: Config, federation: str) -> None:
    """Find out before anything is started whether a state directory fits, if there is one.

    Raises:
        SetupError: it belongs to another federation or to other settings, was written by a newer fedge, is
            damaged, cannot be used, or another server runs on it.
    """
    try:
        if not (state / JOURNAL).exists():
            return
    except OSError as error:
        raise SetupError(f"the state directory {state} cannot be used: {error}") from None
    with locked(state), Journal(state / JOURNAL) as journal:
        check_bound(journal, for_deployment(config), federation)


def check(config: Config) -> None:
    """Find out before anything is started whether settings and data can be used.

    Raises:
        InputError: they cannot.
    """
    task: Task = plugins.load("task", config.task).TASK
    data = server_data(config, read_data(config, task))
    if task.target == "class" and len(set(data.labelled.y.tolist())) < 2:
        raise DataError("the server's own data hold one class only; a teacher needs two")
