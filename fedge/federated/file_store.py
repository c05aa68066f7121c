"""A client's state in one file on the device's own disk.

    b"FST1"    u64 length    32 bytes BLAKE2b of the content    the content            (little-endian)

A save replaces the whole file or nothing, whenever the process is killed or the power is cut: the new content
is written beside the file and flushed to the disk, renamed into place, and the folder is flushed.
"""

import fcntl
import hashlib
import os
import struct
from pathlib import Path
from typing import BinaryIO, Self

from fedge.durable import replace_file, unfinished
from fedge.errors import PayloadError, SetupError

MAX_STATE_BYTES = 1 << 30
"""Largest state that is read or written."""

_MAGIC = b"FST1"
_HEAD = struct.Struct("<4sQ32s")


class FileStore:
    """A ``StateStore`` in a file. It is this process's alone until it is closed or the process ends."""

    def __init__(self, path: Path, limit: int = MAX_STATE_BYTES) -> None:
        """Lock ``path``, make its folder if it is missing, and clear what an unfinished save left.

        Args:
            path: the file; its folder also gets ``NAME.lock``.
            limit: most bytes of a state.

        Raises:
            SetupError: the folder cannot be written, or another process has this state open.
        """
        self._path, self._limit = path, limit
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _lock(path.with_name(f"{path.name}.lock"))
        except BlockingIOError:
            raise SetupError(f"another process is using the state in {path}; stop it first") from None
        except OSError as error:
            raise SetupError(f"cannot use {path} for the state: {error.strerror}") from None
        try:
            unfinished(path).unlink(missing_ok=True)
        except OSError as error:
            self.close()
            raise SetupError(f"cannot clear {unfinished(path)}: {error.strerror}") from None

    def load(self) -> bytes | None:
        """What was saved last; ``None`` if there is no file.

        Raises:
            PayloadError: the file is above the limit, torn or damaged.
            SetupError: it cannot be read.
        """
        return read_state(self._path, self._limit)

    def save(self, content: bytes) -> None:
        """Replace it; once this returns, the content survives a power cut.

        Raises:
            PayloadError: ``content`` is above the limit; what was saved before is still there.
            SetupError: it cannot be written, so the disk may be full; likewise.
        """
        if len(content) > self._limit:
            raise PayloadError(f"a state of {len(content)} bytes; at most {self._limit} are stored")
        head = _HEAD.pack(_MAGIC, len(content), _digest(content))
        try:
            replace_file(self._path, head + content)
        except OSError as error:
            raise SetupError(f"cannot write the state to {self._path}: {error.strerror}") from None

    def close(self) -> None:
        """Give up the lock."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        """The store itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()


def read_state(path: Path, limit: int = MAX_STATE_BYTES) -> bytes | None:
    """What a ``FileStore`` saved at ``path``, for whoever only looks: no lock is needed.

    Raises:
        PayloadError: the file is above the limit, torn or damaged.
        SetupError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _content(file, path, limit)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SetupError(f"cannot read the state in {path}: {error.strerror}") from None


def _content(file: BinaryIO, path: Path, limit: int) -> bytes:
    """Check the length before anything is read, the checksum after."""
    size = os.fstat(file.fileno()).st_size - _HEAD.size
    if size > limit:
        raise PayloadError(f"{path} holds a state of {size} bytes; at most {limit} are read")
    head = file.read(_HEAD.size)
    if size < 0 or head[: len(_MAGIC)] != _MAGIC:
        raise PayloadError(f"{path} is torn, or is no state of a client")
    _, length, digest = _HEAD.unpack(head)
    if length != size:
        raise PayloadError(f"{path} is torn: {size} bytes of {length} are there")
    content = file.read(size)
    if _digest(content) != digest:
        raise PayloadError(f"{path} is damaged: its checksum is wrong")
    return content


def _lock(path: Path) -> int:
    """An open file with an exclusive lock, which a killed process drops."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=32).digest()
