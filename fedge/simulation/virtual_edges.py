"""Virtual time above edge servers: they work side by side, each in the time of its own clients.

An edge server is always there, hangs on a cable, and takes no time for itself: an answer comes when its
clients are done. Before a round it waits until one of them is there.
"""

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from fedge.errors import FedgeError, PayloadError, RefusedError
from fedge.federated import frames
from fedge.federated.federation import Clients
from fedge.federated.frames import Train, Welcome
from fedge.packing import pack, unpack
from fedge.simulation.clock import Spent, VirtualClients
from fedge.simulation.profiles import DAY
from fedge.simulation.world import World

LATENCY, BITS_PER_SECOND = 0.02, 1e8
"""Of the cable between an edge server and the server, either way: seconds, and bits per second."""


class Answers(Protocol):
    """An edge server."""

    def __call__(self, frame: bytes) -> bytes:
        """Its answer to a task."""

    def done(self, frame: bytes) -> Mapping[str, Any] | None:
        """The record of this very task, if it was done before the run was interrupted."""


@dataclass
class VirtualEdges(Clients):
    """``Clients`` of a server with edge servers in virtual time; its clients' time is theirs.

    Attributes:
        edges: what answers, and the time of its clients, by name.
        now: virtual seconds since the midnight before the start.
    """

    edges: Mapping[str, tuple[Answers, VirtualClients]]
    now: float

    @staticmethod
    def of(edges: Mapping[str, tuple[Answers, VirtualClients]], world: World) -> "VirtualEdges":
        """At the start of the run."""
        return VirtualEdges(edges, world.config.fleet.start_hour * DAY / 24)

    @property
    def spent(self) -> Mapping[str, Spent]:
        """By client."""
        return {client: s for _, fleet in self.edges.values() for client, s in fleet.spent.items()}

    def present(self) -> list[str]:
        """Every edge server."""
        return list(self.edges)

    def wait(self) -> None:
        """There is nobody to wait for."""

    def sleep(self, seconds: float) -> None:
        """Let so much time pass."""
        self.now += seconds

    def to_bytes(self) -> bytes:
        """What a run which goes on later needs to know; the edge servers' journals hold their own."""
        return pack({"now": self.now}, {})

    def restore(self, content: bytes) -> None:
        """Go on from what ``to_bytes`` gave.

        Raises:
            PayloadError: it is something else.
        """
        meta, _ = unpack(content)
        try:
            self.now = float(meta["now"])
        except (KeyError, TypeError, ValueError) as error:
            raise PayloadError(f"the virtual clock was not kept whole: {error}") from None

    def ask(
        self, tasks: Mapping[str, bytes], deadline: float | None = None, enough: int | None = None
    ) -> Iterator[tuple[str, bytes | FedgeError]]:
        """See ``Clients``; all of them answer, in the order in which they are done."""
        del deadline, enough
        flights = [self._arrival(name, frame) for name, frame in tasks.items()]
        heapq.heapify(flights)
        while flights:
            when, name, answer = heapq.heappop(flights)
            self.now = max(self.now, when)
            yield name, answer

    def _arrival(self, name: str, frame: bytes) -> tuple[float, str, bytes | FedgeError]:
        """When the answer of an edge server is there, and what it is."""
        server, fleet = self.edges[name]
        arrives = self.now + _travel(frame)
        answer: bytes | FedgeError
        try:
            ready, answer = self._worked(server, fleet, frame, arrives)
        except RefusedError as error:
            ready, answer = arrives, error
        return ready + _travel(answer if isinstance(answer, bytes) else b""), name, answer

    def _worked(
        self, server: Answers, fleet: VirtualClients, frame: bytes, arrives: float
    ) -> tuple[float, bytes]:
        """When an edge server that gets ``frame`` at a time is done with it, and its answer."""
        task = frames.decode_task(frame)
        if isinstance(task, Welcome):  # its clients are not asked
            return arrives, server(frame)
        if (record := server.done(frame)) is not None:
            return float(record["virtual"]["seconds"]), server(frame)
        fleet.now = max(fleet.now, arrives)
        if isinstance(task, Train) and task.learning_rate > 0:
            while not fleet.present():
                fleet.wait()
        answer = server(frame)
        return fleet.now, answer


def _travel(content: bytes) -> float:
    """Seconds on the cable."""
    return LATENCY + 8 * len(content) / BITS_PER_SECOND
