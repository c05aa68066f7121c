"""A folder carries what Flower's grids carry, and a node's process may come and go."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from federated.build import MemoryStore, federation_of, fleet_of, same_weights
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedge.durable import unfinished
from fedge.errors import FedgeError, PayloadError, RefusedError, SetupError, UpdateError
from fedge.federated.file_store import FileStore
from fedge.federated.journal import Journal
from fedge.federated.prepare import Prepared
from fedge.federated.server import run_rounds
from fedge.flower.client_app import make_client_app
from fedge.flower.grid_clients import GridClients
from fedge.flower.messages import error_reply, frame_of, with_frame
from fedge.simulation import directory_files
from fedge.simulation.directory import DirectoryGrid, serve_directory
from fedge.simulation.world import World

NODE = 2


def _app(ran: list[bytes]) -> ClientApp:
    """Answers a frame with its reverse; some frames make it fail."""
    app = ClientApp()

    @app.train()
    def train(message: Message, _context: Context) -> Message:
        frame = frame_of(message)
        ran.append(frame)
        errors: dict[bytes, FedgeError] = {b"lost": UpdateError("cannot follow"), b"no": RefusedError("no")}
        if frame in errors:
            return error_reply(errors[frame], message)
        if frame == b"raise":
            raise ZeroDivisionError("a bug in the app")
        if frame == b"other":
            return Message(RecordDict({"other": ConfigRecord({"a": 1})}), reply_to=message)
        return Message(with_frame(frame[::-1]), reply_to=message)

    @app.query("who")
    def who(message: Message, context: Context) -> Message:
        return Message(
            RecordDict({"fedge": ConfigRecord({"id": f"client {context.node_id}"})}), reply_to=message
        )

    return app


@pytest.fixture
def ran() -> list[bytes]:
    return []


@pytest.fixture
def grid(tmp_path: Path) -> DirectoryGrid:
    return DirectoryGrid(tmp_path, 2)


Serve = Callable[..., None]


@pytest.fixture
def serve(tmp_path: Path, ran: list[bytes]) -> Serve:
    """A node's process that looks into its folder once, and is gone."""

    def once(node: int = NODE, app: ClientApp | None = None) -> None:
        looks = iter([False])
        serve_directory(tmp_path, node, app or _app(ran), lambda: next(looks, True), lambda _s: None)

    return once


def _push(grid: DirectoryGrid, *frames: bytes, node: int = NODE) -> list[str]:
    return list(grid.push_messages(Message(with_frame(f), node, "train") for f in frames))


def _pull(grid: DirectoryGrid, message_id: str) -> Message:
    (reply,) = grid.pull_messages([message_id])
    return reply


def _files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# ----- as Flower's grids


def test_every_method_of_flowers_grid_is_there_with_its_parameters() -> None:
    for name in Grid.__abstractmethods__:
        mine, flowers = getattr(DirectoryGrid, name), getattr(Grid, name)
        if callable(flowers):
            wanted, found = (inspect.signature(f).parameters for f in (flowers, mine))
            assert [(p.name, p.kind) for p in wanted.values()] == [(p.name, p.kind) for p in found.values()]
    assert not DirectoryGrid.__abstractmethods__


@pytest.mark.parametrize("frame", [b"frame", b"", b"\0\xff" * 5000])
def test_a_frame_comes_as_it_was_sent_and_nothing_stays_behind(
    grid: DirectoryGrid, serve: Serve, ran: list[bytes], tmp_path: Path, frame: bytes
) -> None:
    (message_id,) = _push(grid, frame)
    assert list(grid.pull_messages([message_id])) == []
    serve()
    reply = _pull(grid, message_id)
    assert (ran, frame_of(reply)) == ([frame], frame[::-1])
    assert (reply.metadata.reply_to_message_id, reply.metadata.src_node_id) == (message_id, NODE)
    assert _files(tmp_path) == []
    assert list(grid.pull_messages([message_id])) == []


def test_who_is_asked_says_which_client_it_is(grid: DirectoryGrid, serve: Serve) -> None:
    def both(_seconds: float) -> None:
        serve(2)
        serve(3)

    assert GridClients(grid, both).ids() == ["client 2", "client 3"]


def test_tasks_of_a_node_are_answered_in_order_and_once(
    grid: DirectoryGrid, serve: Serve, ran: list[bytes]
) -> None:
    frames = [b"%d" % n for n in range(12)]
    ids = _push(grid, *frames)
    serve()
    serve()
    assert ran == frames
    assert [frame_of(_pull(grid, i)) for i in ids] == [f[::-1] for f in frames]


def test_errors_keep_their_kind_and_the_others_go_on(grid: DirectoryGrid, serve: Serve) -> None:
    kinds = {b"lost": UpdateError, b"no": RefusedError, b"raise": FedgeError, b"other": RefusedError}
    *bad, fine = _push(grid, *kinds, b"fine")
    serve()
    for message_id, kind in zip(bad, kinds.values(), strict=True):
        with pytest.raises(FedgeError) as raised:
            frame_of(_pull(grid, message_id))
        assert type(raised.value) is kind
    assert frame_of(_pull(grid, fine)) == b"enif"


def test_a_reason_is_carried(grid: DirectoryGrid, serve: Serve) -> None:
    (message_id,) = _push(grid, b"raise")
    serve()
    assert "a bug in the app" in (_pull(grid, message_id).error.reason or "")


def test_a_node_that_is_not_there_becomes_an_error_reply(grid: DirectoryGrid) -> None:
    (reply,) = grid.send_and_receive([Message(with_frame(b""), 99, "train")])
    assert "no node 99" in (reply.error.reason or "")


def test_messages_of_other_apps_are_refused_and_not_sent(grid: DirectoryGrid, tmp_path: Path) -> None:
    for message in (Message(with_frame(b""), NODE, "evaluate"), Message(RecordDict(), NODE, "train")):
        with pytest.raises(PayloadError):
            grid.push_messages([message])
    assert _files(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SetupError, match="file"):
        DirectoryGrid(tmp_path / "file", 1)


# ----- what is not what it claims to be


@pytest.mark.parametrize(
    "content",
    [b"", b"Q", b"I" + b"x" * 257, b"E", b"E123", b"E1234" + b"x" * (1 << 17)],
    ids=lambda c: str(c[:5]),
)
def test_an_answer_that_is_none_becomes_an_error_reply(
    grid: DirectoryGrid, tmp_path: Path, content: bytes
) -> None:
    (message_id,) = _push(grid, b"frame")
    (tmp_path / "node-2" / "answers" / message_id).write_bytes(content)
    with pytest.raises(RefusedError):
        frame_of(_pull(grid, message_id))
    assert _files(tmp_path) == []


def test_files_above_the_limit_are_not_read_on_either_side(
    grid: DirectoryGrid, serve: Serve, ran: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory_files, "MAX_BYTES", 200)
    large, answer = _push(grid, b"x" * 200, b"small")
    serve()
    assert ran == [b"small"]
    (tmp_path / "node-2" / "answers" / answer).write_bytes(b"F" + b"x" * 200)
    for message_id in (large, answer):
        with pytest.raises(RefusedError, match="at most 200"):
            frame_of(_pull(grid, message_id))


def test_a_file_that_is_not_finished_is_not_there(
    grid: DirectoryGrid, serve: Serve, ran: list[bytes], tmp_path: Path
) -> None:
    (message_id,) = _push(grid, b"frame")
    box = tmp_path / "node-2"
    unfinished(box / "tasks" / "00000000-x").write_bytes(b"Fhalf a fra")
    unfinished(box / "answers" / message_id).write_bytes(b"Fhal")
    assert list(grid.pull_messages([message_id])) == []
    serve()
    assert ran == [b"frame"]
    assert frame_of(_pull(grid, message_id)) == b"emarf"
    assert _files(tmp_path) == ["node-2/tasks/.00000000-x.unfinished"]


# ----- nodes and servers that come and go


def test_a_node_that_is_given_up_gets_no_task_and_its_late_answer_is_nobodys(
    grid: DirectoryGrid, serve: Serve, ran: list[bytes], tmp_path: Path
) -> None:
    (early,) = _push(grid, b"early")
    serve()
    (late,) = _push(grid, b"late")
    grid.give_up(NODE)
    serve()
    assert ran == [b"early"]
    for message_id in (early, late):
        assert "given up" in (_pull(grid, message_id).error.reason or "")
    answers = tmp_path / "node-2" / "answers"
    (answers / late).write_bytes(b"Fcomes after its task was withdrawn")
    (third,) = _push(grid, b"third")
    serve()
    assert frame_of(_pull(grid, third)) == b"driht"
    assert _files(tmp_path) == []


def test_giving_up_one_node_is_nothing_to_the_other(grid: DirectoryGrid, serve: Serve) -> None:
    (two,), (three,) = _push(grid, b"two"), _push(grid, b"three", node=3)
    grid.give_up(2)
    serve(3)
    assert _pull(grid, two).has_error()
    assert frame_of(_pull(grid, three)) == b"eerht"


def test_who_does_not_answer_in_time_is_given_up_and_who_does_is_not(tmp_path: Path, serve: Serve) -> None:
    now = [0.0]
    grid = DirectoryGrid(tmp_path, 2, patience=60, clock=lambda: now[0])
    (slow,), (fast,) = _push(grid, b"slow", node=3), _push(grid, b"fast")
    now[0] = 59.0
    assert list(grid.pull_messages([slow])) == []
    serve()
    now[0] = 61.0
    assert "no answer in 60 s" in (_pull(grid, slow).error.reason or "")
    assert frame_of(_pull(grid, fast)) == b"tsaf"
    assert _files(tmp_path) == []


def test_send_and_receive_leaves_out_what_is_late(tmp_path: Path, serve: Serve) -> None:
    now = [0.0]

    def pause(seconds: float) -> None:
        now[0] += seconds
        serve()

    grid = DirectoryGrid(tmp_path, 2, clock=lambda: now[0], sleep=pause)
    messages = [Message(with_frame(b"ab"), node, "train") for node in (2, 3)]
    (reply,) = grid.send_and_receive(messages, timeout=5)
    assert frame_of(reply) == b"ba"
    assert now[0] >= 5
    assert _files(tmp_path) == []


def test_a_restarted_server_takes_no_answer_to_what_another_asked(
    grid: DirectoryGrid, serve: Serve, ran: list[bytes], tmp_path: Path
) -> None:
    _push(grid, b"answered")
    serve()
    _push(grid, b"open")
    again = DirectoryGrid(tmp_path, 2)
    assert _files(tmp_path) == []
    (message_id,) = _push(again, b"new")
    assert list(again.pull_messages([message_id])) == []
    serve()
    assert ran == [b"answered", b"new"]
    assert frame_of(_pull(again, message_id)) == b"wen"


def test_a_restarted_node_answers_what_has_no_answer_and_clears_what_it_left(
    grid: DirectoryGrid, serve: Serve, ran: list[bytes], tmp_path: Path
) -> None:
    first, second = _push(grid, b"first", b"second")
    (tmp_path / "node-2" / "answers" / first).write_bytes(b"Fof an earlier process")
    unfinished(tmp_path / "node-2" / "answers" / second).write_bytes(b"Fha")
    serve()
    assert ran == [b"second"]
    assert frame_of(_pull(grid, first)) == b"of an earlier process"
    assert frame_of(_pull(grid, second)) == b"dnoces"
    assert _files(tmp_path) == []


# ----- a federation


@pytest.fixture
def stores(small_world: World, tmp_path: Path) -> Iterator[list[FileStore]]:
    opened = [FileStore(tmp_path / "states" / c / "state") for c in small_world.roles.participants]
    yield opened
    for store in opened:
        store.close()


def test_a_federation_over_a_folder_ends_with_the_same_weights_and_states(
    small_world: World, small_prepared: Prepared, tmp_path: Path, stores: list[FileStore]
) -> None:
    """With a fresh look into every folder each time, as if every node were restarted all the time."""
    devices = [small_world.device(i, store) for i, store in enumerate(stores)]

    def pause(_seconds: float) -> None:
        for node, device in enumerate(devices, NODE):
            looks = iter([False])
            app = make_client_app(lambda _context, device=device: device)  # type: ignore[misc]
            serve_directory(tmp_path / "grid", node, app, lambda: next(looks, True), lambda _s: None)  # noqa: B023

    fleet = fleet_of(small_world)
    clients = GridClients(DirectoryGrid(tmp_path / "grid", len(devices)), pause)
    ends = []
    for name, carrier in (("memory", fleet), ("folder", clients)):
        with Journal(tmp_path / name) as journal:
            federation, _ = federation_of(small_world, small_prepared, carrier, journal)  # type: ignore[arg-type]
            ends.append(run_rounds(federation))
    assert same_weights(ends[0].weights, ends[1].weights)
    assert not same_weights(ends[0].weights, small_prepared.weights)
    for device, store in zip(devices, stores, strict=True):
        memory = fleet.devices[device.id].store
        assert isinstance(memory, MemoryStore)
        assert store.load() == memory.content
