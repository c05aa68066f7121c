"""Files of a repository of releases on the disk: each whole or not at all, whatever happens on the way.

They are for everyone to read, so that any web server can hand them out. What a power cut leaves of an
unfinished file or folder starts with a dot, is never listed, and is cleared away by the next writer.
"""

import fcntl
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fedge.durable import flush_folder, write_new
from fedge.errors import ReleaseError, SetupError
from fedge.release.pointer import METADATA, folder_name, version_of

_UNFINISHED = ".unfinished-"
_MODE = 0o644
_NUMBER = r"([1-9]\d{0,17})"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make ``folder`` and its folder of metadata, hold a lock, and clear away what is unfinished.

    A killed process drops the lock.

    Raises:
        SetupError: ``folder`` cannot be made or opened, or something in it cannot be written meanwhile.
    """
    try:
        place = (folder / METADATA).absolute()
        for missing in reversed([f for f in (place, *place.parents) if not f.exists()]):
            missing.mkdir(exist_ok=True)
            flush_folder(missing.parent)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            _clear(folder)
            yield
        finally:
            os.close(handle)
    except OSError as error:
        where = error.filename or folder
        raise SetupError(f"cannot write the repository at {where}: {error.strerror}") from error


def add_release(folder: Path, version: int, files: Mapping[str, bytes], derived: Mapping[str, bytes]) -> Path:
    """Add the folder of a release that is not signed yet; gives it. The lock is held.

    An earlier call may have been stopped before it was signed: then ``files`` must be those that are there.

    Args:
        folder: the repository.
        version: of the release.
        files: what it is (name -> content).
        derived: what was made from that (name -> content); it may be replaced.

    Raises:
        ReleaseError: this release is there already with another content of one of ``files``.
        OSError: it cannot be written; nothing of it is there then.
    """
    place = folder / folder_name(version)
    if place.exists():
        for name, content in files.items():
            put(place / name, content)
        for name, content in derived.items():
            replace(place / name, content)
        flush_folder(folder)
        return place
    unfinished = folder / f"{_UNFINISHED}{place.name}"
    try:
        os.mkdir(unfinished)
        for name, content in {**files, **derived}.items():
            write_new(unfinished / name, content, _MODE)
        flush_folder(unfinished)
        os.rename(unfinished, place)
    except BaseException:  # a full disk, most likely: give back what was taken
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    flush_folder(folder)
    return place


def put(path: Path, content: bytes) -> None:
    """Write a file that never changes. The lock is held.

    Raises:
        ReleaseError: it is there with another content.
        OSError: it cannot be written.
    """
    if path.exists():
        if path.stat().st_size != len(content) or read(path, len(content)) != content:
            raise ReleaseError(f"{path} is there with another content; it is never overwritten")
        flush_folder(path.parent)
    else:
        replace(path, content)


def replace(path: Path, content: bytes) -> None:
    """Put ``content`` at ``path``, in place of what was there. The lock is held.

    Raises:
        OSError: it cannot be written; what was there before is still there.
    """
    beside = path.with_name(f"{_UNFINISHED}{path.name}")
    try:
        write_new(beside, content, _MODE)
        os.rename(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def copy(path: Path, content: bytes) -> None:
    """Have ``content`` at ``path``, where most often it is already. The lock is held.

    Raises:
        OSError: it cannot be written; what was there before is still there.
    """
    if not (path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content):
        replace(path, content)


def read(path: Path, limit: int) -> bytes:
    """A regular file's content, of which no more is read than ``limit`` and one byte.

    Raises:
        ReleaseError: it is missing, no regular file, or longer.
        SetupError: it cannot be read.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ReleaseError(f"{path} is no regular file")
            content = file.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ReleaseError(f"{path} is missing") from error
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > limit:
        raise ReleaseError(f"{path} has more than {limit} bytes")
    return content


def versions(folder: Path) -> list[int]:
    """The releases that lie in ``folder``, ascending, signed or not; none if there is no such folder.

    Raises:
        SetupError: it cannot be read.
    """
    return sorted(v for name in _names(folder) if (v := version_of(name)))


def numbers(folder: Path, role: str) -> list[int]:
    """The versions of the metadata ``N.role.json`` that lie in ``folder/metadata``, ascending.

    Raises:
        SetupError: it cannot be read.
    """
    pattern = re.compile(rf"{_NUMBER}\.{role}\.json")
    matches = (pattern.fullmatch(name) for name in _names(folder / METADATA))
    return sorted(int(match[1]) for match in matches if match)


def remove(place: Path) -> None:
    """Remove a folder of the repository: as others see it, all of it at once. The lock is held.

    Raises:
        OSError: it cannot be removed.
    """
    gone = place.with_name(f"{_UNFINISHED}{place.name}")
    os.rename(place, gone)
    flush_folder(place.parent)
    shutil.rmtree(gone)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SetupError(f"cannot read {folder}: {error.strerror}") from error


def _clear(folder: Path) -> None:
    """Remove what killed writers left."""
    for place in (folder, folder / METADATA, *(folder / folder_name(v) for v in versions(folder))):
        for left_over in place.glob(f"{_UNFINISHED}*"):
            if left_over.is_dir() and not left_over.is_symlink():
                shutil.rmtree(left_over)
            else:
                left_over.unlink()
