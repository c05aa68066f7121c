"""The fleet as Flower sees it: one node per fedge client, all of them kept by the gateway.

A node's key lives in memory only and is new after every start: Flower refuses a key whose node has not left
properly for about a minute, and to nobody but this process is it of any use. When the SuperLink has been
started anew it knows no node; the first call it refuses, or the round loop that connects, makes all nodes
join again.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from flwr.app import Error

from fedge.deploy.flower_internals.keys import NodeKey
from fedge.deploy.flower_internals.nodes import HEARTBEAT, Fetched
from fedge.deploy.gateway_tasks import Task
from fedge.errors import PayloadError, UpdateError
from fedge.flower.messages import CANNOT_FOLLOW, REFUSED, UNSOUND

_T = TypeVar("_T")

_POLLS = 5.0  # looks for messages that nobody announced, per second and in all
_LEFTOVERS = 16  # messages of ended runs that one look passes over
_WIDTH = 8  # calls to Flower at a time


class Flower(Protocol):
    """What is needed of a SuperLink; ``flower_internals.nodes.Nodes`` is one."""

    def join(self, key: NodeKey) -> int:
        """Register and activate a node."""

    def register(self, public: bytes) -> None:
        """Make a stock node's key known."""

    def activate(self, key: NodeKey) -> None:
        """A node is there again."""

    def deactivate(self, key: NodeKey, node: int) -> None:
        """A node leaves."""

    def heartbeat(self, key: NodeKey, node: int) -> None:
        """A node is still there."""

    def fetch(self, key: NodeKey, node: int) -> Fetched | None:
        """The oldest message for a node."""

    def confirm(self, key: NodeKey, node: int, fetched: Fetched) -> None:
        """A message has arrived."""

    def reply(self, key: NodeKey, node: int, to: Fetched, answer: bytes | Error) -> None:
        """Answer a message."""


class Teller(Protocol):
    """Who passes on to the round loop what it waits for; ``bell.BellServer`` does."""

    def tell_nodes(self, nodes: dict[str, int]) -> None:
        """These clients are there."""

    def tell_answered(self, message: str) -> None:
        """An answer to this message is there."""


@dataclass
class _Node:
    client: str
    key: NodeKey = field(default_factory=NodeKey)
    id: int | None = None  # Flower's; None while the SuperLink does not know it
    active: bool = False
    here: bool = True
    left: float = 0.0
    signed: float = 0.0  # when Flower last heard of it
    looked: float = 0.0  # when it was last looked for messages
    tasks: asyncio.Queue[Task] = field(default_factory=asyncio.Queue)
    open: dict[bytes, Fetched] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def forget_tasks(self) -> None:
        """Nothing waits for the device."""
        while not self.tasks.empty():
            self.tasks.get_nowait()

    def unknown(self) -> None:
        """The SuperLink does not know it."""
        self.id, self.active = None, False
        self.open.clear()
        self.forget_tasks()


class FleetUpstream:
    """``Upstream`` of the gateway, with Flower above it.

    A client that is gone for less than ``linger`` seconds keeps its node and its task, so a link that drops
    costs nothing; after that its node is deactivated, and activated again when the client returns.
    """

    def __init__(
        self,
        flower: Flower,
        teller: Teller | None = None,
        *,
        linger: float = 30.0,
        poll: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is called yet; ``run`` does the housekeeping.

        Args:
            flower: the SuperLink.
            teller: passes on who is there and what was answered.
            linger: seconds, as above.
            poll: seconds between two looks for messages that nobody announced, per client, at least.
            clock: seconds that only go up.
        """
        self._flower, self._clock = flower, clock
        self._linger, self._poll = linger, poll
        self.teller = teller
        self._nodes: dict[str, _Node] = {}
        self._pool = ThreadPoolExecutor(_WIDTH, thread_name_prefix="flower")
        self._lost = asyncio.Event()
        self._lost.set()  # nothing is known of the SuperLink before the first contact
        self._repair = asyncio.Lock()
        self._background: set[asyncio.Task[None]] = set()

    async def join(self, client: str) -> None:
        """A device of this name is there: make its node known, and look what waits for it."""
        node = self._nodes.setdefault(client, _Node(client))
        returned, node.here = not node.here, True
        if returned:
            for fetched in node.open.values():
                node.tasks.put_nowait(_task(fetched))
        if await self._present(node):
            self._tell()
            self._spawn(self._fetch(node))

    async def leave(self, client: str) -> None:
        """The device is gone, perhaps for a moment."""
        if (node := self._nodes.get(client)) is not None and node.here:
            node.here, node.left = False, self._clock()
            node.forget_tasks()
            if self._linger <= 0:
                await self._deactivate(node)

    async def next_task(self, client: str) -> Task:
        """The next task for a client, waited for; one that is overdue is not given any more."""
        node = self._nodes[client]
        while True:
            task = await node.tasks.get()
            if task.id in node.open and node.open[task.id].expires > time.time():
                return task
            node.open.pop(task.id, None)

    async def answer(self, client: str, task: bytes, frame: bytes) -> None:
        """Hand a client's answer to Flower.

        Raises:
            UpdateError: the server no longer waits for it.
        """
        await self._reply(client, task, frame)

    async def refuse(self, client: str, task: bytes, text: str, *, lost: bool = False) -> None:
        """Tell the server why a client does not do a task; ``lost``: it must be welcomed again.

        Raises:
            UpdateError: the server no longer waits for it.
        """
        await self._reply(client, task, Error(CANNOT_FOLLOW if lost else REFUSED, text[:500]))

    async def accuse(self, client: str, task: bytes, text: str) -> None:
        """Tell the server that what a client claims of its answer is not so.

        Raises:
            UpdateError: the server no longer waits for it.
        """
        await self._reply(client, task, Error(UNSOUND, text[:500]))

    def ring(self, clients: Iterable[str]) -> None:
        """The round loop says that a task waits for each of these."""
        for client in clients:
            if (node := self._nodes.get(client)) is not None and node.here:
                self._spawn(self._fetch(node))

    async def stock(self, public: bytes) -> None:
        """A stock node with this public key (PEM) is about to come: make its key known to Flower.

        Raises:
            ConnectionError: the SuperLink is away.
        """
        await self._thread(self._flower.register, public)

    async def verify(self) -> None:
        """Make sure that the SuperLink knows every node, for one call where it does."""
        node = next((n for n in self._nodes.values() if n.active), None)
        if node is not None and not self._lost.is_set():
            await self._call(node, self._flower.heartbeat)
        if self._lost.is_set():
            await self._join_all()

    async def run(self) -> None:
        """Keep the nodes alive, for ever."""
        while True:
            await asyncio.sleep(0.5 if self._lost.is_set() else 1.0)
            if self._lost.is_set():
                await self._join_all()
            else:
                await self._housekeeping()

    async def close(self) -> None:
        """All nodes leave."""
        for work in list(self._background):
            work.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _housekeeping(self) -> None:
        now, each = self._clock(), max(self._poll, len(self._nodes) / _POLLS)
        for node in list(self._nodes.values()):
            if not node.active or self._lost.is_set():
                continue
            if not node.here and now - node.left >= self._linger:
                await self._deactivate(node)
                continue
            if now - node.signed > HEARTBEAT / 2:
                await self._call(node, self._flower.heartbeat)
                node.signed = now
            if node.here and now - node.looked > each:
                await self._fetch(node)

    async def _present(self, node: _Node) -> bool:
        """Register or activate a node where that is due; false while there is no SuperLink."""
        async with node.lock:
            if node.active:
                return True
            try:
                if node.id is None:
                    node.key = NodeKey()
                    node.id = await self._thread(self._flower.join, node.key)
                else:
                    await self._thread(self._flower.activate, node.key)
            except ConnectionError:
                self._lost.set()
                return False
            node.active, node.signed, node.looked = True, self._clock(), self._clock()
            return True

    async def _deactivate(self, node: _Node) -> None:
        async with node.lock:
            if node.here or not node.active:
                return
            node.active = False
            await self._call(node, self._flower.deactivate)
        self._tell()

    async def _join_all(self) -> None:
        """To a SuperLink that knows nobody: every node anew."""
        async with self._repair:
            if not self._lost.is_set():
                return
            for node in self._nodes.values():
                node.unknown()
            self._lost.clear()
            await asyncio.gather(*(self._present(n) for n in list(self._nodes.values()) if n.here))
            self._tell()

    async def _fetch(self, node: _Node) -> None:
        """Take one message for a node, if there is one, and hand it on."""
        async with node.lock:
            if node.id is None or not node.active:
                return
            key, node_id, node.looked = node.key, node.id, self._clock()
            fetched = await self._next(key, node_id)
            if fetched is None:
                return
            node.open[fetched.task] = fetched
            node.tasks.put_nowait(_task(fetched))
        try:
            await self._thread(self._flower.confirm, key, node_id, fetched)
        except ConnectionError:
            self._lost.set()
        except UpdateError:
            pass  # the run has ended in this moment

    async def _next(self, key: NodeKey, node: int) -> Fetched | None:
        """The next message of a run that still goes on; what an ended run left is passed over."""
        for _ in range(_LEFTOVERS):
            try:
                return await self._thread(self._flower.fetch, key, node)
            except (PayloadError, UpdateError):
                continue
            except ConnectionError:
                self._lost.set()
                break
        return None

    async def _reply(self, client: str, task: bytes, answer: bytes | Error) -> None:
        node = self._nodes.get(client)
        fetched = None if node is None else node.open.get(task)
        if node is None or node.id is None or fetched is None or fetched.expires <= time.time():
            raise UpdateError("the server no longer waits for this answer")
        try:
            await self._thread(self._flower.reply, node.key, node.id, fetched, answer)
        except ConnectionError:
            self._lost.set()
            raise UpdateError("the server was started anew and gives the task again") from None
        finally:
            node.open.pop(task, None)
        if self.teller is not None:
            self.teller.tell_answered(fetched.metadata.message_id)

    async def _call(self, node: _Node, what: Callable[[NodeKey, int], None]) -> None:
        if node.id is None:
            return
        try:
            await self._thread(what, node.key, node.id)
        except ConnectionError:
            self._lost.set()
        except UpdateError:
            pass

    def _tell(self) -> None:
        if self.teller is not None:
            self.teller.tell_nodes({n.client: n.id for n in self._nodes.values() if n.id and n.active})

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _thread(self, what: Callable[..., _T], *given: object) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, what, *given)


def _task(fetched: Fetched) -> Task:
    return Task(id=fetched.task, frame=fetched.frame, deadline=fetched.expires)
