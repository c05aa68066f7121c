"""The server's processes: watched, started again, heard, and none left behind."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deploy.live_server import CLIENTS, committed
from fedge.deploy import tied
from fedge.deploy.children import MAX_LINE, Child, Lines, Log, Restarts, voice
from fedge.deploy.deployment import Deployment, heard, say, started, write_app
from fedge.deploy.supervisor import Plan, notify, supervise
from fedge.errors import FedgeError, SetupError

_ROOT = Path(__file__).parents[2]


def _until(true: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def _python(code: str) -> list[str]:
    return [sys.executable, "-u", "-c", code]


def test_what_dies_young_again_and_again_is_given_up_with_the_reason() -> None:
    budget = Restarts("x", in_a_row=3, young=3.0)
    pauses = [budget.died(float(i), 0.0, "why") for i in range(2)]
    assert pauses[0] < pauses[1]
    assert budget.died(2.0, 100.0, "why") < pauses[0]  # it had lived: from the beginning
    budget.died(3.0, 0.0, "why")
    budget.died(4.0, 0.0, "why")
    with pytest.raises(FedgeError, match="x died 3 times, the last time because: no port"):
        budget.died(5.0, 0.0, "no port")


def test_what_dies_for_ever_is_given_up_too() -> None:
    budget = Restarts("x", an_hour=5)
    for i in range(100):
        budget.died(i * 1000.0, 500.0, "why")  # four in any hour
    with pytest.raises(FedgeError, match="x died 5 times"):
        budget.died(99_001.0, 500.0, "why")


def test_lines_are_cut_where_they_end_whatever_pieces_they_come_in() -> None:
    for size in (1, 3, 7, 1000):
        told: list[str] = []
        lines, data = Lines(told.append), b"one\n\ntwo \xff\nthree"
        for start in range(0, len(data), size):
            lines.add(data[start : start + size])
        lines.add(b"\n")
        assert told == ["one", "", "two \ufffd", "three"]


def test_a_line_without_an_end_takes_no_memory() -> None:
    told: list[str] = []
    lines = Lines(told.append)
    for _ in range(1000):
        lines.add(b"x" * 1000)
        assert len(lines._rest) <= MAX_LINE
    lines.add(b"\nnext\n")
    assert told == ["x" * MAX_LINE, "next"]


def test_a_child_cannot_move_the_operator_s_cursor() -> None:
    human, machine = io.StringIO(), io.StringIO()
    text = "\x1b[92mINFO\x1b[0m a\x07b\r\x1b[2Jc"
    Log("human", human, lambda: 0.0).say("run", text)
    Log("json", machine, lambda: 1.5).say("run", text)
    assert human.getvalue().endswith(" run       INFO abc\n")
    assert json.loads(machine.getvalue()) == {"time": 1.5, "process": "run", "text": "INFO abc"}


def _child(code: str, stream: io.StringIO, expected: tuple[str, ...] = ()) -> Child:
    return Child("x", _python(code), dict(os.environ), Log("json", stream), expected)


def test_a_child_is_heard_and_its_last_words_are_the_reason() -> None:
    stream = io.StringIO()

    async def play() -> str:
        child = _child(
            "import sys; print('usual'); print('no disk', file=sys.stderr); sys.exit(3)", stream, ("usual",)
        )
        await child.start()
        return await child.ended()

    assert asyncio.run(play()) == "exit code 3 | no disk"
    assert [json.loads(line)["text"] for line in stream.getvalue().splitlines()] == ["no disk"]


def test_a_child_that_does_not_listen_is_killed_with_all_that_it_started() -> None:
    stream = io.StringIO()
    code = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.fork()
os.write(1, b"%d\\n" % os.getpid())  # in one piece: two processes write
time.sleep(100)
"""

    async def play() -> None:
        child = _child(code, stream)
        await child.start()
        while stream.getvalue().count("\n") < 2:
            await asyncio.sleep(0.02)
        await child.stop(grace=0.2)

    asyncio.run(asyncio.wait_for(play(), 20))
    pids = [int(json.loads(line)["text"]) for line in stream.getvalue().splitlines()]
    _until(lambda: not any(_alive(pid) for pid in pids), 5)


def test_a_child_dies_with_its_parent_however_that_dies() -> None:
    tie = [sys.executable, "-I", "-S", tied.__file__]
    code = f"""
import os, subprocess, time
sleep = [str(os.getpid()), {sys.executable!r}, "-c", "import time; time.sleep(100)"]
child = subprocess.Popen({tie!r} + sleep)
print(child.pid, flush=True)
time.sleep(100)
"""
    with subprocess.Popen(_python(code), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        _until(
            lambda: (
                "sleep" in Path(f"/proc/{pid}/cmdline").read_text()
                and "tied" not in Path(f"/proc/{pid}/cmdline").read_text()
            )
        )
        parent.kill()
    _until(lambda: not _alive(pid), 5)


def test_a_child_whose_parent_is_gone_already_does_not_begin() -> None:
    line = [sys.executable, "-I", "-S", tied.__file__, "1", sys.executable, "-c", "print('began')"]
    done = subprocess.run(line, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")


def test_a_process_that_is_no_child_is_heard_through_the_pipe(tmp_path: Path) -> None:
    told: list[str] = []

    async def play() -> None:
        with voice(tmp_path / "out", told.append):
            for text in ("one", "two"):  # each writer opens it anew, as each run does
                writer = await asyncio.create_subprocess_shell(f"echo {text} > {tmp_path / 'out'}")
                await writer.wait()
            while len(told) < 2:
                await asyncio.sleep(0.01)

    asyncio.run(play())
    assert told == ["one", "two"]


def test_systemd_is_told_what_it_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify("READY=1")
        assert end.recv(100) == b"READY=1"
    notify("READY=1")  # nobody listens: no harm


def test_a_process_id_alone_names_no_process() -> None:
    assert started(os.getpid()) == started(os.getpid())
    assert started(os.getpid()) != started(1)
    assert started(2**22 + 1) is None


def test_what_is_said_is_heard_and_nonsense_is_nothing(tmp_path: Path) -> None:
    say(tmp_path / "f", {"run": 1})
    assert heard(tmp_path / "f") == {"run": 1}
    for content in (b"", b"[1]", b"{", b"\xff"):
        (tmp_path / "f").write_bytes(content)
        assert heard(tmp_path / "f") == {}
    deployment = Deployment(tmp_path, tmp_path / "s", "a:b", {"rounds": 2})
    deployment.save(tmp_path / "d")
    assert Deployment.load(tmp_path / "d") == deployment
    (tmp_path / "d").write_text("{}")
    with pytest.raises(SetupError):
        Deployment.load(tmp_path / "d")


def test_the_flower_app_is_one_that_flower_takes(tmp_path: Path) -> None:
    from flwr.cli.build import build_fab_from_disk

    fab = build_fab_from_disk(write_app(tmp_path))
    assert b"fedge_server_app.py" in fab
    assert fab == build_fab_from_disk(write_app(tmp_path))  # or each start would leave a copy behind


def _plan(state: Path) -> Plan:
    async def never() -> None:
        await asyncio.Event().wait()

    return Plan(Deployment(state, state, "a:b"), lambda _: ["true"], never)


def test_two_servers_never_share_a_state_directory(tmp_path: Path) -> None:
    import fcntl

    handle = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(SetupError, match="another server"):
        asyncio.run(supervise(_plan(tmp_path)))
    os.close(handle)


def test_a_state_directory_that_is_none_is_the_environment_s_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SetupError, match="state directory"):
        asyncio.run(supervise(_plan(tmp_path / "file")))


def _tree(pid: int) -> dict[int, str]:
    """Everything that runs under a process."""
    found: dict[int, str] = {}
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for child in map(int, children):
            found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            found |= _tree(child)
    except OSError:
        pass
    return found


@contextmanager
def _live(state: Path, rounds: int) -> Iterator[subprocess.Popen[bytes]]:
    env = {**os.environ, "PYTHONPATH": f"{_ROOT}:{_ROOT / 'tests'}"}
    line = [sys.executable, "-m", "deploy.live_server", "server", str(state), str(rounds)]
    with (
        (state.parent / "log").open("ab") as log,
        subprocess.Popen(line, env=env, stdout=log, stderr=log) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def _kill(server: int, word: str) -> None:
    _until(lambda: any(word in line for line in _tree(server).values()))
    os.kill(next(pid for pid, line in _tree(server).items() if word in line), signal.SIGKILL)


@pytest.mark.full
def test_whatever_is_killed_the_rounds_go_on_each_exactly_once(tmp_path: Path, wide: bool) -> None:
    """With Flower's own processes: a run, the gateway, and in full SuperExec and SuperLink, too."""
    state = tmp_path / "state"
    victims = ["deploy.live_server gateway", "flwr-serverapp"]
    victims += ["flower-superexec", "flower-superlink"] * 2 if wide else []
    with _live(state, 10**6) as server:
        _until(lambda: len(committed(state)) > 3)
        for word in victims:
            before = len(committed(state))
            _kill(server.pid, word)
            _until(lambda: len(committed(state)) > before + 3)  # noqa: B023
        everyone = _tree(server.pid)
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
        assert not [line for pid, line in everyone.items() if _alive(pid)]
    rounds = committed(state)
    assert rounds == [{c: f"answer to round {i} for {c}" for c in CLIENTS} for i in range(len(rounds))]


def test_a_server_that_is_killed_leaves_no_process_and_goes_on_where_it_was(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with _live(state, 10**6) as server:
        _until(lambda: len(committed(state)) > 3)
        everyone = _tree(server.pid)
        assert len(everyone) >= 4
        server.kill()
        _until(lambda: not any(_alive(pid) for pid in everyone), 5)
    before = len(committed(state))
    with _live(state, before + 3) as server:
        assert server.wait(60) == 0  # all rounds are done
    rounds = committed(state)
    assert rounds == [{c: f"answer to round {i} for {c}" for c in CLIENTS} for i in range(before + 3)]


def test_wrong_input_ends_the_server_with_one_line_and_no_second_try(tmp_path: Path) -> None:
    with _live(tmp_path / "state", -1) as server:
        assert server.wait(60) == 1
    log = (tmp_path / "log").read_text()
    assert "fedge: error: a number of rounds below zero" in log
    assert "Traceback" not in log
