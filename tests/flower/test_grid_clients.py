"""The server's clients over a Grid: replies one at a time, every byte accounted for."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from federated.build import federation_of, fleet_of
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedge.errors import FedgeError, PayloadError, UpdateError
from fedge.federated.federation import NotYetError
from fedge.federated.journal import Journal
from fedge.federated.prepare import Prepared
from fedge.federated.server import run_rounds
from fedge.flower.client_app import IDENTITY, ContextStore, make_client_app
from fedge.flower.grid_clients import GridClients
from fedge.flower.messages import error_reply, frame_of, with_frame
from fedge.simulation.local import LocalGrid
from fedge.simulation.world import World


def _app() -> ClientApp:
    """Echoes, and says so when it is asked to fail."""
    app = ClientApp()

    @app.query("who")
    def who(message: Message, context: Context) -> Message:
        identity = ConfigRecord({IDENTITY: f"c{context.node_config['partition-id']}"})
        return Message(RecordDict({"fedge": identity}), reply_to=message)

    @app.train()
    def train(message: Message, _context: Context) -> Message:
        frame = frame_of(message)
        if frame == b"raise":
            raise ZeroDivisionError("a bug in the app")
        if frame == b"lost":
            return error_reply(UpdateError("cannot follow"), message)
        if frame == b"odd":
            return Message(RecordDict(), reply_to=message)
        return Message(with_frame(b"echo " + frame), reply_to=message)

    return app


class Slow(LocalGrid):
    """Gives nothing on every other pull, and answers the messages in reverse, as a network may."""

    def __init__(self, app: ClientApp, nodes: int, path: Path) -> None:
        super().__init__(app, nodes, {}, path)
        self.pulls = 0
        self.most = 0

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.pulls += 1
        if self.pulls % 2:
            return []
        replies = list(super().pull_messages(list(message_ids)[::-1]))
        self.most = max(self.most, len(replies))
        return replies


@pytest.fixture
def grid(tmp_path: Path) -> Iterable[Slow]:
    with Slow(_app(), 5, tmp_path / "states") as grid:
        yield grid


def test_clients_are_found_by_what_they_say_and_answers_belong_to_who_was_asked(grid: Slow) -> None:
    naps: list[float] = []
    clients = GridClients(grid, sleep=naps.append)
    assert clients.ids() == [f"c{i}" for i in range(5)]
    answers = dict(clients.ask({f"c{i}": bytes([i]) for i in range(5)}))
    assert answers == {f"c{i}": b"echo " + bytes([i]) for i in range(5)}
    assert len(naps) == 10  # one for each pull that gave nothing
    assert grid.most == 1


def test_every_way_of_failing_becomes_an_error_for_that_client_alone(grid: Slow) -> None:
    clients = GridClients(grid, sleep=lambda _s: None)
    tasks = {"c0": b"raise", "c1": b"lost", "c2": b"odd", "c3": b"fine", "nobody": b"x"}
    answers = dict(clients.ask(tasks))
    assert {c: type(a) for c, a in answers.items()} == {
        "c0": FedgeError,
        "c1": UpdateError,
        "c2": PayloadError,
        "c3": bytes,
        "nobody": FedgeError,
    }
    assert "a bug in the app" in str(answers["c0"])


def test_a_node_that_does_not_say_who_it_is_is_left_out(tmp_path: Path) -> None:
    app = ClientApp()

    @app.query("who")
    def who(message: Message, context: Context) -> Message:
        said = [ConfigRecord({IDENTITY: 7}), ConfigRecord(), ConfigRecord({IDENTITY: "c2"})]
        return Message(
            RecordDict({"fedge": said[int(context.node_config["partition-id"])]}), reply_to=message
        )

    with LocalGrid(app, 3, {}, tmp_path / "states") as grid:
        assert GridClients(grid).ids() == ["c2"]


class Counting(LocalGrid):
    """Adds up the frames in the messages that Flower is given and gives back."""

    down, up = 0, 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        kept = list(messages)
        self.down += sum(len(frame_of(m)) for m in kept if m.metadata.message_type == "train")
        return super().push_messages(kept)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        self.up += sum(
            len(frame_of(r)) for r in replies if "frame" in dict(r.content.config_records["fedge"])
        )
        return replies


def test_the_bytes_in_the_records_are_those_of_the_frames_that_flower_carries(
    small_world: World, small_prepared: Prepared, tmp_path: Path
) -> None:
    """And the rounds over Flower are, bit for bit, the rounds without it."""
    partitions = len(small_world.roles.participants)
    app = make_client_app(
        lambda context: small_world.device(int(context.node_config["partition-id"]), ContextStore(context))
    )
    with Journal(tmp_path / "plain") as journal:
        plain, _ = federation_of(small_world, small_prepared, fleet_of(small_world), journal)
        expected, without = run_rounds(plain), journal.rounds()
    with (
        Counting(app, partitions, {}, tmp_path / "states") as grid,
        Journal(tmp_path / "journal") as journal,
    ):
        clients = GridClients(grid)
        federation, _ = federation_of(small_world, small_prepared, fleet_of(small_world), journal)
        state = run_rounds(replace(federation, clients=clients))
        records = journal.rounds()
    keys = ("down", "initial_down"), ("up", "initial_up")
    down, up = (sum(sum(r[k].values()) for r in records for k in pair) for pair in keys)
    assert (down, up) == (grid.down, grid.up)
    assert state.to_bytes() == expected.to_bytes()
    assert [r["down"] for r in records] == [r["down"] for r in without]


class Holding(LocalGrid):
    """Keeps the answers of some nodes back; of those in ``gone`` it says that they are not there any more."""

    def __init__(self, app: ClientApp, nodes: int, path: Path) -> None:
        super().__init__(app, nodes, {}, path)
        self.held, self.gone = set[int](), set[int]()
        self._kept: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        kept = list(messages)
        ids = list(super().push_messages(kept))
        self._kept |= dict(zip(ids, kept, strict=True))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        node = {i: self._kept[i].metadata.dst_node_id for i in message_ids}
        gone = [Message(Error(5), reply_to=self._kept[i]) for i, n in node.items() if n in self.gone]
        ready = [i for i, n in node.items() if n not in self.held | self.gone]
        return [*gone, *super().pull_messages(ready)]


@pytest.fixture
def holding(tmp_path: Path) -> Iterable[tuple[Holding, GridClients, dict[str, int]]]:
    with Holding(_app(), 3, tmp_path / "states") as grid:
        clients = GridClients(grid, sleep=lambda _s: None, late_seconds=100.0)
        yield grid, clients, dict(clients._fleet.nodes())


def test_the_server_learns_that_a_late_client_will_not_answer(
    holding: tuple[Holding, GridClients, dict[str, int]],
) -> None:
    """Else it would expect the answer for ``late_rounds`` rounds, and not ask that client."""
    grid, clients, nodes = holding
    grid.held = {nodes["c0"]}
    assert [c for c, _ in clients.ask({"c0": b"1", "c1": b"1"}, enough=1)] == ["c1"]
    grid.gone = {nodes["c0"]}
    (first, *_) = clients.ask({"c1": b"2"}, enough=1)
    assert first[0] == "c0"
    assert isinstance(first[1], FedgeError)
    assert [c for c, _ in clients.ask({"c1": b"3"}, enough=1)] == ["c1"]


def test_a_client_that_had_left_when_the_round_ended_is_told_of_in_the_next(
    holding: tuple[Holding, GridClients, dict[str, int]],
) -> None:
    grid, clients, nodes = holding
    grid.gone, grid.held = {nodes["c0"]}, {nodes["c1"], nodes["c2"]}
    asked = clients.ask({"c0": b"1", "c1": b"1"}, deadline=0.05, enough=1)
    assert [(c, type(a)) for c, a in asked] == [("c1", NotYetError), ("c0", NotYetError)]
    grid.held = {nodes["c1"]}
    answers = [(c, type(a)) for c, a in clients.ask({"c2": b"2"}, enough=1)]
    assert answers == [("c0", FedgeError), ("c2", bytes)]


def test_a_late_answer_never_passes_for_the_answer_to_a_newer_task(
    holding: tuple[Holding, GridClients, dict[str, int]],
) -> None:
    grid, clients, nodes = holding
    grid.held = {nodes["c0"]}
    list(clients.ask({"c0": b"old", "c1": b"1"}, enough=1))
    grid.held = set()
    assert dict(clients.ask({"c0": b"new"})) == {"c0": b"echo new"}
