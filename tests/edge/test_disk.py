"""A folder and memory are the same disk to whoever uses them; and nothing is read beyond its limit."""

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.edge.disk import Disk, FolderDisk, MemoryDisk
from fedge.errors import PayloadError, SetupError


@pytest.fixture(params=["folder", "memory"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    return FolderDisk(tmp_path / "deep" / "home") if request.param == "folder" else MemoryDisk()


def test_what_is_replaced_is_there_and_what_is_removed_is_not(disk: Disk) -> None:
    assert disk.names() == set()
    assert disk.read("a", 10) is None
    disk.replace("a", b"one")
    disk.replace("a", b"two")
    disk.replace("b", b"")
    assert (disk.read("a", 3), disk.read("b", 0), disk.names()) == (b"two", b"", {"a", "b"})
    disk.remove("a")
    disk.remove("a")
    assert (disk.read("a", 3), disk.names()) == (None, {"b"})


def test_no_more_is_read_than_the_limit(disk: Disk) -> None:
    disk.replace("a", b"12345")
    assert disk.read("a", 5) == b"12345"
    with pytest.raises(PayloadError, match="limit"):
        disk.read("a", 4)


def test_stamp_is_another_one_after_each_change(disk: Disk) -> None:
    stamps = [disk.stamp("a")]
    for _ in range(3):
        disk.replace("a", b"same")
        stamps.append(disk.stamp("a"))
        assert disk.stamp("a") == stamps[-1]
    disk.remove("a")
    assert disk.stamp("a") == stamps[0]
    assert len(set(map(str, stamps))) == 4


def test_exclusive_keeps_others_out_until_it_is_over(disk: Disk) -> None:
    with disk.exclusive("update", wait=False):
        with disk.exclusive("state", wait=False):
            pass
        with pytest.raises(SetupError, match="let it finish"), disk.exclusive("update", wait=False):
            pass
    with disk.exclusive("update", wait=False):
        pass


def test_exclusive_waits(disk: Disk) -> None:
    order = list[str]()
    inside = threading.Event()

    def second() -> None:
        inside.wait()
        with disk.exclusive("state"):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with disk.exclusive("state"):
        inside.set()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_exclusive_is_given_up_on_an_error(disk: Disk) -> None:
    with pytest.raises(ValueError, match="why"), disk.exclusive("state"):
        raise ValueError("why")
    with disk.exclusive("state", wait=False):
        pass


def test_scratch_is_empty_and_gone_afterwards(disk: Disk) -> None:
    for _ in range(2):
        with disk.scratch() as folder:
            assert not list(folder.iterdir())
            (folder / "inner").mkdir()
            (folder / "inner" / "file").write_bytes(b"x")
        assert not folder.exists()
    assert disk.names() == set()


def test_scratch_of_a_killed_process_is_cleared_away(tmp_path: Path) -> None:
    disk = FolderDisk(tmp_path)
    with disk.scratch() as folder:
        (folder / "left").write_bytes(b"x")
        other = FolderDisk(tmp_path)
        with other.scratch() as again:
            assert not list(again.iterdir())


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    disk = FolderDisk(tmp_path / "file")
    for act in (lambda: disk.replace("a", b""), lambda: disk.names(), lambda: disk.read("a", 1)):
        with pytest.raises(SetupError, match="file"):
            act()


def test_only_files_are_read(tmp_path: Path) -> None:
    """A reader does not wait for whoever might write to a pipe."""
    disk = FolderDisk(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(SetupError, match=name):
            disk.read(name, 10)


def test_files_are_their_owners_alone(tmp_path: Path) -> None:
    disk = FolderDisk(tmp_path / "home")
    disk.replace("a", b"x")
    with disk.exclusive("state"):
        pass
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700
    assert all(p.stat().st_mode & 0o777 == 0o600 for p in (tmp_path / "home").iterdir())


@given(st.dictionaries(st.text("abc.json", min_size=1, max_size=8), st.binary(max_size=40), max_size=8))
def test_memory_survives_as_bytes(files: dict[str, bytes]) -> None:
    disk = MemoryDisk.from_bytes(MemoryDisk(files).to_bytes())
    assert {n: disk.read(n, 40) for n in disk.names()} == files


@given(st.binary(max_size=80), st.integers(0, 40))
def test_what_is_no_disk_kept_as_bytes_is_refused(content: bytes, at: int) -> None:
    """What is read is written the very same way again, or it is refused."""
    whole = MemoryDisk({"a": b"12345", "b": b"678"}).to_bytes()
    for made in (content, whole[:4] + content, whole[:at] + content + whole[at:], whole[:at]):
        try:
            disk = MemoryDisk.from_bytes(made)
        except PayloadError:
            continue
        assert disk.to_bytes() == made


@pytest.mark.parametrize("cut", [0, 3, 5, 9, 11, 15])
def test_disk_that_was_cut_off_is_refused(cut: int) -> None:
    whole = MemoryDisk({"a": b"12345"}).to_bytes()
    for wrong in (whole[:cut], whole + b"\0", whole * 2, b"X" + whole[1:]):
        with pytest.raises(PayloadError):
            MemoryDisk.from_bytes(wrong)


def test_disk_above_its_limit_is_refused() -> None:
    whole = MemoryDisk({"a": b"12345"}).to_bytes()
    assert MemoryDisk.from_bytes(whole, len(whole)).read("a", 5) == b"12345"
    with pytest.raises(PayloadError):
        MemoryDisk.from_bytes(whole, len(whole) - 1)
