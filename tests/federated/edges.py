"""Edge servers in this process, each above some clients of a small world."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedge.config import Config
from fedge.errors import FedgeError
from fedge.federated.client import Device
from fedge.federated.federation import Clients, Federation, Robust
from fedge.federated.frames import Train, decode_reply, decode_task
from fedge.federated.journal import Journal
from fedge.federated.plan import Coding
from fedge.federated.prepare import Prepared
from fedge.federated.tier import EdgeServer
from fedge.federated.tier_state import EdgeState
from fedge.release.mirror import Mirror
from fedge.simulation.world import World
from fedge.tasks import Task

from .build import Fleet, MemoryStore, Recorder, Tamper, federation_of


@dataclass
class Edge:
    """An edge server and what is around it.

    Attributes:
        name: that it is enrolled under.
        world: the world of its clients.
        config: its settings.
        fleet: its clients.
        journal: its own.
        folder: of its mirror.
        clients: stands between the server and ``fleet``.
        robust: stands in for the mean.
        present: who is there now; ``None``: everyone.
        watcher: is told what happens.
        server: the process that answers now.
    """

    name: str
    world: World
    config: Config
    fleet: Fleet
    journal: Journal
    folder: Path
    clients: Clients | None = None
    robust: Robust | None = None
    present: Callable[[], list[str]] | None = None
    watcher: Recorder = field(default_factory=Recorder)

    def __post_init__(self) -> None:
        self.server = self.started()

    def started(self) -> EdgeServer:
        """A new process, from what the journal holds."""
        root = self.world.trust()["1.root.json"]
        key, mirror = self.world.key(self.name), Mirror(self.folder / self.name, root)
        self.server = EdgeServer(self.name, key, self.journal, self._members, mirror)
        return self.server

    def _members(self, prepared: Prepared, task: Task) -> Federation:
        clients = list(self.fleet.devices)
        federation, _ = federation_of(self.world, prepared, self.fleet, self.journal)
        return replace(
            federation,
            config=self.config,
            task=task,
            clients=self.clients or federation.clients,
            enrolled={c: self.world.key(c).public for c in clients},
            observer=self.watcher,
            score=lambda _weights: {},
            present=self.present,
            robust=self.robust,
        )

    @property
    def state(self) -> EdgeState:
        """What the journal holds."""
        saved = self.journal.state()
        assert saved is not None
        return EdgeState.from_bytes(saved)


@dataclass
class Edges:
    """``Clients`` of the parent: edge servers.

    Attributes:
        edges: by name.
        away: names and rounds in which an edge server gets no task.
        lost: names and rounds whose answer does not reach the parent.
        tamper: replaces an edge server's answers.
        tasks: every task of a round, by name, in order.
        answers: every answer that was given, likewise.
    """

    edges: dict[str, Edge]
    away: set[tuple[str, int]] = field(default_factory=set)
    lost: set[tuple[str, int]] = field(default_factory=set)
    tamper: dict[str, Tamper] = field(default_factory=dict)
    tasks: dict[str, list[bytes]] = field(default_factory=dict)
    answers: dict[str, list[bytes]] = field(default_factory=dict)

    def ask(
        self, tasks: Mapping[str, bytes], deadline: float | None = None, enough: int | None = None
    ) -> Iterator[tuple[str, bytes | FedgeError]]:
        del deadline, enough
        for name, frame in tasks.items():
            yield name, self._answer(name, frame)

    def _answer(self, name: str, frame: bytes) -> bytes | FedgeError:
        task = decode_task(frame)
        number = task.round if isinstance(task, Train) else 0
        if (name, number) in self.away:
            return FedgeError("there is nobody")
        self.tasks.setdefault(name, []).append(frame)
        try:
            answer = self.edges[name].server(frame)
        except FedgeError as error:
            return error
        self.answers.setdefault(name, []).append(answer)
        if (name, number) in self.lost:
            return FedgeError("the link broke")
        return self.tamper[name](frame, answer) if name in self.tamper else answer


def edge_of(
    world: World, clients: list[str], journal: Journal, folder: Path, name: str, **rounds: Any
) -> Edge:
    """An edge server above these, who take any release; ``rounds`` are settings of its own rounds."""
    numbers = {c: i for i, c in enumerate(world.roles.participants)}
    fleet = Fleet({c: _easy(world.device(numbers[c], MemoryStore())) for c in clients})
    config = replace(world.config, rounds=replace(world.config.rounds, **rounds))
    return Edge(name, world, config, fleet, journal, folder)


def _easy(device: Device) -> Device:
    return replace(device, releases=replace(device.releases, margin=1.0))


def above(
    world: World,
    prepared: Prepared,
    edges: Edges,
    journal: Journal,
    folder: Path | None = None,
    **config: Any,
) -> tuple[Federation, Recorder]:
    """The parent's federation, of edge servers."""
    federation, watcher = federation_of(world, prepared, Fleet({}), journal, folder, **config)
    keys = {name: world.key(name).public for name in edges.edges}
    return replace(federation, clients=edges, enrolled=keys), watcher


def lossless(prepared: Prepared) -> Prepared:
    """The same with the codec that loses nothing, both ways."""
    raw = Coding("raw", {})
    return replace(prepared, plan=replace(prepared.plan, uplink=raw, downlink=raw))


def round_of(frame: bytes) -> Train:
    """The round that a task asks for."""
    task = decode_task(frame)
    assert isinstance(task, Train)
    return task


def replied(frame: bytes) -> Any:
    """What an answer says."""
    return decode_reply(frame)
