"""Collecting answers from clients that come and go: deadline, quorum, a node that is another one now."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from flwr.app import Error, Message
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedge.errors import FedgeError
from fedge.flower.grid_clients import GridClients
from fedge.flower.messages import frame_of, with_frame
from fedge.simulation.flower_internals import enter_run, give_id


class World(Grid):
    """Grid, fleet and clock in one: what happens when, by the second, is scripted."""

    def __init__(self, nodes: Mapping[str, int]) -> None:
        self.run_ = enter_run(1)
        self.there: Mapping[str, int] = dict(nodes)
        self.now = 0.0
        self.sent: dict[str, Message] = {}
        self.replies: list[tuple[float, str, Message | Error]] = []
        self.script: dict[float, Mapping[str, int]] = {}
        self.rung: list[list[str]] = []
        self.answer_after: dict[int, float] = {}
        self.looked = 0

    # the clock and the fleet

    def clock(self) -> float:
        return self.now

    def nodes(self) -> Mapping[str, int]:
        for when in sorted(self.script):
            if when <= self.now:
                self.there = self.script.pop(when)
        return self.there

    def fetch(self, clients: Iterable[str]) -> None:
        self.rung.append(sorted(clients))

    def wait(self, waiting: Mapping[str, str], seconds: float) -> Collection[str]:
        self.now += max(seconds, 0.001)
        return list(waiting)

    # the grid

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            ids.append(f"m{len(self.sent)}")
            give_id(message, ids[-1])
            self.sent[ids[-1]] = message
            after = self.answer_after.get(message.metadata.dst_node_id)
            if after is not None:
                answer = Message(with_frame(b"re " + frame_of(message)), reply_to=message)
                self.replies.append((self.now + after, ids[-1], answer))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        self.looked += 1
        wanted = set(message_ids)
        come = [r for r in self.replies if r[0] <= self.now and r[1] in wanted]
        self.replies = [r for r in self.replies if r not in come]
        return [Message(r, reply_to=self.sent[i]) if isinstance(r, Error) else r for _, i, r in come]

    # what Flower's interface has besides

    def set_run(self, run: Run) -> None:
        """There is one."""

    @property
    def run(self) -> Run:
        return self.run_

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.there.values())

    def send_and_receive(self, *_: Any, **__: Any) -> Iterable[Message]:
        raise AssertionError("waits for all and fails with one: never used")


def _clients(world: World) -> GridClients:
    return GridClients(world, fleet=world, clock=world.clock)


def test_a_deadline_ends_the_wait_and_names_who_is_missing() -> None:
    world = World({"a": 2, "b": 3})
    world.answer_after = {2: 1.0}
    answers = dict(_clients(world).ask({"a": b"x", "b": b"y"}, deadline=5.0))
    assert answers["a"] == b"re x"
    assert "no answer within 5 s" in str(answers["b"])
    assert 5.0 <= world.now < 5.1
    assert all(m.metadata.ttl < 20 for m in world.sent.values())  # Flower forgets them soon, too


def test_enough_answers_end_the_wait_and_the_rest_is_not_blamed() -> None:
    world = World({c: i + 2 for i, c in enumerate("abcde")})
    world.answer_after = {2: 1.0, 3: 2.0, 4: 3.0}
    answers = dict(_clients(world).ask(dict.fromkeys("abcde", b"x"), deadline=60.0, enough=2))
    assert set(answers) == {"a", "b"}
    assert world.now < 2.2


def test_an_error_is_no_answer_that_counts() -> None:
    world = World({"a": 2, "b": 3, "c": 4})
    world.answer_after = {3: 2.0}
    world.replies = [(1.0, "m0", Error(1001, "no battery"))]
    answers = dict(_clients(world).ask(dict.fromkeys("abc", b"x"), deadline=60.0, enough=1))
    assert set(answers) == {"a", "b"}
    assert isinstance(answers["a"], FedgeError)
    assert answers["b"] == b"re x"


def test_a_client_with_a_new_node_gets_its_task_again_and_is_counted_once() -> None:
    """The gateway was killed in the middle of the round: its nodes are others now."""
    world = World({"a": 2, "b": 3})
    world.answer_after = {3: 0.5, 20: 0.5}
    world.script = {1.0: {}, 3.0: {"a": 20, "b": 30}}
    answers = list(_clients(world).ask({"a": b"x", "b": b"y"}, deadline=60.0))
    assert sorted(answers) == [("a", b"re x"), ("b", b"re y")]
    assert [m.metadata.dst_node_id for m in world.sent.values()] == [2, 3, 20]
    assert world.rung == [["a", "b"], ["a"]]


def test_a_client_that_left_and_returns_with_its_node_gets_its_task_again() -> None:
    """Flower has answered for it that it is away; that answer is the last one to the message."""
    world = World({"a": 2})
    world.replies = [(1.0, "m0", Error(5, "node unavailable"))]
    world.script = {0.5: {}, 2.0: {"a": 2}}
    clients = _clients(world).ask({"a": b"x"}, deadline=60.0)
    world.answer_after = {}
    world.replies.append((3.0, "m1", Error(1001, "came back")))
    assert [(c, str(e)) for c, e in clients] == [("a", "came back")]
    assert len(world.sent) == 2


def test_without_a_deadline_a_client_that_stays_away_is_given_up() -> None:
    world = World({"a": 2})
    world.replies = [(1.0, "m0", Error(5, "node unavailable"))]
    world.script = {0.5: {}}
    ((client, error),) = _clients(world).ask({"a": b"x"})
    assert client == "a"
    assert "did not come back" in str(error)
    assert 60.0 < world.now < 63.0


def test_looks_become_rarer_while_nothing_comes() -> None:
    world = World({"a": 2})
    list(_clients(world).ask({"a": b"x"}, deadline=10.0))
    assert world.looked < 10.0 / 0.05 + 10


def test_nobody_waits_for_a_client_that_is_not_there() -> None:
    world = World({})
    ((client, error),) = _clients(world).ask({"a": b"x"}, deadline=10.0)
    assert client == "a"
    assert "no node" in str(error)
    assert world.now < 0.1
