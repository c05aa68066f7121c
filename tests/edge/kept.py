"""A small store of kept windows, and disks on which a writer is stopped or finds no room."""

import errno
import math
from collections.abc import Callable

import numpy as np

from fedge.data.kept import RECORD, Meta
from fedge.edge.keep_files import FolderFiles
from fedge.edge.stream import Window

META = Meta((4, 2), ("a", "b"), ("x", "y", "z"), "class", 30.0)
DAY, NOW = 86_400.0, 1.7e9


def room_for(windows: int) -> int:
    """Bytes that hold so many windows."""
    return (1 << 15) + 2 * len(META.to_bytes()) + windows * (META.window_bytes + RECORD.itemsize)


SMALL = room_for(16)


def window(n: int, stretch: int = 0, *, clocked: bool = True, shape: tuple[int, ...] = META.shape) -> Window:
    """The window from second ``n`` to ``n + 1``; its content says which one it is."""
    x = np.arange(math.prod(shape), dtype=np.float32).reshape(shape) + 1000 * n
    return Window(x, n, float(n), n + 1.0, clocked, None, (None,), stretch)


class Stopped(BaseException):
    """The process is gone."""


class StoppedFiles:
    """Files whose writer is killed in one write, of which a part arrives; nothing is closed in order."""

    def __init__(self, files: FolderFiles, writes: int, share: float) -> None:
        self._files, self._left, self._share = files, writes, share

    def index(self) -> bytes:
        return self._files.index()

    def window(self, place: int, size: int) -> bytes:
        return self._files.window(place, size)

    def put_window(self, place: int, content: bytes) -> None:
        self._count(lambda part: self._files.put_window(place, part), content, place)

    def put_record(self, place: int, content: bytes) -> None:
        self._count(lambda part: self._files.put_record(place, part), content, place)

    def _count(self, put: Callable[[bytes], None], content: bytes, place: int) -> None:
        if self._left == 0:
            part = content[: int(self._share * len(content))]
            # the rest of this place stays as it was
            old = self.index() if len(content) == RECORD.itemsize else self._files.window(place, len(content))
            old = old[place * len(content) :] if len(content) == RECORD.itemsize else old
            put(part + old[len(part) : len(content)].ljust(len(content) - len(part), b"\0"))
            raise Stopped
        self._left -= 1
        put(content)

    def cut(self, places: int, size: int) -> None:
        if self._left == 0:
            raise Stopped
        self._files.cut(places, size)

    def sync(self) -> None:
        self._files.sync()

    def close(self) -> None:
        self._files.close()


class FullFiles(StoppedFiles):
    """Files on a disk that is full from one write on, until it is not."""

    full = True

    def cut(self, places: int, size: int) -> None:
        self._files.cut(places, size)

    def _count(self, put: Callable[[bytes], None], content: bytes, place: int) -> None:
        del place
        if self._left == 0 and self.full:
            put(content[: len(content) // 2].ljust(len(content), b"\0"))
            raise OSError(errno.ENOSPC, "No space left on device")
        self._left = max(0, self._left - 1)
        put(content)
