"""A client's state on its own disk is there whole, or the reader is told."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.durable import unfinished
from fedge.errors import PayloadError, SetupError
from fedge.federated.client_state import ClientState
from fedge.federated.file_store import FileStore, read_state


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "device" / "state"


def test_what_was_saved_last_is_there_when_it_is_opened_again(path: Path) -> None:
    for number in range(3):
        with FileStore(path) as store:
            assert store.load() == (None if number == 0 else b"state %d" % (number - 1))
            store.save(b"overwritten, and longer than what follows")
            store.save(b"state %d" % number)
            assert store.load() == b"state %d" % number
    with FileStore(path) as store:
        store.save(b"")
        assert store.load() == b""


def test_the_state_is_only_its_owners_to_read(path: Path) -> None:
    with FileStore(path) as store:
        store.save(b"private")
    assert {stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()} == {0o600}


def test_two_stores_on_one_state_are_refused_until_the_first_is_gone(path: Path) -> None:
    with FileStore(path) as store:
        store.save(b"state")
        with pytest.raises(SetupError, match="another process"):
            FileStore(path)
        FileStore(path.with_name("other")).close()
        store.save(b"the first still works")
    with FileStore(path) as store:
        assert store.load() == b"the first still works"


_HOLD = """
import sys
from pathlib import Path
from fedge.federated.file_store import FileStore
store = FileStore(Path(sys.argv[1]))
store.save(b"of a process")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_killed_process_gives_its_state_back(path: Path) -> None:
    command = [sys.executable, "-c", _HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(SetupError, match="another process"):
                FileStore(path)
        finally:
            os.kill(holder.pid, signal.SIGKILL)
    with FileStore(path) as store:
        assert store.load() == b"of a process"


# ----- torn and damaged files


@given(st.binary(max_size=200), st.data())
def test_any_prefix_and_any_changed_bit_is_told_apart_from_no_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged" / "state"
    with FileStore(path) as store:
        store.save(content)
        whole = path.read_bytes()
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        with pytest.raises(PayloadError):
            store.load()
        at, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        with pytest.raises(PayloadError):
            store.load()
        path.write_bytes(whole + b"\0")
        with pytest.raises(PayloadError):
            store.load()
        path.unlink()
        assert store.load() is None


def test_a_torn_file_is_no_missing_state_for_the_client_either(path: Path) -> None:
    with FileStore(path) as store:
        store.save(b"anything")
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(PayloadError):
            ClientState.load(store)


def test_a_file_above_the_limit_is_refused_before_it_is_read(path: Path) -> None:
    with FileStore(path, limit=100) as store:
        store.save(b"x" * 100)
        with pytest.raises(PayloadError, match="at most 100"):
            store.save(b"x" * 101)
        assert store.load() == b"x" * 100
    with FileStore(path, limit=99) as store, pytest.raises(PayloadError, match="at most 99"):
        store.load()
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # sparse: no machine could hold it
    with pytest.raises(PayloadError, match="at most"):
        read_state(path)


# ----- saves that do not complete


def _fail(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_full_disk_leaves_what_was_there_and_nothing_else(
    path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FileStore(path) as store:
        store.save(b"before")
        with monkeypatch.context() as patch:
            patch.setattr(os, call, _fail)
            with pytest.raises(SetupError, match="No space left"):
                store.save(b"after")
        assert store.load() == b"before"
        assert sorted(p.name for p in path.parent.iterdir()) == ["state", "state.lock"]


def test_the_content_is_on_the_disk_before_it_is_renamed_and_the_folder_after(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order that a power cut needs; nothing short of a power cut shows it otherwise."""
    calls: list[str] = []
    sync, rename = os.fsync, os.rename

    def seen_sync(handle: int) -> None:
        folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        calls.append("folder" if folder else f"file of {os.fstat(handle).st_size}")
        sync(handle)

    def seen_rename(source: Path, target: Path) -> None:
        calls.append("rename")
        rename(source, target)

    with FileStore(path) as store:
        monkeypatch.setattr(os, "fsync", seen_sync)
        monkeypatch.setattr(os, "rename", seen_rename)
        store.save(b"content")
    assert calls == [f"file of {path.stat().st_size}", "rename", "folder"]


def test_what_an_unfinished_save_left_is_removed_at_start_and_never_read(path: Path) -> None:
    with FileStore(path) as store:
        store.save(b"whole")
    unfinished(path).write_bytes(path.read_bytes()[:7])
    with FileStore(path) as store:
        assert not unfinished(path).exists()
        assert store.load() == b"whole"


def test_the_holder_of_the_lock_does_not_lose_its_unfinished_save_to_a_newcomer(path: Path) -> None:
    with FileStore(path):
        unfinished(path).write_bytes(b"being written")
        with pytest.raises(SetupError):
            FileStore(path)
        assert unfinished(path).exists()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SetupError, match="file"):
        FileStore(tmp_path / "file" / "state")
    (tmp_path / "folder").mkdir()
    with FileStore(tmp_path / "folder") as store:
        with pytest.raises(SetupError, match="cannot read"):
            store.load()
        with pytest.raises(SetupError, match="cannot write"):
            store.save(b"content")
