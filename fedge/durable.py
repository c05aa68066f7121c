"""What has to happen on a disk so that a rename survives a power cut."""

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
