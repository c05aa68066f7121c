"""Files that are there whole or not at all, and private ones that only their owner may read."""

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fedge.durable import flush_folder, write_new
from fedge.errors import SetupError

UNFINISHED = ".unfinished-"


def read(path: Path, limit: int, *, private: bool = False) -> bytes:
    """A regular file's content, of which no more is read than ``limit`` and one byte.

    Args:
        path: the file.
        limit: most bytes it may have.
        private: refuse it if others than its owner may read or write it.

    Raises:
        SetupError: it is missing, no regular file, above the limit or, if private, open to others.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise SetupError(f"{path} is no regular file")
            content = file.read(limit + 1)
    except FileNotFoundError:
        raise SetupError(f"{path} is missing") from None
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from None
    if private and status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise SetupError(f"{path} is open to others (mode {mode:04o}); make it yours alone: chmod 600 {path}")
    if len(content) > limit:
        raise SetupError(f"{path} has more than {limit} bytes, the limit for such a file")
    return content


def staging(place: Path) -> Path:
    """Where the folder ``place`` is written before it is renamed."""
    return place.with_name(f"{UNFINISHED}{place.name}")


def fill(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write new ``files`` (path below ``folder`` -> content), mode 0600, folders 0700; all flushed.

    Raises:
        OSError: one of them exists, or cannot be written.
    """
    folders = {folder}
    for name, content in files.items():
        path = folder / name
        for parent in reversed(path.relative_to(folder).parents):
            (folder / parent).mkdir(mode=0o700, exist_ok=True)
            folders.add(folder / parent)
        write_new(path, content)
    for made in sorted(folders, reverse=True):
        flush_folder(made)


def create_folder(place: Path, files: Mapping[str, bytes]) -> None:
    """Make ``place`` (new, or an empty folder until now) with ``files``, whole or not at all.

    What a killed call left beside it is cleared away first.

    Raises:
        SetupError: ``place`` is there and not empty, another process is making it, or it cannot be written.
    """
    unfinished = staging(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        unfinished.mkdir(mode=0o700, exist_ok=True)
        with locked(unfinished):
            _refuse_content(place)
            _clear(unfinished)
            fill(unfinished, files)
            os.rename(unfinished, place)
        flush_folder(place.parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise SetupError(f"{place} is in the way; nothing is overwritten") from None
        shutil.rmtree(unfinished, ignore_errors=True)  # a full disk, most likely: give back what was taken
        raise SetupError(f"cannot make {place}: {error.strerror}") from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process alone; a killed process drops the lock.

    Raises:
        SetupError: another process holds it, or it was moved away meanwhile.
        OSError: it cannot be opened.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(handle), os.stat(folder)):
            raise BlockingIOError
        yield
    except BlockingIOError:
        raise SetupError(f"another fedge is at work in {folder}; try again when it has ended") from None
    finally:
        os.close(handle)


def _refuse_content(place: Path) -> None:
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(place))


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
