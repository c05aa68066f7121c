"""The server's clients, reached through a Flower ``Grid``: one message each, collected as they come."""

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedge.errors import FedgeError
from fedge.federated.federation import NotYetError
from fedge.flower.client_app import IDENTITY
from fedge.flower.messages import frame_of, with_frame

_SHORTEST, _LONGEST = 0.005, 0.05
"""Seconds between two looks for replies when the last found none: the pause doubles from one to the other."""
_GONE = 60.0  # seconds that a client which left may take to come back, where there is no deadline
_LATE = 10.0  # seconds for which Flower keeps a message after its deadline
_AWAY = 5  # Flower's code for "the node is not there"
_ANSWERLESS = "left before it answered"


class Fleet(Protocol):
    """Who is there, and when it is worth to look for replies."""

    def nodes(self) -> Mapping[str, int]:
        """Flower's node of each client that is there now; the same object until that changes."""

    def fetch(self, clients: Iterable[str]) -> None:
        """A task waits at Flower for each of these."""

    def wait(self, waiting: Mapping[str, str], seconds: float) -> Collection[str]:
        """Wait, ``seconds`` at most; returns those messages of ``waiting`` (message: client) to look at."""


@dataclass
class _Flight:
    """Tasks on their way."""

    out: dict[str, tuple[str, int]] = field(default_factory=dict)  # message: client and its node
    absent: dict[str, float] = field(default_factory=dict)  # client without a task: since when
    seen: Mapping[str, int] | None = None  # the nodes when tasks were last sent

    @property
    def waiting(self) -> dict[str, str]:
        return {message: client for message, (client, _) in self.out.items()}

    def clients(self) -> list[str]:
        return [*(client for client, _ in self.out.values()), *self.absent]


class GridClients:
    """``Clients`` of ``fedge.federated.server``, over any ``Grid``.

    Replies are pulled as they come and handed on one by one, so that no more than one is held at a time.
    """

    def __init__(
        self,
        grid: Grid,
        sleep: Callable[[float], None] = time.sleep,
        *,
        fleet: Fleet | None = None,
        pull: Callable[[Iterable[str]], Iterable[Message]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        late_seconds: float | None = None,
    ) -> None:
        """Find out which client each node of ``grid`` stands for.

        Args:
            grid: sends the messages.
            sleep: pauses between two looks for replies, where there is no ``fleet``.
            fleet: knows the nodes; without it, each node of ``grid`` is asked once who it is.
            pull: gets the replies to messages; ``grid.pull_messages`` unless given.
            clock: seconds that only go up.
            late_seconds: how long answers are still looked for when nobody waits for them any more; a later
                ``ask`` yields them beside its own. ``None``: not at all.
        """
        self._late: dict[str, tuple[str, float]] = {}  # message: its client, and when it is given up
        self._left = set[str]()  # clients that had left when nobody waited for them any more
        self._late_seconds = late_seconds
        self._grid, self._clock, self._pull = grid, clock, pull or grid.pull_messages
        self._fleet: Fleet = fleet or _Fixed(sleep)
        if fleet is None:
            self._fleet = _Fixed(sleep, self._identify())

    def keep_late(self, seconds: float | None) -> None:
        """Look for late answers for so long, or (``None``) not at all."""
        self._late_seconds = seconds

    def ids(self) -> list[str]:
        """The clients that are there."""
        return sorted(self._fleet.nodes())

    def ask(
        self, tasks: Mapping[str, bytes], deadline: float | None = None, enough: int | None = None
    ) -> Iterator[tuple[str, bytes | FedgeError]]:
        """Send each client its task; yield answers, or why there is none, as they come in.

        A client that comes back with another node gets its task again: the same task has the same answer.

        Args:
            tasks: a frame for each client.
            deadline: seconds from now after which nothing is waited for; whoever is missing then is told
                as an error.
            enough: answers (errors do not count, answers to earlier tasks do) after which nothing is waited
                for; whoever is missing then is not told.
        """
        start = self._clock()
        end = math.inf if deadline is None else start + deadline
        # An answer to an older task must not pass for one to the new task.
        self._late = {message: late for message, late in self._late.items() if late[0] not in tasks}
        self._left -= tasks.keys()
        there = self._fleet.nodes()
        for client in tasks.keys() - there.keys():
            yield client, FedgeError("no node stands for this client")
        flight, good, pause = _Flight(absent={c: start for c in tasks if c in there}), 0, 0.0
        while flight.out or flight.absent or (enough is not None and self._late):
            if (left := end - self._clock()) <= 0:
                break
            self._send(flight, tasks, None if deadline is None else left + (self._late_seconds or _LATE))
            found = False
            for client, answer in chain(self._look_late(), self._look(flight, min(pause, left))):
                found, good = True, good + isinstance(answer, bytes)
                yield client, answer
            if enough is not None and good >= enough:
                self._keep(flight)
                return
            pause = 0.0 if found else min(max(2 * pause, _SHORTEST), _LONGEST)
            yield from self._given_up(flight, end)
        self._keep(flight)
        for client in flight.clients():
            yield client, NotYetError(f"no answer within {deadline:g} s")

    def _keep(self, flight: _Flight) -> None:
        """Tasks that nobody waits for any more, but whose answers may still be of use."""
        if self._late_seconds is not None:
            self._left |= flight.absent.keys()
            until = self._clock() + self._late_seconds
            self._late |= {message: (client, until) for message, (client, _) in flight.out.items()}

    def _look_late(self) -> Iterator[tuple[str, bytes | FedgeError]]:
        """Answers to tasks of earlier asks, without waiting; or that there will be none."""
        while self._left:
            yield self._left.pop(), FedgeError(_ANSWERLESS)
        self._late = {m: (c, until) for m, (c, until) in self._late.items() if until > self._clock()}
        for reply in self._pull(list(self._late)) if self._late else ():
            client, _ = self._late.pop(reply.metadata.reply_to_message_id, (None, 0.0))
            if client is not None:
                yield client, FedgeError(_ANSWERLESS) if reply.has_error() else _answer(reply)

    def _send(self, flight: _Flight, tasks: Mapping[str, bytes], ttl: float | None) -> None:
        """Tasks to those that have none yet, and to those that are there with another node now."""
        there = self._fleet.nodes()
        if there is flight.seen and not flight.absent:
            return
        flight.seen = there
        for message, (client, node) in list(flight.out.items()):
            if there.get(client, node) != node:
                del flight.out[message]
                flight.absent[client] = self._clock()
        ready = [client for client in flight.absent if client in there]
        if not ready:
            return
        messages = [Message(with_frame(tasks[c]), there[c], "train", ttl=ttl) for c in ready]
        for client, message in zip(ready, self._grid.push_messages(messages), strict=False):
            if message:
                del flight.absent[client]
                flight.out[message] = client, there[client]
        self._fleet.fetch(ready)

    def _look(self, flight: _Flight, pause: float) -> Iterator[tuple[str, bytes | FedgeError]]:
        """Answers that have come, after a pause of at most ``pause`` seconds."""
        if not (messages := self._fleet.wait(flight.waiting, pause)):
            return
        for reply in self._pull(list(messages)):
            client, _ = flight.out.pop(reply.metadata.reply_to_message_id, (None, 0))
            if client is None:
                continue
            if reply.has_error() and reply.error.code == _AWAY:
                flight.absent[client] = self._clock()
            else:
                yield client, _answer(reply)

    def _given_up(self, flight: _Flight, end: float) -> Iterator[tuple[str, FedgeError]]:
        """Without a deadline, clients that have left and stay away."""
        if end < math.inf:
            return
        for client, since in list(flight.absent.items()):
            if self._clock() - since > _GONE:
                del flight.absent[client]
                yield client, FedgeError("the client left and did not come back")

    def _identify(self) -> dict[str, int]:
        nodes = list(self._grid.get_node_ids())
        messages = [Message(RecordDict(), node, "query.who") for node in nodes]
        waiting = {i: str(n) for i, n in zip(self._grid.push_messages(messages), nodes, strict=True) if i}
        found: dict[str, int] = {}
        pause = 0.0
        while waiting:
            replies = list(self._pull(list(self._fleet.wait(waiting, pause))))
            for reply in replies:
                node = waiting.pop(reply.metadata.reply_to_message_id, None)
                identity = _identity(reply)
                if node is not None and identity is not None:
                    found[identity] = int(node)
            pause = 0.0 if replies else min(max(2 * pause, _SHORTEST), _LONGEST)
        return found


class _Fixed:
    """Nodes that never change and announce nothing."""

    def __init__(self, sleep: Callable[[float], None], nodes: Mapping[str, int] | None = None) -> None:
        self._sleep, self._nodes = sleep, nodes or {}

    def nodes(self) -> Mapping[str, int]:
        return self._nodes

    def fetch(self, clients: Iterable[str]) -> None:
        del clients

    def wait(self, waiting: Mapping[str, str], seconds: float) -> Collection[str]:
        if seconds > 0:
            self._sleep(seconds)
        return waiting


def _answer(reply: Message) -> bytes | FedgeError:
    try:
        return frame_of(reply)
    except FedgeError as error:
        return error


def _identity(reply: Message) -> str | None:
    record = reply.content.get("fedge") if reply.has_content() else None
    identity = record.get(IDENTITY) if isinstance(record, ConfigRecord) else None
    return identity if isinstance(identity, str) else None
