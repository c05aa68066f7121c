"""The journal under what machines do: kills, full disks, a second server, files of others."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedge.errors import SetupError
from fedge.federated.journal import SCHEMA, Journal

_SIZE = 60_000


def content_of(number: int) -> bytes:
    """The state after a round: long enough for several pages, and unlike that of any other round."""
    return number.to_bytes(4, "little") * (_SIZE // 4)


def test_what_was_written_is_there_when_the_file_is_opened_again(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        assert journal.state() is None
        assert journal.rounds() == []
        assert journal.stage("prepared") is None
        assert journal.meta("config") is None
        journal.set_meta("config", {"seed": 1, "names": ["ä"]})
        journal.set_stage("prepared", b"\0\1")
        for number in (1, 2, 3):
            journal.commit_round(number, {"round": number, "loss": 0.1}, content_of(number))
    with Journal(tmp_path / "j") as journal:
        assert journal.meta("config") == {"seed": 1, "names": ["ä"]}
        assert journal.stage("prepared") == b"\0\1"
        assert journal.rounds() == [{"round": n, "loss": 0.1} for n in (1, 2, 3)]
        assert journal.state() == content_of(3)


def test_a_long_state_and_a_long_record_come_back_as_they_were(tmp_path: Path) -> None:
    """Both are written in pieces; the sizes are on both sides of where a piece ends."""
    path = tmp_path / "j"
    sizes = (0, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5 << 19, 7)
    for number, size in enumerate(sizes, 1):
        state = random.Random(number).randbytes(size)
        table = {f"c{i}": i for i in range(254 + number)}
        record = {"round": number, "up": table, "none": {}, "nested": {"a": {"b": [1]}}, "list": ["x"]}
        with Journal(path) as journal:
            journal.commit_round(number, record, state)
        with Journal(path) as journal:
            assert journal.state() == state
            assert journal.rounds()[-1] == record


def test_a_round_is_committed_once(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.commit_round(1, {"round": 1}, b"first")
        with pytest.raises(SetupError, match="cannot write the journal"):
            journal.commit_round(1, {"round": 1}, b"second")
        assert journal.state() == b"first"


def test_a_record_that_json_cannot_hold_writes_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        with pytest.raises(ValueError, match="JSON"):
            journal.commit_round(1, {"loss": float("nan")}, b"state")
        assert journal.state() is None
        journal.commit_round(1, {"loss": 0.5}, b"state")


def test_a_second_server_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as first:
        first.commit_round(1, {"round": 1}, b"one")
        with pytest.raises(SetupError, match="another process is using it"):
            Journal(tmp_path / "j")
        script = "import sys; from pathlib import Path; from fedge.federated.journal import Journal\n"
        script += "Journal(Path(sys.argv[1]))"
        other = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "j")], capture_output=True, text=True, check=False
        )
        assert "another process is using it" in other.stderr
        first.commit_round(2, {"round": 2}, b"two")
    with Journal(tmp_path / "j") as again:
        assert again.state() == b"two"


def test_a_file_that_is_no_journal_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but somebody's notes\n" * 100)
    before = path.read_bytes()
    with pytest.raises(SetupError, match="not a journal"):
        Journal(path)
    assert path.read_bytes() == before


def test_a_database_of_somebody_else_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "photos.db"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE photos (name TEXT)")
    db.commit()
    db.close()
    before = path.read_bytes()
    with pytest.raises(SetupError, match="not a journal"):
        Journal(path)
    assert path.read_bytes() == before


def test_a_journal_of_a_newer_fedge_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path) as journal:
        journal.commit_round(1, {"round": 1}, b"one")
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version={SCHEMA + 1}")
    db.commit()
    db.close()
    before = path.read_bytes()
    with pytest.raises(SetupError, match="newer fedge"):
        Journal(path)
    assert path.read_bytes() == before


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="nowhere"):
        Journal(tmp_path / "nowhere" / "j")


def test_a_missing_round_is_found_out(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:
        journal.commit_round(1, {"round": 1}, b"one")
        journal.commit_round(3, {"round": 3}, b"three")
        with pytest.raises(SetupError, match="rounds are missing"):
            journal.rounds()


def test_a_full_disk_leaves_the_last_state_readable(tmp_path: Path) -> None:
    """The limit on the file's size is what the disk is in earnest: writing beyond it fails."""
    path = tmp_path / "j"
    script = """
import resource, sys
from pathlib import Path
from fedge.errors import SetupError
from fedge.federated.journal import Journal
with Journal(Path(sys.argv[1])) as journal:
    journal.commit_round(1, {"round": 1}, b"small")
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    try:
        journal.commit_round(2, {"round": 2}, bytes(400_000))
    except SetupError as error:
        print(error)
    assert journal.state() == b"small"
    journal.commit_round(2, {"round": 2}, b"fits")
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "cannot write the journal" in done.stdout
    with Journal(path) as journal:
        assert journal.state() == b"fits"
        assert len(journal.rounds()) == 2


_WRITER = """
import sys
from pathlib import Path
from fedge.federated.journal import Journal
with Journal(Path(sys.argv[1])) as journal:
    number = len(journal.rounds())
    print(number, flush=True)
    while True:
        number += 1
        content = number.to_bytes(4, "little") * int(sys.argv[2])
        journal.commit_round(number, {"round": number}, content)
        print(number, flush=True)
"""


def test_a_round_is_there_or_not_at_all_whenever_the_server_is_killed(tmp_path: Path, wide: bool) -> None:
    path, chance = tmp_path / "j", random.Random(5)
    for _ in range(500 if wide else 20):
        told = _write_until_killed(path, chance.uniform(0, 0.06))
        with Journal(path) as journal:
            done, state = journal.rounds(), journal.state()
        assert len(done) >= told  # what was said to be committed is
        assert state == (content_of(len(done)) if done else None)


def _write_until_killed(path: Path, seconds: float) -> int:
    """Start a writer, kill it some time after it began to write; the last round that it said it committed."""
    command = [sys.executable, "-c", _WRITER, str(path), str(_SIZE // 4)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    with writer.stdout:
        first = writer.stdout.readline()
        time.sleep(seconds)
        os.kill(writer.pid, signal.SIGKILL)
        rest = writer.stdout.read()
    assert writer.wait() == -signal.SIGKILL
    lines = (first + rest).split("\n")[:-1]
    return int(lines[-1])
