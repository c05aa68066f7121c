"""The server's clients over a Grid: replies one at a time, every byte accounted for."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from federated.build import federation_of, fleet_of
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedge.errors import FedgeError, PayloadError, UpdateError
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
