"""Where kept windows lie: a private folder, locked, written in place."""

import fcntl
import os
from pathlib import Path
from typing import Protocol

from fedge.data.kept import INDEX, MAX_KEPT, META, RECORD, WINDOWS, Meta, is_kept, read_meta
from fedge.durable import flush_folder, replace_file
from fedge.errors import DataError, SetupError


class Files(Protocol):
    """Where a store lies."""

    def index(self) -> bytes:
        """All records, one after the other."""

    def window(self, place: int, size: int) -> bytes:
        """The window at ``place``, of ``size`` bytes each; less if the file ends before."""

    def put_window(self, place: int, content: bytes) -> None:
        """Write a window.

        Raises:
            OSError: it cannot be written, or not all of it.
        """

    def put_record(self, place: int, content: bytes) -> None:
        """Write a record; raises as ``put_window`` does."""

    def cut(self, places: int, size: int) -> None:
        """Leave no more than so many ``places``, with windows of ``size`` bytes."""

    def sync(self) -> None:
        """Bring everything to the disk."""

    def close(self) -> None:
        """No more of this."""


class FolderFiles:
    """A folder of mode 0700 with files of mode 0600, for this process alone."""

    def __init__(self, path: Path, meta: Meta) -> None:
        """Make the folder if it is not there, lock it, and bring its ``kept.json`` up to date.

        Raises:
            SetupError: another process writes there, something else is there, or it cannot be made.
            DataError: it holds other windows than ``meta`` says.
        """
        self._handles: list[int] = []
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._handles.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            self._lock(path)
            _check_empty(path)
            os.fchmod(self._handles[0], 0o700)
            _bring_meta(path, meta)
            self._index, self._windows = (self._open(path / name) for name in (INDEX, WINDOWS))
            flush_folder(path)
        except OSError as error:
            self.close()
            raise SetupError(f"{path}: cannot keep windows there: {error.strerror}") from error
        except BaseException:
            self.close()
            raise

    def _lock(self, path: Path) -> None:
        try:
            fcntl.flock(self._handles[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SetupError(
                f"{path}: another process keeps windows there; give each its own folder"
            ) from None

    def _open(self, path: Path) -> int:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._handles.append(handle)
        os.fchmod(handle, 0o600)
        return handle

    def index(self) -> bytes:
        """See :class:`Files`."""
        return os.pread(self._index, MAX_KEPT * RECORD.itemsize, 0)

    def window(self, place: int, size: int) -> bytes:
        """See :class:`Files`."""
        return os.pread(self._windows, size, place * size)

    def put_window(self, place: int, content: bytes) -> None:
        """See :class:`Files`."""
        _write_at(self._windows, place * len(content), content)

    def put_record(self, place: int, content: bytes) -> None:
        """See :class:`Files`."""
        _write_at(self._index, place * len(content), content)

    def cut(self, places: int, size: int) -> None:
        """See :class:`Files`."""
        for handle, each in ((self._index, RECORD.itemsize), (self._windows, size)):
            if os.fstat(handle).st_size > places * each:
                os.ftruncate(handle, places * each)

    def sync(self) -> None:
        """See :class:`Files`."""
        os.fdatasync(self._windows)
        os.fdatasync(self._index)

    def close(self) -> None:
        """See :class:`Files`."""
        while self._handles:
            os.close(self._handles.pop())


def _write_at(handle: int, at: int, content: bytes) -> None:
    done = 0
    while done < len(content):
        done += os.pwrite(handle, content[done:], at + done)


def _check_empty(path: Path) -> None:
    others = [n for n in os.listdir(path) if not n.startswith(".") and n not in (META, INDEX, WINDOWS)]
    if others:
        raise SetupError(f"{path}: holds {others[0]!r}, which is no window; give a folder of its own")


def _bring_meta(path: Path, meta: Meta) -> None:
    if is_kept(path):
        before = read_meta(path)
        for what in ("shape", "channels", "classes", "target"):
            if (was := getattr(before, what)) != (now := getattr(meta, what)):
                hint = "give another folder"
                raise DataError(f"{path}: holds windows whose {what} is {was}, the model's is {now}; {hint}")
    if not is_kept(path) or before != meta:
        replace_file(path / META, meta.to_bytes())
