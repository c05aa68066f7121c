"""The gateway's Flower nodes, over a SuperLink of the tests' own that keeps Flower's rules."""

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Error, Metadata

from fedge.deploy.bell import Bell, BellServer
from fedge.deploy.fleet import FleetUpstream
from fedge.deploy.flower_internals.keys import NodeKey
from fedge.deploy.flower_internals.nodes import HEARTBEAT, Fetched
from fedge.deploy.flower_internals.records import record_frame
from fedge.errors import PayloadError, UpdateError
from fedge.flower.messages import CANNOT_FOLLOW, REFUSED, UNSOUND


@dataclass
class SuperLinkOfTests:
    """Nodes must be registered and active; one message at a time; forgets everything on ``restart``."""

    registered: dict[bytes, int] = field(default_factory=dict)
    active: set[int] = field(default_factory=set)
    waiting: dict[int, list[Fetched]] = field(default_factory=dict)
    wanted: dict[str, int] = field(default_factory=dict)
    answers: dict[str, bytes | Error] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    away: bool = False
    nodes: int = 1

    def restart(self) -> None:
        """A new process: nothing of the old one is left."""
        self.registered, self.active, self.waiting, self.wanted = {}, set(), {}, {}

    def put(self, node: int, frame: bytes, ttl: float = 60.0, run: int = 1) -> str:
        """The round loop sends a task."""
        name = f"{len(self.wanted) + 1:064x}"
        about = Metadata(run, name, 1, node, "", "", time.time(), ttl, "train")
        self.waiting.setdefault(node, []).append(Fetched(about, frame))
        self.wanted[name] = node
        return name

    def _call(self, name: str, key: NodeKey | None = None, node: int | None = None) -> None:
        self.calls.append(name)
        if self.away:
            raise ConnectionError("away")
        if key is not None and self.registered.get(key.public) != node:
            raise ConnectionError("401")

    def join(self, key: NodeKey) -> int:
        self._call("join")
        if key.public in self.registered:
            raise ConnectionError("412: public key already in use")
        self.nodes += 1
        self.registered[key.public] = self.nodes
        self.active.add(self.nodes)
        return self.nodes

    def register(self, public: bytes) -> None:
        self._call("register")
        self.nodes += 1
        self.registered[public] = self.nodes

    def activate(self, key: NodeKey) -> None:
        self._call("activate")
        node = self.registered.get(key.public)
        if node is None or node in self.active:
            raise ConnectionError("412: could not be activated")
        self.active.add(node)

    def deactivate(self, key: NodeKey, node: int) -> None:
        self._call("deactivate", key, node)
        self.active.remove(node)

    def heartbeat(self, key: NodeKey, node: int) -> None:
        self._call("heartbeat", key, node)

    def fetch(self, key: NodeKey, node: int) -> Fetched | None:
        self._call("fetch", key, node)
        if not self.waiting.get(node):
            return None
        fetched = self.waiting[node].pop(0)
        if fetched.metadata.run_id == 0:
            raise UpdateError("the run has ended")
        return fetched

    def confirm(self, key: NodeKey, node: int, fetched: Fetched) -> None:
        self._call("confirm", key, node)
        assert fetched.metadata.dst_node_id == node

    def reply(self, key: NodeKey, node: int, to: Fetched, answer: bytes | Error) -> None:
        self._call("reply", key, node)
        if self.wanted.pop(to.metadata.message_id, None) != node:
            raise UpdateError("not wanted")
        self.answers[to.metadata.message_id] = answer


@dataclass
class Ear:
    """What the round loop is told."""

    nodes: dict[str, int] = field(default_factory=dict)
    answered: list[str] = field(default_factory=list)

    def tell_nodes(self, nodes: dict[str, int]) -> None:
        self.nodes = nodes

    def tell_answered(self, message: str) -> None:
        self.answered.append(message)


Story = Callable[[FleetUpstream, SuperLinkOfTests, Ear], Awaitable[None]]


def _play(story: Story, **options: float) -> SuperLinkOfTests:
    flower, ear = SuperLinkOfTests(), Ear()

    async def play() -> None:
        fleet = FleetUpstream(flower, ear, **options)  # type: ignore[arg-type]
        await fleet.verify()
        try:
            await asyncio.wait_for(story(fleet, flower, ear), 20)
        finally:
            await fleet.close()

    asyncio.run(play())
    return flower


async def _until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.005)


def test_a_task_reaches_its_client_once_and_the_answer_belongs_to_it() -> None:
    async def story(fleet: FleetUpstream, flower: SuperLinkOfTests, ear: Ear) -> None:
        for client in ("a", "b"):
            await fleet.join(client)
        assert set(ear.nodes) == {"a", "b"}
        names = {c: flower.put(ear.nodes[c], f"for {c}".encode()) for c in ("a", "b")}
        fleet.ring(["a", "b", "nobody"])
        for client in ("b", "a"):
            task = await fleet.next_task(client)
            assert task.frame == f"for {client}".encode()
            await fleet.answer(client, task.id, b"from " + client.encode())
            with pytest.raises(UpdateError):
                await fleet.answer(client, task.id, b"again")
        assert flower.answers == {names[c]: f"from {c}".encode() for c in ("a", "b")}
        assert ear.answered == [names["b"], names["a"]]

    _play(story)


def test_a_client_cannot_answer_for_another() -> None:
    async def story(fleet: FleetUpstream, flower: SuperLinkOfTests, ear: Ear) -> None:
        await fleet.join("a")
        await fleet.join("b")
        flower.put(ear.nodes["a"], b"x")
        fleet.ring(["a"])
        task = await fleet.next_task("a")
        with pytest.raises(UpdateError):
            await fleet.answer("b", task.id, b"forged")
        assert not flower.answers

    _play(story)


def test_a_refusal_says_to_the_server_whether_the_client_is_lost() -> None:
    async def story(fleet: FleetUpstream, flower: SuperLinkOfTests, ear: Ear) -> None:
        await fleet.join("a")
        for lost in (False, True):
            name = flower.put(ear.nodes["a"], b"x")
            fleet.ring(["a"])
            task = await fleet.next_task("a")
            await fleet.refuse("a", task.id, "y" * 1000, lost=lost)
            answer = flower.answers[name]
            assert isinstance(answer, Error)
            assert answer.code == (CANNOT_FOLLOW if lost else REFUSED)
            assert answer.reason is not None
            assert len(answer.reason) == 500

    _play(story)


def test_an_accusation_is_told_to_the_server_as_one() -> None:
    async def story(fleet: FleetUpstream, flower: SuperLinkOfTests, ear: Ear) -> None:
        await fleet.join("a")
        name = flower.put(ear.nodes["a"], b"x")
        fleet.ring(["a"])
        task = await fleet.next_task("a")
        await fleet.accuse("a", task.id, "keeps back an answer")
        answer = flower.answers[name]
        assert isinstance(answer, Error)
        assert (answer.code, answer.reason) == (UNSOUND, "keeps back an answer")
        with pytest.raises(UpdateError):  # the task is over
            await fleet.answer("a", task.id, b"late")

    _play(story)


def test_an_idle_fleet_calls_nobody() -> None:
    """Whoever has 10,000 idle clients cannot afford polling."""
    now = [0.0]

    async def story(fleet: FleetUpstream, flower: SuperLinkOfTests, _ear: Ear) -> None:
        await fleet.join("a")
        await _until(lambda: "fetch" in flower.calls)
        flower.calls.clear()
        for second in range(int(HEARTBEAT / 2)):
            now[0] = float(second)
            await fleet._housekeeping()
        assert flower.calls.count("fetch") <= HEARTBEAT / 2 / 30 + 1
        assert "heartbeat" not in flower.calls
        now[0] += 10
        await fleet._housekeeping()
        assert flower.calls.count("heartbeat") == 1

    _play(story, clock=lambda: now[0])  # type: ignore[arg-type]


def test_a_client_that_leaves_is_deactivated_and_at_once_usable_when_it_returns() -> None:
    async def story(fleet: FleetUpstream, flower: SuperLinkOfTests, ear: Ear) -> None:
        await fleet.join("a")
        node = ear.nodes["a"]
        flower.put(node, b"x")
        fleet.ring(["a"])
        task = await fleet.next_task("a")
        await fleet.leave("a")
        assert not flower.active
        assert not ear.nodes
        await fleet.join("a")
        assert flower.active == {node}
        assert ear.nodes == {"a": node}
        assert (await fleet.next_task("a")).id == task.id  # not answered, so given again
        await fleet.answer("a", task.id, b"y")
        assert list(flower.answers.values()) == [b"y"]
        assert flower.calls.count("join") == 1

    _play(story, linger=0.0)


def test_a_link_that_drops_for_a_moment_costs_no_call() -> None:
    async def story(fleet: FleetUpstream, flower: SuperLinkOfTests, _ear: Ear) -> None:
        await fleet.join("a")
        await fleet.leave("a")
        await fleet.join("a")
        await fleet._housekeeping()
        assert not {"deactivate", "activate"} & set(flower.calls)

    _play(story, linger=30.0)


def test_a_task_that_is_overdue_is_neither_given_nor_answered() -> None:
    async def story(fleet: FleetUpstream, flower: SuperLinkOfTests, ear: Ear) -> None:
        await fleet.join("a")
        flower.put(ear.nodes["a"], b"old", ttl=0.05)
        fleet.ring(["a"])
        await _until(lambda: "confirm" in flower.calls)
        await asyncio.sleep(0.06)
        flower.put(ear.nodes["a"], b"new")
        fleet.ring(["a"])
        assert (await fleet.next_task("a")).frame == b"new"

    _play(story)


def test_what_an_ended_run_left_behind_is_passed_over() -> None:
    async def story(fleet: FleetUpstream, flower: SuperLinkOfTests, ear: Ear) -> None:
        await fleet.join("a")
        for _ in range(5):
            flower.put(ear.nodes["a"], b"left over", run=0)
        flower.put(ear.nodes["a"], b"new")
        fleet.ring(["a"])
        assert (await fleet.next_task("a")).frame == b"new"

    _play(story)


def test_after_a_restart_of_the_superlink_every_node_joins_with_a_fresh_key() -> None:
    async def story(fleet: FleetUpstream, flower: SuperLinkOfTests, ear: Ear) -> None:
        for client in ("a", "b", "c"):
            await fleet.join(client)
        await fleet.leave("c")
        flower.put(ear.nodes["a"], b"x")
        fleet.ring(["a"])
        task, waiting = await fleet.next_task("a"), asyncio.ensure_future(fleet.next_task("b"))
        before = set(flower.registered)
        flower.restart()
        with pytest.raises(UpdateError):
            await fleet.answer("a", task.id, b"of a run that is no more")
        await fleet.verify()
        assert set(ear.nodes) == {"a", "b"}
        assert not before & set(flower.registered)
        assert set(ear.nodes.values()) == set(flower.registered.values()) == flower.active
        flower.put(ear.nodes["b"], b"again")
        fleet.ring(["b"])
        assert (await waiting).frame == b"again"  # who waited before the restart hears of it too

    _play(story)


def test_a_client_that_comes_while_the_superlink_is_away_joins_when_it_is_back() -> None:
    async def story(fleet: FleetUpstream, flower: SuperLinkOfTests, ear: Ear) -> None:
        flower.away = True
        await fleet.join("a")
        assert not ear.nodes
        await fleet.verify()
        assert not ear.nodes
        flower.away = False
        chores = asyncio.ensure_future(fleet.run())
        await _until(lambda: "a" in ear.nodes)
        chores.cancel()

    _play(story)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"ConfigRecord 0 4\0junk",
        ConfigRecord({"other": b"x"}).deflate(),
        ConfigRecord({"frame": "text"}).deflate(),
        ConfigRecord({"frame": b"x" * 2000}).deflate(),
    ],
)
def test_a_record_that_is_no_frame_is_refused(content: bytes) -> None:
    assert record_frame(ConfigRecord({"frame": b"x"}).deflate(), 1000) == b"x"
    with pytest.raises(PayloadError):
        record_frame(content, 1000)


class _Gateway:
    """A bell server in a thread of its own."""

    def __init__(self, path: Path, nodes: dict[str, int]) -> None:
        self.rung: list[str] = []
        self.loop = asyncio.new_event_loop()
        self.bell = BellServer(path, self.rung.extend, self._ready)
        self.bell.tell_nodes(nodes)
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        asyncio.run_coroutine_threadsafe(self.bell.start(), self.loop).result()

    async def _ready(self) -> None:
        """Nothing to do."""

    def do(self, what: Callable[..., None], *given: object) -> None:
        self.loop.call_soon_threadsafe(what, *given)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.bell.close(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


def _wait(bell: Bell, true: Callable[[], bool]) -> set[str]:
    heard: set[str] = set()
    end = time.monotonic() + 10
    while not true() and time.monotonic() < end:
        heard |= bell.wait(0.05)
    assert true()
    return heard


def test_the_round_loop_hears_of_nodes_and_answers_and_rings_also_after_the_gateway_died(
    tmp_path: Path,
) -> None:
    path = tmp_path / ("long" * 40) / "gateway.sock"  # longer than the 108 bytes of a socket's address
    path.parent.mkdir()
    bell = Bell(path)
    assert not bell.nodes()
    first = _Gateway(path, {"a": 2})
    assert path.stat().st_mode & 0o777 == 0o600
    _wait(bell, lambda: bell.nodes() == {"a": 2})
    bell.fetch(["b", "a"])
    _wait(bell, lambda: first.rung == ["a", "b"])
    first.do(first.bell.tell_answered, "m1")
    heard: set[str] = set()
    _wait(bell, lambda: bool(heard.update(bell.wait(0.05)) or "m1" in heard))
    first.stop()
    _wait(bell, lambda: not bell.nodes())
    second = _Gateway(path, {"a": 9})
    _wait(bell, lambda: bell.nodes() == {"a": 9})
    second.stop()
    bell.close()


@pytest.mark.parametrize(
    "said", [b"no json\n", b"[1]\n", b'{"fetch": 7}\n', b'{"fetch": [1, null]}\n', b"\xff\n"]
)
def test_nonsense_on_the_socket_rings_for_nobody(tmp_path: Path, said: bytes) -> None:
    gateway = _Gateway(tmp_path / "s", {})
    try:
        with socket.socket(socket.AF_UNIX) as end:
            end.connect(str(tmp_path / "s"))
            end.recv(100)
            end.sendall(said)
        bell = Bell(tmp_path / "s")
        _wait(bell, lambda: bell.connected)
        bell.fetch(["a"])
        _wait(bell, lambda: gateway.rung == ["a"])
        bell.close()
    finally:
        gateway.stop()
