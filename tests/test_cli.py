"""What a user sees who has made a mistake: one line, exit code 2, and nothing written."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedge import __version__
from fedge.cli import main

ROOT = Path(__file__).parent.parent
Files = set[tuple[str, bytes | None]]


def _arrays(**changes: Any) -> dict[str, Any]:
    """A small good data set with some arrays changed: 5 clients with 12 windows each."""
    x = np.random.default_rng(0).normal(size=(60, 16, 2)).astype(np.float32)
    good: dict[str, Any] = {"X": x, "y": np.tile([0, 1], 30), "client": np.repeat(list("abcde"), 12)}
    return good | changes


def _not_a_number() -> Any:
    x = _arrays()["X"]
    x[3, 2, 1] = np.nan
    return x


DATA: dict[str, dict[str, Any]] = {
    "good": {},
    "one class": {"y": np.zeros(60, np.int64)},
    "two clients": {"client": np.repeat(["a", "b"], 30)},
    "nan": {"X": _not_a_number()},
    "objects": {"X": np.array([None] * 60, dtype=object)},
    "pickled labels": {"y": np.array([{}] * 60, dtype=object)},
    "constant": {"X": np.zeros((60, 8, 8, 3), np.uint8)},
    "image": {"X": np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)},
    "short": {"X": _arrays()["X"][:, :3]},
    "server has one class": {"y": np.concatenate([np.zeros(12, int), np.tile([0, 1], 24)])},
    "lengths differ": {"y": np.zeros(59, np.int64)},
    "negative class": {"y": np.tile([-1, 1], 30)},
    "slip": {"clients": np.zeros(60)},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of files, good and bad, in which the command runs."""
    for name, changes in DATA.items():
        np.savez(tmp_path / f"{name}.npz", **_arrays(**changes))
    (tmp_path / "junk.npz").write_bytes(b"PK\3\4junk")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:-40])
    (tmp_path / "file").write_text("a file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("kept")
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "report.json").write_text("{")
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "report.json").write_text('{"schema": 99}')
    (tmp_path / "bad.toml").write_text("a = = 3")
    (tmp_path / "slip.toml").write_text("[local]\nepoch = 3\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _files(folder: Path) -> Files:
    return {(str(p.relative_to(folder)), p.read_bytes() if p.is_file() else None) for p in folder.rglob("*")}


Refused = Callable[[list[str]], str]


@pytest.fixture
def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that must fail, and give the one line that it says."""

    def run(arguments: list[str]) -> str:
        before = _files(folder)
        code = main(arguments)
        out, err = capsys.readouterr()
        assert code == 2
        assert err.startswith("fedge: error: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert out == ""
        assert _files(folder) == before
        return err

    return run


def _cases(*cases: tuple[list[str], str]) -> pytest.MarkDecorator:
    ids = [" ".join(a)[:60] or "nothing" for a, _ in cases]
    return pytest.mark.parametrize(("arguments", "said"), cases, ids=ids)


@_cases(
    ([], "required: COMMAND"),
    (["simulat"], "invalid choice: 'simulat'"),
    (["simulate", "--bogus"], "unrecognized arguments: --bogus"),
    (["simulate", "watch", "more"], "unrecognized arguments: more"),
    (["simulate", "--set"], "expected one argument"),
    (["simulate", "--seed", "x"], "invalid int value: 'x'"),
    (["simulate", "--rounds", "1.5"], "invalid int value: '1.5'"),
    (["simulate", "--clients", "many"], "invalid int value: 'many'"),
    (["report"], "required: DIR"),
    (["data"], "required: COMMAND"),
    (["data", "join"], "invalid choice: 'join'"),
    (["data", "split", "good.npz"], "required: --out"),
)
def test_arguments_that_make_no_sense(refused: Refused, arguments: list[str], said: str) -> None:
    line = refused(arguments)
    assert said in line
    assert "--help)" in line


@_cases(
    (["wacth"], "unknown scenario 'wacth'; did you mean 'watch'?"),
    (["none.toml"], "unknown scenario 'none.toml'; no such file"),
    (["bad.toml"], "bad.toml: Invalid value (at line 1"),
    (["slip.toml"], "unknown key 'local.epoch'; did you mean 'local.epochs'?"),
    (["--task", "activty"], "unknown task 'activty'; did you mean 'activity'?"),
    (["--set", "local.epoch=3"], "unknown key 'local.epoch'; did you mean 'local.epochs'?"),
    (["--set", "local.epochs=x"], "local.epochs: expected a whole number"),
    (["--set", "local.epochs=0"], "local.epochs: 0 is not within 1 .. 1000"),
    (["--set", "foo"], "write --set section.key=value"),
    (["--set", "seed=" + "9" * 5000], "seed: expected a whole number"),
    (["--set", "local.learning_rate=" + "9" * 400], "local.learning_rate: expected a number"),
    (["--set", "local.final_learning_rate=0.5"], "the rate only falls"),
    (["--set", "data.judge_share=0"], "judged on that share"),
    (["--seed", "-1"], "seed: -1 is not within"),
    (["--rounds", "0"], "rounds.rounds: 0 is not within"),
    (["--clients", "0"], "at least one client must take part"),
    (["--clients", "-3"], "at least one client must take part"),
    (["a\nb"], "unknown scenario"),
    (["--set", "a\nb"], "--set a b: write --set section.key=value"),
)
def test_settings_that_are_wrong(refused: Refused, arguments: list[str], said: str) -> None:
    assert said in refused(["simulate", *arguments])


@_cases(
    (["none.npz"], "none.npz: cannot be read (No such file or directory)"),
    (["junk.npz"], "junk.npz: is not an .npz file, or is cut short"),
    (["cut.npz"], "cut.npz: "),
    (["one class.npz"], "every window has the class '0'; two or more are needed"),
    (["two clients.npz"], "has 2 client(s) ('a', 'b'); 3 or more are needed"),
    (["nan.npz"], "the first in window 3, time 2, channel 1"),
    (["objects.npz"], "'X' holds Python objects, which are never loaded"),
    (["pickled labels.npz"], "'y' holds Python objects, which are never loaded"),
    (["constant.npz"], "'X' never changes"),
    (["lengths differ.npz"], "'y' has the shape (59,)"),
    (["negative class.npz"], "'y'"),
    (["slip.npz"], "did you mean 'client'?"),
    (["empty"], "empty: holds 0 client file(s)"),
    (["full"], "is neither .csv nor .parquet"),
)
@pytest.mark.parametrize("command", ["simulate", "data split"])
def test_data_that_cannot_be_used(refused: Refused, command: str, arguments: list[str], said: str) -> None:
    start = ["simulate", "--data"] if command == "simulate" else ["data", "split", "--out", "new"]
    assert said in refused([*start, *arguments])


@_cases(
    (["server has one class.npz"], "12 windows of 1 class(es) to learn from"),
    (["image.npz"], "task 'activity' is for windows [time, channels]; these are [8, 8, 3]"),
    (["good.npz", "--task", "camera"], "task 'camera' is for images"),
    (["good.npz", "--set", "data.split=missing"], "too few left"),
    (["good.npz", "--set", "data.most=3"], "this task has classes"),
    (["good.npz", "--set", "redistill.judge=server"], "holds back all of the server's clients"),
    (["good.npz", "--set", "local.rotate=['a', 'b', 'c']"], "no channel 'a' to rotate"),
    (["short.npz"], "windows of 3 samples are too short"),
    (["good.npz", "--clients", "99"], "99 clients asked for, but 3 can take part"),
    (["good.npz", "--set", "data.unseen_clients=zz"], "data.unseen_clients names 'zz', which no client is"),
    (["good.npz", "--set", "data.unseen_clients=a", "--set", "data.server_clients=a"], "choose one"),
    (["good.npz", "--set", "data.unseen_clients=*"], "leaves too few"),
    (["good.npz", "--set", "uplink.codec=ternry"], "unknown codec 'ternry'; did you mean 'ternary'?"),
    (["good.npz", "--set", "uplink.shar=1"], "has no setting 'shar'; did you mean 'share'?"),
    (["good.npz", "--set", "uplink.share=7"], "share"),
    (["good.npz", "--set", "uplink.share=nan"], "share"),
    (["good.npz", "--set", "uplink.share=2020-01-01"], "ternary"),
    (["good.npz", "--set", "student.loss=soft"], "did you mean 'soft_targets'?"),
)
def test_settings_that_do_not_fit_the_data(refused: Refused, arguments: list[str], said: str) -> None:
    assert said in refused(["simulate", "--data", *arguments])


@_cases(
    (["--out", "full"], "--out full is not empty; name another folder"),
    (["--out", "file"], "--out file is a file; name a folder"),
    (["--out", "file/new"], "Not a directory"),
    (["--resume"], "no interrupted run"),
    (["--resume", "--out", "empty"], "there is no run to resume in empty"),
    (["--resume", "--out", "nowhere"], "there is no run to resume in nowhere"),
    (["--resume", "--out", "file"], "there is no run to resume in file"),
)
def test_folders_that_are_in_the_way_or_not_there(refused: Refused, arguments: list[str], said: str) -> None:
    assert said in refused(["simulate", "--data", "good.npz", *arguments])


def test_a_name_that_is_too_long_for_a_file_is_no_crash(refused: Refused) -> None:
    long = "a" * 5000
    for arguments in (["simulate", f"{long}.toml"], ["simulate", "--data", long], ["report", long],
                      ["simulate", "--data", "good.npz", "--out", long]):  # fmt: skip
        refused(arguments)


@_cases(
    (["full"], "--out"),
    (["file"], "Not a directory"),
)
def test_a_split_never_overwrites(refused: Refused, arguments: list[str], said: str) -> None:
    line = refused(["data", "split", "good.npz", "--out", *arguments])
    assert said in line or "is not empty" in line


@_cases(
    (["nowhere"], "nowhere/report.json: no such file"),
    (["empty"], "empty/report.json: no such file"),
    (["file"], "Not a directory"),
    (["odd"], "is damaged"),
    (["newer"], "upgrade fedge"),
)
def test_a_report_needs_a_finished_run(refused: Refused, arguments: list[str], said: str) -> None:
    assert said in refused(["report", *arguments])


def test_a_split_says_what_it_wrote(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "split", "good.npz", "--out", "new"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines() == [f"{c}: 12 windows in new/client_{c}.npz" for c in "abcde"]
    assert sorted(p.name for p in (folder / "new").iterdir()) == [f"client_{c}.npz" for c in "abcde"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"fedge {__version__}\n"


def test_flower_does_not_phone_home_unless_the_user_said_so(
    monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    monkeypatch.delenv("FLWR_DISABLE_UPDATE_CHECK", raising=False)
    refused(["report", "nowhere"])
    assert (os.environ["FLWR_TELEMETRY_ENABLED"], os.environ["FLWR_DISABLE_UPDATE_CHECK"]) == ("1", "1")


def test_a_missing_package_is_named_with_what_to_install(folder: Path) -> None:
    script = (
        "import sys; sys.modules['torch'] = None; from fedge.cli import main; "
        "sys.exit(main(['simulate', '--data', 'good.npz']))"
    )
    before = _files(folder)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "fedge: error: this command needs torch, which is not installed: pip install 'fedge[simulation]'\n"
    )
    assert _files(folder) == before


@pytest.mark.usefixtures("folder")
def test_a_reader_that_goes_away_is_no_traceback() -> None:
    """As with ``fedge data split ... | head -0``."""
    arguments = ["data", "split", "good.npz", "--out", "new"]
    script = f"import sys; from fedge.cli import main; sys.exit(main({arguments}))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert done.returncode == 1
    assert done.stderr == b""
