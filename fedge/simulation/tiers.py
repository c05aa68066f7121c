"""Three tiers in a simulation: edge servers between server and clients, each with a journal of its own.

They are the deployment's (``fedge.federated.tier``), one after the other in this process. Participants are
dealt to them in order, in groups of about the same size. ``rounds.fraction``, deadlines, quorum and the like
then say how an edge server asks its own clients; the server above asks every edge server, and waits for all.

A run that was interrupted asks the edge servers once more for what the server had not committed; they had, so
each of them gives the answer in its journal, and everything is as if the run had not been interrupted.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedge.config import Config
from fedge.errors import FedgeError, RefusedError
from fedge.federated.checks import MOST_WINDOWS
from fedge.federated.federation import Federation
from fedge.federated.journal import Journal
from fedge.federated.prepare import Prepared
from fedge.federated.tier import EdgeServer, digest_of
from fedge.observe import Observer, Stage, silent
from fedge.release.mirror import Mirror
from fedge.simulation.clock import VirtualClients
from fedge.simulation.folder import JOURNAL
from fedge.simulation.virtual import VirtualRun
from fedge.simulation.virtual_edges import VirtualEdges
from fedge.simulation.world import World
from fedge.tasks import Task

FOLDER = "edges"
"""In a run's folder: one folder for each edge server."""

_LAST = 8
"""More tasks than an edge server gets in a round of the server: the round, the last weights, a release."""

_FLOWS = ("down", "up", "initial_down", "initial_up")


@dataclass(frozen=True)
class Edge:
    """One edge server: what answers, its journal, and the time of its clients if they have one."""

    server: EdgeServer
    journal: Journal
    fleet: VirtualClients | None

    def __call__(self, frame: bytes) -> bytes:
        """The answer to a task: what it was, if there has been one.

        Raises:
            RefusedError: see ``EdgeServer``.
        """
        record = self.done(frame)
        empty = None if record is None else record.get("answer")
        return self.server(frame) if empty is None else bytes.fromhex(empty)

    def done(self, frame: bytes) -> Mapping[str, Any] | None:
        """The journal's record of this very task, if it was done before; of the last few tasks only."""
        name = digest_of(frame).hex()
        return next((r for r in self.journal.last_rounds(_LAST) if r["task"] == name), None)


def deal(world: World) -> dict[str, tuple[str, ...]]:
    """Whose edge server each participant belongs to; empty without edge servers.

    ``fleet.edges`` is no more than there are participants: ``build_world`` sees to that.
    """
    count = world.config.fleet.edges
    parts = np.array_split(np.array(world.roles.participants, dtype=object), count) if count else []
    return {f"edge-{number}": tuple(part) for number, part in enumerate(parts, 1)}


def keys(world: World) -> dict[str, bytes]:
    """Public keys of those that the server asks: edge servers, or the participants themselves."""
    return {name: world.key(name).public for name in deal(world) or world.roles.participants}


@contextmanager
def placed(federation: Federation, world: World, folder: Path) -> Iterator[Federation]:
    """The federation with edge servers below it and in virtual time, as far as the settings say so.

    Args:
        federation: with whoever runs the participants as its ``clients``.
        world: who they are.
        folder: of the run, where the edge servers' own folders are made.

    Raises:
        ConfigError: the fleet can never do what the rounds need.
        SetupError: a journal cannot be used, or lacks its clock.
    """
    prepared = federation.prepared
    if not world.config.fleet.edges:
        virtual = VirtualRun.of(world, prepared, federation.clients, federation.journal)
        yield federation if virtual is None else virtual.drive(federation)
        return
    with ExitStack() as stack:
        edges = {
            name: _edge(name, members, federation, world, folder / FOLDER / name, stack.enter_context)
            for name, members in deal(world).items()
        }
        above = replace(
            federation,
            config=_above(federation.config),
            clients=_InTurn(edges),
            robust=None,
            ended=lambda number: {"members": _below(edges, number)},
        )
        fleets = {n: (e, e.fleet) for n, e in edges.items() if e.fleet is not None}
        if fleets:
            timed = VirtualRun.restored(VirtualEdges.of(fleets, world), federation.journal)
            told = above.ended
            above = replace(timed.drive(above), ended=lambda number: {**told(number), **timed.ended(number)})
        yield above


def _edge(
    name: str,
    members: tuple[str, ...],
    federation: Federation,
    world: World,
    place: Path,
    opened: Callable[[AbstractContextManager[Journal]], Journal],
) -> Edge:
    place.mkdir(parents=True, exist_ok=True)
    journal = opened(Journal(place / JOURNAL))
    virtual = VirtualRun.of(world, federation.prepared, federation.clients, journal, members)

    def below(prepared: Prepared, task: Task) -> Federation:
        own = replace(
            federation,
            task=task,
            prepared=prepared,
            enrolled={client: world.key(client).public for client in members},
            publisher=None,
            journal=journal,
            observer=_Refusals(federation.observer),
            score=lambda _weights: {},
        )
        return own if virtual is None else virtual.drive(own)

    mirror = Mirror(place / "releases", world.trust()["1.root.json"])
    fleet = virtual.fleet if virtual is not None and isinstance(virtual.fleet, VirtualClients) else None
    return Edge(EdgeServer(name, world.key(name), journal, below, mirror), journal, fleet)


def _above(config: Config) -> Config:
    """The settings of the server that asks edge servers: all of them, and it waits for them."""
    rounds = replace(
        config.rounds,
        fraction=1.0,
        over_select=1.0,
        buffer=0,
        late="drop",
        least=0,
        quorum=0.0,
        deadline_seconds=0.0,
        tags=(),
        max_weight=MOST_WINDOWS,
    )
    return replace(config, rounds=rounds)


def _below(edges: Mapping[str, Edge], number: int) -> dict[str, Any]:
    """What happened below the edge servers in round ``number`` of the server, all of them together."""
    records = [
        record
        for edge in edges.values()
        for record in edge.journal.last_rounds(_LAST)
        if record["parent_round"] >= number
    ]
    together: dict[str, Any] = {flow: {} for flow in _FLOWS}
    for record in records:
        for flow in _FLOWS:
            for client, amount in record[flow].items():
                together[flow][client] = together[flow].get(client, 0) + amount
    together["participants"] = sum(r["participants"] for r in records)
    together["counted"] = sorted(c for r in records for c in r["counted"])
    if releases := [r["release"] for r in records if r["release"]]:
        down = [amount for release in releases for amount in release["down"].values()]
        decisions = [decision for release in releases for decision in release["decisions"]]
        together["passed_on"] = {
            "bytes": round(sum(down) / len(down)) if down else 0,
            "decisions": sorted(decisions, key=lambda decision: str(decision["client"])),
        }
    return together


@dataclass(frozen=True)
class _InTurn:
    """``Clients`` of the server: its edge servers, one after the other, without any time."""

    servers: Mapping[str, Edge]

    def ask(
        self, tasks: Mapping[str, bytes], deadline: float | None = None, enough: int | None = None
    ) -> Iterator[tuple[str, bytes | FedgeError]]:
        """See :class:`fedge.federated.federation.Clients`; all of them answer."""
        del deadline, enough
        for name, frame in tasks.items():
            try:
                yield name, self.servers[name](frame)
            except RefusedError as error:
                yield name, error


@dataclass(frozen=True)
class _Refusals:
    """Of what edge servers tell only what went wrong."""

    inner: Observer

    def event(self, kind: str, /, **fields: object) -> None:
        if kind in ("refused", "warning", "given_up"):
            self.inner.event(kind, **fields)

    def stage(self, name: str) -> AbstractContextManager[Stage]:
        return silent.stage(name)

    def progress(self, done: float, total: float | None, text: str = "") -> None:
        """Nobody waits for that."""
