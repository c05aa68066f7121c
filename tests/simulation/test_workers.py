"""Worker processes change nothing: not their number, not the order of their answers, not their deaths."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from federated.build import Recorder, without_time
from flwr.app import ConfigRecord, Message, RecordDict

from fedge.cli import main
from fedge.errors import ConfigError, FedgeError, InputError, PayloadError, SetupError
from fedge.federated.journal import Journal
from fedge.flower.grid_clients import GridClients
from fedge.flower.messages import frame_of, with_frame
from fedge.observe import silent
from fedge.simulation import workers as module
from fedge.simulation.client_files import ClientFiles
from fedge.simulation.folder import JOURNAL
from fedge.simulation.life import simulate
from fedge.simulation.local import LocalGrid
from fedge.simulation.worker import Crew
from fedge.simulation.worker_host import MOST_DEATHS, find_app
from fedge.simulation.worker_wire import Kind, Place, Start, Task, said
from fedge.simulation.workers import HOST_BYTES, WORKER_BYTES, Workers, fitting, free_memory, some_workers
from fedge.simulation.world import World
from simulation.lives import timeless

PATIENCE = 120.0
APP = "simulation.crew_app:app"
CLIENTS = 6

Stop = Callable[[str, Mapping[str, object]], None]


def _until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what}: not in {PATIENCE:g} s"
        time.sleep(0.01)


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ----- an app that does as it is told


@pytest.fixture(scope="module")
def marks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("marks")


@pytest.fixture(scope="module")
def notes() -> list[str]:
    return []


@pytest.fixture(scope="module")
def workers(marks: Path, notes: list[str]) -> Iterator[Workers]:
    with Workers(APP, {"folder": str(marks)}, CLIENTS, 2, notes.append) as workers:
        yield workers


@pytest.fixture
def grid(workers: Workers, tmp_path: Path) -> Iterator[LocalGrid]:
    with LocalGrid(workers, CLIENTS, {}, tmp_path / "states") as grid:
        yield grid


def _push(grid: LocalGrid, *words: str) -> list[str]:
    """Message ``i`` goes to node ``i``, from the first on."""
    nodes = list(grid.get_node_ids())
    return list(
        grid.push_messages(
            Message(with_frame(w.encode()), nodes[i % CLIENTS], "train") for i, w in enumerate(words)
        )
    )


def _frames(replies: list[Message]) -> list[str]:
    return [frame_of(r).decode() for r in replies]


def _all(grid: LocalGrid, ids: list[str]) -> list[Message]:
    replies: list[Message] = []
    while found := list(grid.pull_messages(ids)):
        replies += found
    return replies


def test_replies_come_in_the_order_of_the_messages_whichever_is_ready_first(grid: LocalGrid) -> None:
    ids = _push(grid, "wait third", "echo", "mark third")
    replies = _all(grid, ids)
    assert [r.metadata.reply_to_message_id for r in replies] == ids
    assert _frames(replies) == ["2 +", "3 +", "4 +"]
    assert list(grid.pull_messages(ids)) == []


def test_a_client_is_the_same_in_whichever_process_it_runs(grid: LocalGrid, tmp_path: Path) -> None:
    counts = dict.fromkeys(grid.get_node_ids(), 0)
    for node in list(counts) * 5:
        counts[node] += 1
        (reply,) = grid.send_and_receive([Message(with_frame(b"echo"), node, "train")])
        assert frame_of(reply) == f"{node} {'+' * counts[node]}".encode()
    assert [ClientFiles(tmp_path / "states").load(i) for i in range(CLIENTS)] == [b"+++++"] * CLIENTS


def test_an_app_that_raises_becomes_an_error_reply_and_the_others_go_on(grid: LocalGrid) -> None:
    broken, fine = _all(grid, _push(grid, "raise", "echo"))
    assert broken.has_error()
    assert "a bug in the app" in (broken.error.reason or "")
    assert frame_of(fine) == b"3 +"


def test_a_node_that_is_not_there_becomes_an_error_reply(grid: LocalGrid) -> None:
    (reply,) = grid.send_and_receive([Message(with_frame(b"echo"), 99, "train")])
    assert reply.has_error()


def test_workers_carry_fedges_own_messages_only(grid: LocalGrid) -> None:
    with pytest.raises(PayloadError, match="carries"):
        grid.send_and_receive([Message(RecordDict({"a": ConfigRecord()}), 2, "evaluate")])
    (reply,) = _all(grid, _push(grid, "other"))
    assert "no frame" in (reply.error.reason or "")


def test_clients_are_found_by_what_they_say(grid: LocalGrid) -> None:
    clients = GridClients(grid)
    assert clients.ids() == [f"c{i}" for i in range(CLIENTS)]
    answers = dict(clients.ask({f"c{i}": b"echo" for i in range(CLIENTS)}))
    assert answers == {f"c{i}": f"{i + 2} +".encode() for i in range(CLIENTS)}


def test_messages_that_nobody_waits_for_any_more_do_not_hold_up_the_others(grid: LocalGrid) -> None:
    first = _push(grid, *["echo"] * 4)
    assert len(list(grid.pull_messages(first))) >= 1
    later = _push(grid, *["echo"] * 6)
    assert len(_all(grid, later)) == 6


# ----- deaths


def test_the_task_of_a_worker_that_was_killed_is_run_again(grid: LocalGrid, notes: list[str]) -> None:
    del notes[:]
    replies = _all(grid, _push(grid, "echo", f"die {MOST_DEATHS - 1}", "echo", "echo"))
    assert _frames(replies) == ["2 +", "3 +", "4 +", "5 +"]  # what a killed one had not saved is not there
    assert len(notes) == MOST_DEATHS - 1
    assert all("killed by signal 9 over the task of client number 1" in n for n in notes)


def test_a_task_that_kills_every_worker_ends_the_run_and_all_processes(tmp_path: Path) -> None:
    with (
        Workers(APP, {"folder": str(tmp_path)}, CLIENTS, 3) as workers,
        LocalGrid(workers, CLIENTS, {}, tmp_path / "states") as grid,
    ):
        assert _frames(_all(grid, _push(grid, "echo"))) == ["2 +"]
        mine = [workers._process.pid, *_children(workers._process.pid)]
        assert len(mine) == 4
        words = rf"{MOST_DEATHS} worker processes .* client number 0.*signal 9"
        with pytest.raises(FedgeError, match=words) as error:
            _all(grid, _push(grid, f"die {MOST_DEATHS}", "echo"))
    assert error.value.exit_code == 1
    _until(lambda: not any(map(_alive, mine)), "all of them ended")


def test_without_their_host_the_run_ends_and_says_that_it_can_be_resumed(tmp_path: Path) -> None:
    with Workers(APP, {"folder": str(tmp_path)}, CLIENTS, 2) as workers:
        (host,) = [p for p in _children(os.getpid()) if p == workers._process.pid]
        number = workers.submit(0, tmp_path, b"W")
        assert workers.answer(number) == b"Ic0"
        mine = _children(host)
        assert len(mine) == 2
        os.kill(host, signal.SIGKILL)
        with pytest.raises(FedgeError, match="resumed"):
            workers.answer(workers.submit(0, tmp_path, b"W"))
        _until(lambda: not any(map(_alive, mine)), "the workers ended with their host")


# ----- what cannot work is said


@pytest.mark.parametrize(
    "name", ["simulation.crew_app:nothing", "simulation.crew_app:os", "simulation.crew_app"]
)
def test_what_is_no_client_app_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no ClientApp"):
        find_app(name)


def test_data_that_cannot_be_read_are_named_by_the_first_answer(tmp_path: Path) -> None:
    config = {"scenario": "watch", "data.source": str(tmp_path / "gone.npz")}
    with (
        Workers("fedge.simulation.life:client_app", config, 1, 1) as workers,
        pytest.raises(InputError, match=r"gone\.npz"),
    ):
        workers.answer(workers.submit(0, tmp_path, b"W"))


def test_a_state_that_cannot_be_read_is_no_answer_of_the_client(tmp_path: Path, marks: Path) -> None:
    files = ClientFiles(tmp_path / "states")
    (tmp_path / "states" / "0").mkdir()
    with pytest.raises(SetupError, match="states"):
        Crew(find_app(APP), {"folder": str(marks)}, CLIENTS).answer(0, files, b"Fecho")


# ----- memory


def test_what_is_the_same_for_all_crosses_once(workers: Workers, tmp_path: Path) -> None:
    before = os.fstat(workers._memory).st_size
    content = b"F" + b"echo " + bytes(100_000)
    numbers = [workers.submit(i % CLIENTS, tmp_path, content) for i in range(50)]
    assert all(workers.answer(n) for n in numbers)
    assert os.fstat(workers._memory).st_size - before < 101_000 + len(str(tmp_path))


def test_the_shared_file_does_not_grow_for_ever(
    workers: Workers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SHARED_BYTES", 20_000)
    workers._begin_anew()
    numbers = []
    for i in range(100):
        numbers.append(workers.submit(i % CLIENTS, tmp_path, b"F" + f"echo {i:05d}".encode() + bytes(1000)))
        assert os.fstat(workers._memory).st_size < 25_000
    answers = [workers.answer(n) for n in numbers]
    expected = [f"F{i % CLIENTS + 2} {'+' * (i // CLIENTS + 1)}".encode() for i in range(100)]
    assert answers == expected


def test_there_are_as_many_workers_as_fit_into_memory_and_never_none() -> None:
    assert fitting(4, 100, HOST_BYTES + 10 * WORKER_BYTES) == 4
    assert fitting(4, 100, HOST_BYTES + 3 * WORKER_BYTES) == 3
    assert fitting(4, 100, HOST_BYTES + 3 * WORKER_BYTES - 1) == 2
    assert fitting(4, 100, 0) == 1
    assert fitting(4, 3, HOST_BYTES + 10 * WORKER_BYTES) == 3


def test_fewer_workers_for_want_of_memory_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = Recorder()
    monkeypatch.setattr(module, "free_memory", lambda: HOST_BYTES + WORKER_BYTES)
    monkeypatch.setattr(module, "Workers", _Unstarted)
    with some_workers(APP, {}, CLIENTS, 4, watcher) as workers:
        assert isinstance(workers, _Unstarted)
        assert workers.count == 1
    (told,) = watcher.of("warning")
    assert "1 worker process(es) instead of 4" in str(told["text"])
    with some_workers(APP, {}, 1, 4, watcher):
        assert len(watcher.of("warning")) == 1  # one client needs no more than one
    with some_workers(APP, {}, CLIENTS, 0, silent) as nobody:
        assert nobody is None


class _Unstarted:
    """In the place of ``Workers``, to see how many there would be."""

    def __init__(self, _app: str, _config: object, _clients: int, count: int, _told: object) -> None:
        self.count = count

    def __enter__(self) -> "_Unstarted":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("folder", "limit", "usage", "cache"),
    [
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
    ids=["version 2", "version 1"],
)
def test_the_limit_of_a_control_group_is_seen_and_files_in_its_cache_are_not_counted(
    folder: str, limit: str, usage: str, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_GROUPS", tmp_path)
    monkeypatch.setattr(module, "_OWN", tmp_path / "cgroup")
    (tmp_path / "cgroup").write_text(f"9:name=systemd:/\n3:{folder}:/outer/inner\n")
    group = tmp_path / folder / "outer"
    (group / "inner").mkdir(parents=True)
    unlimited = free_memory()
    assert unlimited > 1 << 20
    (group / limit).write_text("1000000\n")
    (group / usage).write_text("900000\n")
    (group / "memory.stat").write_text(f"anon 5\n{cache} 500000\nfile 7\n")
    assert free_memory() == 600_000
    (group / limit).write_text("max\n")
    assert free_memory() > 1 << 20


# ----- what is said between the processes


def test_tasks_and_starts_come_back_as_they_were() -> None:
    task = Task(2**40, 9_999, Place(5, 6), Place(2**33, 7))
    assert Task.unpack(task.pack()) == task
    here, there = socket.socketpair()
    with here, there:
        start = Start("a:b", {"x": 1, "y": "z"}, 3, 2)
        here.sendall(start.pack()[:7])
        here.sendall(start.pack()[7:] + said(Kind.NOTE, 1, b"more"))
        assert Start.receive(there) == start
        here.close()
        assert Start.receive(there) is None


# ----- the whole life


def _live(world: World, out: Path, workers: int, stop: Stop = lambda _k, _f: None) -> Any:
    """The report without times, the records of the rounds, the last state."""
    out.mkdir(exist_ok=True)
    with Journal(out / JOURNAL) as journal:
        report = simulate(world.config, world, out, journal, Recorder(stop), workers=workers)
        rounds = [json.dumps(without_time(r)) for r in journal.rounds()]
        return timeless(report), rounds, journal.state()


@pytest.fixture(scope="module")
def whole(small_world: World, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """In this process."""
    return _live(small_world, tmp_path_factory.mktemp("whole"), 0)


@pytest.mark.parametrize(
    "count", [2, pytest.param(1, marks=pytest.mark.full), pytest.param(4, marks=pytest.mark.full)]
)
def test_any_number_of_workers_gives_the_same_bits(
    count: int, small_world: World, whole: Any, tmp_path: Path, wide: bool
) -> None:
    if count != 2 and not wide:
        pytest.skip("in full only")
    assert _live(small_world, tmp_path / "run", count) == whole


def test_workers_killed_all_the_time_and_a_run_interrupted_change_nothing(
    small_world: World, whole: Any, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill(kind: str, fields: Mapping[str, object]) -> None:
        """One of them whenever something happens; after two rounds, the run itself."""
        hosts = [c for c in _children(os.getpid()) if len(_children(c)) > 1]
        for pid in [p for h in hosts for p in _children(h)][: kind != "warning"]:
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        if kind == "round" and fields.get("round") == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _live(small_world, tmp_path / "run", 2, kill)
    assert len(killed) > 2
    assert _live(small_world, tmp_path / "run", 0) == whole


def test_all_processes_end_with_the_simulation(fleet_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedge", "simulate", "--data", str(fleet_file), "--workers", "2"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "run")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _until(lambda: any(len(_children(c)) == 2 for c in _children(process.pid)), "the workers are there")
        mine = [p for c in _children(process.pid) for p in (c, *_children(c))]
    finally:
        process.kill()
        process.wait()
    _until(lambda: not any(map(_alive, mine)), "all of them ended")


@pytest.mark.parametrize("count", ["-1", "10001"])
def test_an_impossible_number_of_workers_is_refused(
    count: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", f"--workers={count}", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith(f"fedge: error: --workers {count}")
    assert not (tmp_path / "run").exists()
