"""Events reach the file whole, survive a kill, and the terminal shows only what a person wants to see."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedge import observe
from fedge.errors import DataError, SetupError
from fedge.observe import JsonlSink, Observer, Tee, Terminal, read_events, silent


class Clock:
    """Seconds that pass only when a test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeTerminal(io.StringIO):
    """Text that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def _rounds(observer: Observer, rounds: int) -> None:
    with observer.stage("rounds") as stage:
        for k in range(1, rounds + 1):
            observer.event("round", round=k, rounds=rounds, seconds=0.5, uplink=620, score_clients=0.9)
        stage.result = "clients 0.900"


def test_events_come_back_as_they_were_sent(tmp_path: Path) -> None:
    clock = Clock()
    with JsonlSink(tmp_path / "runs" / "metrics.jsonl", clock) as sink:
        sink.event("round", round=1, uplink=12.5, names=["a", "b"])
        clock.now += 2.5
        sink.event("release", version=3, kind="signed")
    assert read_events(tmp_path / "runs" / "metrics.jsonl") == [
        {"t": 0.0, "event": "round", "round": 1, "uplink": 12.5, "names": ["a", "b"]},
        {"t": 2.5, "event": "release", "version": 3, "kind": "signed"},
    ]


def test_numpy_and_odd_values_become_plain_json_and_nan_becomes_null(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    with JsonlSink(path) as sink:
        sink.event(
            "x", a=np.float32(0.5), b=np.int64(3), c=np.array([1.0, np.nan]), d=float("inf"),
            e={"k": float("nan"), 1: (True, None)}, f=Path("p"),
        )  # fmt: skip
    (event,) = read_events(path)
    del event["t"], event["event"]
    assert event == {
        "a": 0.5, "b": 3, "c": [1.0, None], "d": None, "e": {"k": None, "1": [True, None]}, "f": "p",
    }  # fmt: skip
    assert not re.search(r"NaN|Infinity", path.read_text())


def test_a_newline_in_a_field_does_not_break_the_line(tmp_path: Path) -> None:
    with JsonlSink(tmp_path / "m") as sink:
        sink.event("note", text="a\nb\u2028c")
    assert read_events(tmp_path / "m")[0]["text"] == "a\nb\u2028c"


def test_a_field_cannot_take_the_place_of_the_sinks_own(tmp_path: Path) -> None:
    with JsonlSink(tmp_path / "m") as sink, pytest.raises(ValueError, match="'event'"):
        sink.event("note", event="x")


def test_wherever_the_file_is_torn_the_whole_lines_before_it_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    with JsonlSink(path) as sink:
        for k in range(4):
            sink.event("round", round=k)
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        assert [event["round"] for event in read_events(path)] == list(range(whole[:cut].count(b"\n")))


def test_a_torn_line_is_cut_off_when_the_file_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    for torn in (b"", b'{"t":1,"eve', b"\xff"):
        path.write_bytes(b'{"t":0,"event":"a"}\n' + torn)
        with JsonlSink(path) as sink:
            sink.event("b")
        assert [event["event"] for event in read_events(path)] == ["a", "b"]


def test_a_killed_process_leaves_every_event_that_it_reported(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    code = f"""
import os, signal
from pathlib import Path
from fedge.observe import JsonlSink
sink = JsonlSink(Path({str(path)!r}))
for k in range(50):
    sink.event("round", round=k)
os.write(sink._fd, b'{{"t":1,"event":"rou')
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [event["round"] for event in read_events(path)] == list(range(50))


@pytest.mark.parametrize("line", [b"{", b"[1]", b'{"t":1}', b"\xff\xfe", b"[" * 50_000])
def test_damage_before_the_last_line_is_named_by_its_line(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "m").write_bytes(b'{"t":0,"event":"a"}\n' + line + b'\n{"t":1,"event":"b"}\n')
    with pytest.raises(DataError, match="line 2"):
        read_events(tmp_path / "m")


def test_an_endless_line_is_refused_and_not_read_into_memory(tmp_path: Path) -> None:
    with (tmp_path / "m").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match="longer than"):
        read_events(tmp_path / "m")


def test_no_file_and_no_place_for_one_are_the_users_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_events(tmp_path / "none")
    with pytest.raises(SetupError, match="cannot write"):
        JsonlSink(tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_reported_as_such() -> None:
    with JsonlSink(Path("/dev/full")) as sink, pytest.raises(SetupError, match="No space left"):
        sink.event("round")


def test_a_stage_that_fails_is_recorded_and_the_error_goes_on(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "m")
    with pytest.raises(KeyboardInterrupt), sink.stage("distillation"):
        raise KeyboardInterrupt
    sink.close()
    begun, ended = read_events(tmp_path / "m")
    assert (begun["event"], begun["name"]) == ("stage_start", "distillation")
    assert (ended["event"], ended["failed"]) == ("stage", "KeyboardInterrupt")


def test_tee_times_a_stage_once_for_all(tmp_path: Path) -> None:
    with JsonlSink(tmp_path / "a") as a, JsonlSink(tmp_path / "b") as b:
        _rounds(Tee(a, b, silent), 2)
    first, second = read_events(tmp_path / "a"), read_events(tmp_path / "b")
    assert [event["event"] for event in first] == ["stage_start", "round", "round", "stage"]
    assert first[-1]["seconds"] == second[-1]["seconds"]
    assert first[-1]["result"] == "clients 0.900"


def test_silent_takes_everything() -> None:
    _rounds(silent, 3)
    silent.progress(1, None)


def test_without_a_terminal_there_is_a_line_for_the_first_every_fifth_and_the_last_round() -> None:
    out = io.StringIO()
    _rounds(Terminal(out), 12)
    lines = out.getvalue().splitlines()
    assert [line.split()[1] for line in lines if line.startswith("round ")] == [
        "1/12",
        "5/12",
        "10/12",
        "12/12",
    ]
    assert lines[0] == "round 1/12  clients 0.900  up 620 B  0.50 s"
    assert lines[-1].startswith("rounds: clients 0.900 (")
    assert "\x1b" not in out.getvalue()


def test_a_long_stage_without_a_terminal_says_how_far_it_is_once_in_a_while() -> None:
    out, clock = io.StringIO(), Clock()
    terminal = Terminal(out, patience=10, clock=clock)
    with terminal.stage("distillation"):
        for k in range(1, 31):
            clock.now += 1
            terminal.progress(k, 30, "epoch")
    assert out.getvalue().splitlines()[:-1] == [f"distillation: {k}/30 epoch" for k in (10, 20, 30)]


@pytest.mark.parametrize(
    ("kind", "fields", "shown"),
    [
        ("redistillation", {"round": 10, "accepted": False, "reason": "worse"},
         "re-distillation in round 10 refused: worse"),
        ("redistillation", {"round": 10, "accepted": True}, "re-distillation in round 10 accepted"),
        ("release", {"version": 2, "bytes": 27_904, "taken": 11, "refused": 1},
         "release 2  27.9 kB  taken by 11  refused by 1"),
        ("warning", {"text": "one client left"}, "warning: one client left"),
        ("note", {"text": "a\x1b[2Jb\nc"}, "a?[2Jb?c"),
        ("round", {}, "round 0"),
        ("round", {"round": 5, "rounds": float("nan"), "uplink": "x", "score_clients": None}, "round 5"),
    ],
)  # fmt: skip
def test_what_a_person_wants_to_see_is_one_plain_line(
    kind: str, fields: dict[str, object], shown: str
) -> None:
    out = io.StringIO()
    Terminal(out).event(kind, **fields)
    assert out.getvalue() == shown + "\n"


def test_other_events_are_for_the_file_only() -> None:
    out = io.StringIO()
    Terminal(out).event("residual_norm", value=3.0)
    assert out.getvalue() == ""


def test_a_stream_that_knows_only_ascii_gets_ascii() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    Terminal(stream).event("note", text="caf\u00e9 \U0001f600")
    assert raw.getvalue() == b"caf? ?\n"


def _on_a_terminal(work: Callable[[Terminal], None]) -> str:
    out = FakeTerminal()
    work(Terminal(out))
    return out.getvalue()


def test_on_a_terminal_rounds_move_a_bar_and_stages_leave_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = _on_a_terminal(lambda terminal: _rounds(terminal, 7))
    assert "\x1b[?25l" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor comes back"
    assert re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", shown).splitlines()[-1].startswith("ok  ")
    assert re.search(r"\x1b\[[0-9;]*3\dm", shown)


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    shown = _on_a_terminal(lambda terminal: _rounds(terminal, 7))
    assert not re.search(r"\x1b\[[0-9;]*[349]\dm", shown)


def test_a_hostile_name_is_neither_markup_nor_an_escape_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")

    def work(terminal: Terminal) -> None:
        with terminal.stage("[red]x[/]\x1b]0;t\x07"):
            terminal.progress(1, 2, "[/nonsense]")

    assert "[red]x[/]?]0;t?" in _on_a_terminal(work)


def test_the_bar_goes_away_when_a_stage_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    out = FakeTerminal()
    terminal = Terminal(out)
    with pytest.raises(RuntimeError), terminal.stage("outer"), terminal.stage("inner"):
        raise RuntimeError
    assert out.getvalue().count("FAIL") == 2
    assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")


@pytest.mark.parametrize("missing", ["rich.console", "rich.progress"])
def test_without_rich_a_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    shown = _on_a_terminal(lambda terminal: _rounds(terminal, 2))
    assert "\x1b" not in shown
    assert shown.startswith("round 1/2")


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in _on_a_terminal(lambda terminal: _rounds(terminal, 2))


def test_importing_it_does_not_import_rich() -> None:
    code = "import sys, fedge.observe; print('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_metrics_are_json_that_any_reader_takes(tmp_path: Path) -> None:
    with JsonlSink(tmp_path / "m") as sink:
        _rounds(sink, 3)
    lines = (tmp_path / "m").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == [
        "stage_start",
        "round",
        "round",
        "round",
        "stage",
    ]
    assert max(map(len, lines)) < observe.MAX_LINE
