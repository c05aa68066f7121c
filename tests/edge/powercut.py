"""Every file operation below one folder, recorded; and every state that a power cut may leave behind.

``Recorder`` stands in for the module ``os`` in the two modules through which a device's home reaches its
disk. It does what it is asked, and writes it down. ``states`` then gives, for every point in that record,
what the disk may hold when the power goes there:

- what was written to a file but not flushed is there, is lost, is torn in the middle, or is zeros;
- of the entries of the folder (made, renamed, removed) that were not flushed, any may be lost, whatever their
  order.

A flush of a file does not keep its name, a flush of the folder does not keep any content.
"""

import errno
import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

SEAM = ("fedge.durable.os", "fedge.edge.disk.os")
LOSSES = ("kept", "lost", "torn", "zeros")


@dataclass(frozen=True)
class Create:
    name: str
    file: int


@dataclass(frozen=True)
class Write:
    file: int
    content: bytes


@dataclass(frozen=True)
class Fsync:
    file: int


@dataclass(frozen=True)
class Rename:
    old: str
    new: str


@dataclass(frozen=True)
class Unlink:
    name: str


@dataclass(frozen=True)
class FlushFolder:
    pass


Operation = Create | Write | Fsync | Rename | Unlink | FlushFolder


class Recorder:
    """``os`` for whoever writes files in ``folder``; what is only opened to be locked is not written.

    Attributes:
        done: what was done, in order.
        fail_at: the operation at which the disk is full, counted from 0; None for never.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: list[Operation] = []
        self.fail_at: int | None = None
        self._files: dict[int, int] = {}  # an open file's handle -> the number of the file
        self._folders: set[int] = set()
        self._count = itertools.count()

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: str | Path, flags: int, mode: int = 0o777) -> int:
        place = Path(path)
        writes = flags & os.O_WRONLY and place.parent == self.folder
        if writes:
            self._step()
        handle = os.open(path, flags, mode)
        if writes:
            self._files[handle] = next(self._count)
            self.done.append(Create(place.name, self._files[handle]))
        elif flags & os.O_DIRECTORY and place == self.folder:
            self._folders.add(handle)
        return handle

    def fdopen(self, handle: int, mode: str) -> Any:
        file = os.fdopen(handle, mode)
        return _File(self, file, self._files[handle]) if handle in self._files else file

    def close(self, handle: int) -> None:
        self._folders.discard(handle)
        os.close(handle)

    def fsync(self, handle: int) -> None:
        if handle in self._files:
            self._step()
            self.done.append(Fsync(self._files[handle]))
        elif handle in self._folders:
            self._step()
            self.done.append(FlushFolder())

    def rename(self, old: Path, new: Path) -> None:
        self._step()
        os.rename(old, new)
        self.done.append(Rename(old.name, new.name))

    def unlink(self, path: Path) -> None:
        self._step()
        os.unlink(path)
        self.done.append(Unlink(path.name))

    def wrote(self, file: int, content: bytes) -> None:
        self.done.append(Write(file, content))

    def _step(self) -> None:
        """One operation that may fail."""
        if self.fail_at is not None:
            self.fail_at -= 1
            if self.fail_at < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def closed(self, handle: int) -> None:
        self._files.pop(handle, None)


class _File:
    """A file that tells what is written to it. A full disk takes half of it."""

    def __init__(self, recorder: Recorder, file: Any, number: int) -> None:
        self._recorder, self._file, self._number = recorder, file, number

    def write(self, content: bytes) -> int:
        try:
            self._recorder._step()
        except OSError:
            self._file.write(content[: len(content) // 2])
            self._file.flush()
            raise
        self._recorder.wrote(self._number, content)
        return int(self._file.write(content))

    def flush(self) -> None:
        self._file.flush()

    def fileno(self) -> int:
        return int(self._file.fileno())

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        handle = self._file.fileno()
        self._file.close()
        self._recorder.closed(handle)


@contextmanager
def recorded(folder: Path) -> Iterator[Recorder]:
    """Record what happens below ``folder``."""
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(folder)
        for module in SEAM:
            patch.setattr(module, recorder)
        yield recorder


@dataclass
class _Disk:
    """What a disk holds: names, contents, and what of both has been flushed."""

    names: dict[str, int]
    content: dict[int, bytes]
    flushed: dict[int, int]  # bytes of each file
    kept: dict[str, int]  # names as of the last flush of the folder
    pending: list[Create | Rename | Unlink] = field(default_factory=list)

    def apply(self, operation: Operation) -> None:
        match operation:
            case Create(_, file):
                self.content[file], self.flushed[file] = b"", 0
            case Write(file, content):
                self.content[file] += content
            case Fsync(file):
                self.flushed[file] = len(self.content[file])
            case FlushFolder():
                self.kept, self.pending = dict(self.names), []
        if isinstance(operation, Create | Rename | Unlink):
            self.pending.append(operation)
            _enter(self.names, operation, self.names)

    def left(self, survived: tuple[Create | Rename | Unlink, ...], loss: str) -> dict[str, bytes]:
        """What is there after a power cut that only ``survived`` of the pending entries outlive."""
        names, meant = dict(self.kept), dict(self.kept)
        for operation in self.pending:
            before = dict(meant)
            _enter(meant, operation, before)
            if operation in survived:
                _enter(names, operation, before)
        return {name: self._content(file, loss) for name, file in names.items()}

    def _content(self, file: int, loss: str) -> bytes:
        whole, flushed = self.content[file], self.flushed[file]
        rest = whole[flushed:]
        return (
            whole[:flushed]
            + {
                "kept": rest,
                "lost": b"",
                "torn": rest[: len(rest) // 2],
                "zeros": bytes(len(rest)),
            }[loss]
        )


def _enter(names: dict[str, int], operation: Create | Rename | Unlink, meant: Mapping[str, int]) -> None:
    """Change an entry. A rename whose file was made in vain still leads to that file."""
    match operation:
        case Create(name, file):
            names[name] = file
        case Rename(old, new):
            file = meant[old]
            names.pop(old, None)
            names[new] = file
        case Unlink(name):
            names.pop(name, None)


def states(before: Mapping[str, bytes], done: list[Operation]) -> Iterator[tuple[int, dict[str, bytes]]]:
    """Every state that a power cut may leave: after how many operations, and what each file holds.

    Args:
        before: what was there, flushed.
        done: what was done then.
    """
    numbers = {name: -1 - i for i, name in enumerate(before)}
    content = {numbers[name]: what for name, what in before.items()}
    sizes = {file: len(what) for file, what in content.items()}
    disk = _Disk(dict(numbers), content, sizes, dict(numbers))
    for prefix in range(len(done) + 1):
        seen = set()
        for survived in _subsets(tuple(disk.pending)):
            for loss in LOSSES:
                left = disk.left(survived, loss)
                key = tuple(sorted(left.items()))
                if key not in seen:
                    seen.add(key)
                    yield prefix, left
        if prefix < len(done):
            disk.apply(done[prefix])


def _subsets(
    entries: tuple[Create | Rename | Unlink, ...],
) -> Iterator[tuple[Create | Rename | Unlink, ...]]:
    for size in range(len(entries) + 1):
        yield from itertools.combinations(entries, size)


def snapshot(folder: Path) -> dict[str, bytes]:
    """What a folder's files hold, but for locks."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and not p.name.endswith(".lock")}


def restore(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make a new folder of ``files``."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
