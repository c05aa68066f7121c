"""The local engine is a Grid like Flower's own."""

import inspect
import sqlite3
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedge.errors import SetupError
from fedge.simulation.local import LocalGrid


def _app(ran: list[int]) -> ClientApp:
    """Counts its runs in the node's state, and raises on request."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        ran.append(context.node_id)
        record = context.state.get("fedge")
        before = record["state"] if isinstance(record, ConfigRecord) else b""
        assert isinstance(before, bytes)
        context.state["fedge"] = ConfigRecord({"state": before + b"+"})
        if "raise" in message.content:
            raise ZeroDivisionError("a bug in the app")
        return Message(RecordDict({"n": ConfigRecord({"runs": len(before) + 1})}), reply_to=message)

    return app


@pytest.fixture
def ran() -> list[int]:
    return []


@pytest.fixture
def grid(tmp_path: Path, ran: list[int]) -> LocalGrid:
    return LocalGrid(_app(ran), 3, {"key": "value"}, tmp_path / "states")


def _messages(nodes: list[int], *keys: str) -> list[Message]:
    return [Message(RecordDict({k: ConfigRecord() for k in keys}), node, "train") for node in nodes]


def test_every_method_of_flowers_grid_is_there_with_its_parameters() -> None:
    for name in Grid.__abstractmethods__:
        mine, flowers = getattr(LocalGrid, name), getattr(Grid, name)
        assert not getattr(mine, "__isabstractmethod__", False)
        if callable(flowers):
            wanted, found = (inspect.signature(f).parameters for f in (flowers, mine))
            assert list(wanted) == list(found), name
            assert [p.kind for p in wanted.values()] == [p.kind for p in found.values()], name
    assert not LocalGrid.__abstractmethods__


def test_an_app_runs_when_its_reply_is_pulled_one_at_a_time(grid: LocalGrid, ran: list[int]) -> None:
    with grid:
        ids = list(grid.push_messages(_messages(list(grid.get_node_ids()))))
        assert ran == []
        for count in (1, 2, 3):
            (reply,) = grid.pull_messages(ids)
            assert len(ran) == count
            assert reply.metadata.reply_to_message_id == ids[count - 1]
        assert list(grid.pull_messages(ids)) == []
        assert len(set(ids)) == 3


def test_an_app_that_raises_becomes_an_error_reply_and_the_others_go_on(grid: LocalGrid) -> None:
    with grid:
        nodes = list(grid.get_node_ids())
        broken, fine = grid.send_and_receive(_messages(nodes[:1], "raise") + _messages(nodes[1:2]))
        assert broken.has_error()
        assert "a bug in the app" in (broken.error.reason or "")
        assert dict(fine.content["n"]) == {"runs": 1}


def test_a_node_that_is_not_there_becomes_an_error_reply(grid: LocalGrid) -> None:
    with grid:
        (reply,) = grid.send_and_receive(_messages([99]))
        assert reply.has_error()


def test_nodes_know_their_partition_and_the_run_its_id(grid: LocalGrid) -> None:
    with grid:
        assert list(grid.get_node_ids()) == [2, 3, 4]
        assert grid.run.run_id == 1
        message = grid.create_message(RecordDict(), "train", 3, "group")
        assert (message.metadata.dst_node_id, message.metadata.group_id) == (3, "group")
        assert message.metadata.run_id == 1


def test_what_a_client_keeps_is_there_when_the_grid_is_opened_again(tmp_path: Path) -> None:
    for run in (1, 2, 3):
        with LocalGrid(_app([]), 3, {}, tmp_path / "states") as grid:
            (reply,) = grid.send_and_receive(_messages([3]))
            assert dict(reply.content["n"]) == {"runs": run}
            assert list(grid.send_and_receive([])) == []


def test_a_file_that_holds_no_states_is_named(tmp_path: Path) -> None:
    path = tmp_path / "states"
    path.write_text("notes " * 1000)
    with pytest.raises(SetupError, match="states"):
        LocalGrid(_app([]), 3, {}, path)
    db = sqlite3.connect(tmp_path / "other")
    db.close()
    with pytest.raises(SetupError):
        LocalGrid(_app([]), 3, {}, tmp_path / "nowhere" / "states")
