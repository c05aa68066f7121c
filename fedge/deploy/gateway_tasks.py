"""Sees tasks through at the gateway: from the upstream to a client's desk, and what comes of them back.

All of it outlives a client's connection. No socket here: a client's connection is told to ``flush``.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from fedge.deploy.gateway_connection import Connection
from fedge.deploy.gateway_limits import Bucket
from fedge.errors import FedgeError
from fedge.link.frames import Delay, LinkError, Outcome, Reason, Refusal, Refused
from fedge.link.gateway_end import AnswerWhole, GatewayDesk
from fedge.link.withheld import Finding, Watch

Delivery = Coroutine[object, object, None]

_log = logging.getLogger("fedge.gateway")


@dataclass(frozen=True)
class Task:
    """Something for a client to do.

    Attributes:
        id: 16 bytes, this task's alone.
        frame: for ``fedge.federated.client.client_round``.
        deadline: Unix time after which nobody wants the answer.
    """

    id: bytes
    frame: bytes
    deadline: float | None = None


class Upstream(Protocol):
    """Where tasks come from and answers go."""

    async def join(self, client: str) -> None:
        """A device of this name is there."""

    async def leave(self, client: str) -> None:
        """It has gone."""

    async def next_task(self, client: str) -> Task:
        """Its next task, waited for."""

    async def answer(self, client: str, task: bytes, frame: bytes) -> None:
        """Its answer; raises ``FedgeError`` if nobody wants it any more, ``OSError`` to be asked again."""

    async def refuse(self, client: str, task: bytes, text: str, *, lost: bool = False) -> None:
        """It will not do this task, and why; ``lost``: it must be welcomed again. Raises likewise."""

    async def accuse(self, client: str, task: bytes, text: str) -> None:
        """What it claims of its answer, under its own certificate, is not so, and why. Raises likewise."""


@dataclass(eq=False)
class Client:
    """One client that was here since the gateway started."""

    name: str
    bucket: Bucket
    takeovers: Bucket
    desk: GatewayDesk = field(default_factory=GatewayDesk)
    connection: Connection | None = None
    watch: Watch = field(default_factory=Watch)  # over the answers on this connection
    instance: bytes = b""
    expires: float = 0.0
    software: str = ""
    deadline: float | None = None
    pump: "asyncio.Task[None] | None" = None
    leaving: asyncio.TimerHandle | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    handing: bytes | None = None
    delayed: str = ""

    def seconds_left(self) -> int:
        """For its task, 0 where there is no end."""
        return 0 if self.deadline is None else max(1, int(self.deadline - time.time()))


class Tasks:
    """One pump for each client that is there."""

    def __init__(self, upstream: Upstream, largest: int, spawn: Callable[[Delivery], None]) -> None:
        """Nothing happens yet.

        Args:
            upstream: tasks and answers.
            largest: most bytes of a task.
            spawn: runs something beside everything else, and tells of errors.
        """
        self._upstream, self._largest, self._spawn = upstream, largest, spawn

    def welcome(self, client: Client) -> None:
        """A client is there."""
        if client.pump is None or client.pump.done():
            client.pump = asyncio.ensure_future(self._pump(client))
        if client.connection is not None and client.connection.end is not None:
            client.connection.end.deadline = client.seconds_left()

    def gone(self, client: Client) -> None:
        """It has been away for so long that the upstream is told."""
        client.leaving = None
        if client.pump is not None:
            client.pump.cancel()
            client.pump = None
        if not client.desk.held:  # the upstream gives it again
            client.desk.task = client.desk.answer = None
        self._spawn(self._leave(client))

    def answered(self, client: Client, answer: AnswerWhole) -> None:
        """Its answer is whole."""
        if self._claims(client, answer.id):
            delivery = self._upstream.answer(client.name, answer.id, answer.content)
            self._spawn(self._hand_over(client, answer.id, delivery))

    def refused(self, client: Client, refusal: Refusal) -> None:
        """It will not do its task."""
        if self._claims(client, refusal.id):
            again = f" (again in {refusal.seconds} s)" if refusal.seconds else ""
            why = f"{refusal.kind.name.lower()}: {refusal.text}{again}"
            lost = refusal.kind is Refused.FOLLOW
            delivery = self._upstream.refuse(client.name, refusal.id, why, lost=lost)
            self._spawn(self._hand_over(client, refusal.id, delivery))
            _log.info("%s does not do a task: %s", client.name, why)

    def delayed(self, client: Client, delay: Delay) -> None:
        """It will do it later."""
        client.delayed = f"{delay.kind.name.lower()}: {delay.text} ({delay.seconds} s)"
        _log.info("%s delays a task: %s", client.name, client.delayed)

    def accused(self, client: Client, text: str) -> None:
        """What it says of its answer cannot be: the task is over, and the server hears why."""
        if client.desk.task is not None and self._claims(client, task := client.desk.task[0].id):
            delivery = self._upstream.accuse(client.name, task, text)
            self._spawn(self._hand_over(client, task, delivery, Outcome.UNWANTED))
            _log.warning("%s: %s", client.name, text)

    def look(self, clients: Iterable[Client]) -> None:
        """Find those that keep back an answer which they have announced."""
        for client in clients:
            answer, connection = client.desk.answer, client.connection
            if answer is None or answer.whole or connection is None:
                continue
            match client.watch.look(answer.announced, answer.at, connection.signs):
                case Finding.ASK:
                    connection.ask()
                case Finding.WITHHELD:
                    size = answer.announced.size
                    self.accused(client, f"keeps back an answer: {answer.at} of {size} bytes came")

    def _claims(self, client: Client, task: bytes) -> bool:
        """Whether nothing of a task is being told upstream; from now on something is."""
        if client.handing == task:
            return False
        client.handing = task
        return True

    async def _pump(self, client: Client) -> None:
        """Fetch one task after the other and see each through."""
        while True:
            try:
                await self._upstream.join(client.name)
                while True:
                    await self._see_through(client, await self._upstream.next_task(client.name))
            except (OSError, FedgeError) as error:
                _log.warning("no tasks for %s for now: %s", client.name, error)
                await asyncio.sleep(2.0)

    async def _see_through(self, client: Client, task: Task) -> None:
        if len(task.frame) > self._largest or not task.frame:
            _log.error("a task of %d bytes for %s is not sent", len(task.frame), client.name)
            await self._upstream.refuse(client.name, task.id, "the task is too large for the link")
            return
        client.deadline, client.delayed = task.deadline, ""
        if not client.desk.wants(task.id):
            client.desk.give(task.id, task.frame)
        self._flush(client)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if task.deadline is None else task.deadline - time.time()):
                while client.desk.wants(task.id):
                    client.settled.clear()
                    await client.settled.wait()
        if client.desk.wants(task.id) and client.handing != task.id:
            self._withdraw(client, task.id)

    def _withdraw(self, client: Client, task: bytes) -> None:
        client.desk.settle(task, Outcome.UNWANTED)
        if client.connection is not None and client.connection.end is not None:
            client.connection.end.withdraw(task)
            self._flush(client)

    async def _hand_over(
        self, client: Client, task: bytes, delivery: Delivery, outcome: Outcome = Outcome.TAKEN
    ) -> None:
        try:
            await delivery
        except FedgeError as error:
            _log.info("an answer of %s is not wanted: %s", client.name, error)
            outcome = Outcome.UNWANTED
        except OSError as error:
            _log.warning("an answer of %s cannot be handed over now: %s", client.name, error)
            if client.connection is not None:
                client.connection.part(LinkError("the server cannot take answers now", Reason.BUSY, 5))
            return
        finally:
            client.handing = None
        client.desk.settle(task, outcome)
        if client.connection is not None and client.connection.end is not None:
            client.connection.end.settled(task, outcome)
            self._flush(client)
        client.settled.set()

    def _flush(self, client: Client) -> None:
        if client.connection is not None and client.connection.end is not None:
            client.connection.end.deadline = client.seconds_left()
            client.connection.flush()

    async def _leave(self, client: Client) -> None:
        try:
            await self._upstream.leave(client.name)
        except (OSError, FedgeError) as error:
            _log.warning("%s left, and that could not be passed on: %s", client.name, error)
