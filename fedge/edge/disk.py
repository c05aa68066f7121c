"""Where a device's home lies: a folder on its disk, or memory in a simulation.

Everything that a home writes goes through :class:`Disk`, so its tests can cut the power at any operation.
"""

import fcntl
import itertools
import os
import stat
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from fedge.durable import flush_folder, replace_file
from fedge.errors import PayloadError, SetupError

_SCRATCH = ".scratch"
_MAGIC = b"FMD1"
_ENTRY = struct.Struct("<HI")  # lengths of a name and of its content
_MAX_FILES, _MAX_NAME = 64, 64


class Disk(Protocol):
    """A few named byte strings. A name is a plain file name that does not start with a dot."""

    def names(self) -> set[str]:
        """What is there.

        Raises:
            SetupError: it cannot be looked at.
        """

    def read(self, name: str, limit: int) -> bytes | None:
        """What ``name`` holds; None if it is not there.

        Raises:
            PayloadError: it holds more than ``limit`` bytes.
            SetupError: it cannot be read.
        """

    def replace(self, name: str, content: bytes) -> None:
        """Put ``content`` at ``name``, whole or not at all; once this returns it survives a power cut.

        Raises:
            SetupError: it cannot be written (a full disk, say); what was there before is still there.
        """

    def remove(self, name: str) -> None:
        """Remove ``name``, if it is there; once this returns it stays away.

        Raises:
            SetupError: it cannot be removed.
        """

    def stamp(self, name: str) -> object:
        """A cheap value that is another one after ``name`` was replaced or removed."""

    def exclusive(self, what: str, *, wait: bool = True) -> AbstractContextManager[None]:
        """Keep every other holder of ``what`` out, in this process and in others.

        Raises:
            SetupError: the lock cannot be made, or (without ``wait``) somebody else has it.
        """

    def scratch(self) -> AbstractContextManager[Path]:
        """An empty folder for what need not survive; it is gone afterwards.

        Raises:
            SetupError: it cannot be made.
        """


class FolderDisk:
    """A folder, made when it is first written to. What a killed process left behind starts with a dot."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        """The path: it stands in messages."""
        return str(self.path)

    def names(self) -> set[str]:
        """See :class:`Disk`."""
        try:
            return {n for n in os.listdir(self.path) if not n.startswith(".")}
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise SetupError(f"cannot read {self.path}: {error.strerror}") from error

    def read(self, name: str, limit: int) -> bytes | None:
        """See :class:`Disk`. Only a regular file is read."""
        path = self.path / name
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with os.fdopen(handle, "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise SetupError(f"{path} is no file: move it away")
                content = file.read(limit + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SetupError(f"cannot read {path}: {error.strerror}") from error
        if len(content) > limit:
            raise PayloadError(f"{path} holds more than {limit} bytes, the limit for such a file")
        return content

    def replace(self, name: str, content: bytes) -> None:
        """See :class:`Disk`."""
        self._make()
        try:
            replace_file(self.path / name, content)
        except OSError as error:
            raise SetupError(f"cannot write {self.path / name}: {error.strerror}") from error

    def remove(self, name: str) -> None:
        """See :class:`Disk`."""
        try:
            os.unlink(self.path / name)
            flush_folder(self.path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise SetupError(f"cannot remove {self.path / name}: {error.strerror}") from error

    def stamp(self, name: str) -> object:
        """See :class:`Disk`: a replaced file is another one, of another time."""
        try:
            found = os.stat(self.path / name)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    @contextmanager
    def exclusive(self, what: str, *, wait: bool = True) -> Iterator[None]:
        """See :class:`Disk`. A killed process drops its locks."""
        self._make()
        try:
            handle = os.open(
                self.path / f".{what}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
        except OSError as error:
            raise SetupError(f"cannot lock {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            os.close(handle)
            raise SetupError(f"another process is at work in {self.path} ({what}); let it finish") from error
        try:
            yield
        finally:
            os.close(handle)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """See :class:`Disk`. Beside the files; what an earlier one left is cleared away."""
        import shutil  # which a device that only answers windows does without

        self._make()
        folder = self.path / _SCRATCH
        try:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise SetupError(f"cannot make {folder}: {error.strerror}") from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _make(self) -> None:
        if self.path.is_dir():
            return
        try:
            for missing in reversed([p for p in (self.path, *self.path.parents) if not p.exists()]):
                missing.mkdir(mode=0o700, exist_ok=True)
                flush_folder(missing.parent)
            if not self.path.is_dir():
                raise SetupError(f"{self.path} is no folder: give another place, or move it away")
        except OSError as error:
            raise SetupError(f"cannot make {self.path}: {error.strerror}") from error


class MemoryDisk:
    """The same in memory, for a simulation: :meth:`to_bytes` makes it part of a client's state."""

    def __init__(self, files: Mapping[str, bytes] | None = None) -> None:
        self._files = dict(files or {})
        self._count = itertools.count()
        self._stamps = {name: next(self._count) for name in self._files}
        self._locks: dict[str, threading.Lock] = {}

    def __repr__(self) -> str:
        """It stands in messages."""
        return "memory"

    def names(self) -> set[str]:
        """See :class:`Disk`."""
        return set(self._files)

    def read(self, name: str, limit: int) -> bytes | None:
        """See :class:`Disk`."""
        content = self._files.get(name)
        if content is not None and len(content) > limit:
            raise PayloadError(f"{name} holds {len(content)} bytes; the limit for such a file is {limit}")
        return content

    def replace(self, name: str, content: bytes) -> None:
        """See :class:`Disk`."""
        self._files[name] = bytes(content)
        self._stamps[name] = next(self._count)

    def remove(self, name: str) -> None:
        """See :class:`Disk`."""
        self._files.pop(name, None)
        self._stamps.pop(name, None)

    def stamp(self, name: str) -> object:
        """See :class:`Disk`."""
        return self._stamps.get(name)

    @contextmanager
    def exclusive(self, what: str, *, wait: bool = True) -> Iterator[None]:
        """See :class:`Disk`."""
        lock = self._locks.setdefault(what, threading.Lock())
        if not lock.acquire(blocking=wait):
            raise SetupError(f"somebody else is at work in {self!r} ({what}); let it finish")
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """See :class:`Disk`. In the system's folder for temporary files."""
        import tempfile

        try:
            folder = tempfile.TemporaryDirectory(prefix="fedge-")
        except OSError as error:
            raise SetupError(f"cannot make a temporary folder: {error.strerror}") from error
        with folder as name:
            yield Path(name)

    def to_bytes(self) -> bytes:
        """All of it: ``FMD1``, then for each name in sorted order both lengths, the name and the content."""
        parts = [_MAGIC]
        for name in sorted(self._files):
            text, content = name.encode("ascii"), self._files[name]
            parts += [_ENTRY.pack(len(text), len(content)), text, content]
        return b"".join(parts)

    @staticmethod
    def from_bytes(content: bytes, limit: int = 1 << 28) -> "MemoryDisk":
        """What :meth:`to_bytes` gave.

        Raises:
            PayloadError: it is something else, was cut off, or has more than ``limit`` bytes.
        """
        if len(content) > limit or content[: len(_MAGIC)] != _MAGIC:
            raise PayloadError(f"this is no disk kept as bytes, or it has more than {limit} of them")
        files: dict[str, bytes] = {}
        at = len(_MAGIC)
        while at < len(content):
            name, end = _entry_name(content, at)
            if len(files) == _MAX_FILES or name <= max(files, default=""):
                raise PayloadError("a disk kept as bytes has too many names, or not in their order")
            files[name] = content[end[0] : end[1]]
            at = end[1]
        return MemoryDisk(files)


def _entry_name(content: bytes, at: int) -> tuple[str, tuple[int, int]]:
    """The name of the entry at ``at``, and where its content starts and ends."""
    start = at + _ENTRY.size
    if start > len(content):
        raise PayloadError("a disk kept as bytes was cut off")
    name_size, size = _ENTRY.unpack_from(content, at)
    name = content[start : start + name_size]
    start += name_size
    if not 0 < name_size <= _MAX_NAME or start + size > len(content) or not name.isascii():
        raise PayloadError("a disk kept as bytes was cut off, or has a name that is none")
    return name.decode("ascii"), (start, start + size)
