"""Files that survive a power cut: there whole or not at all, once the call has returned."""

import os
from pathlib import Path


def flush_folder(path: Path) -> None:
    """Flush a folder's entries to the disk: what was made, renamed or removed in it stays so.

    Raises:
        OSError: it is no folder, or it cannot be flushed.
    """
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_new(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file that is not there yet and flush it; its folder is up to the caller.

    Raises:
        OSError: it exists, or cannot be written.
    """
    _write(path, content, os.O_EXCL, mode)


def replace_file(path: Path, content: bytes, beside: Path | None = None) -> None:
    """Put ``content`` at ``path``, whole or not at all, and flush it to the disk; mode 0600.

    Args:
        path: the file.
        content: what is to be in it.
        beside: where it is written before it is renamed, in the same folder; ``unfinished(path)`` unless
            several processes may replace the same file at the same time.

    Raises:
        OSError: it cannot be written; what was there before is still there.
    """
    new = unfinished(path) if beside is None else beside
    try:
        _write(new, content, os.O_TRUNC, 0o600)
        os.rename(new, path)
    except BaseException:  # a full disk, most likely: give back what was taken
        new.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def unfinished(path: Path) -> Path:
    """Where ``replace_file`` writes before it renames. The name starts with a dot."""
    return path.with_name(f".{path.name}.unfinished")


def _write(path: Path, content: bytes, how: int, mode: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | how, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
