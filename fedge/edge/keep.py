"""What a device has seen: a private store of windows that never grows beyond its bound.

The files, and how they survive a writer that is killed, are described in ``fedge.data.kept``. Here is what
is written: a window where there is room, then where an older one stood. Which one goes, :func:`victim` says.
"""

import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedge.data.kept import MAX_KEPT, RECORD, Meta, crc_of, parse_records
from fedge.edge.keep_files import Files, FolderFiles
from fedge.edge.labels import Label, Labels
from fedge.edge.lines import LateLabel
from fedge.edge.stream import Window
from fedge.errors import ConfigError, SetupError

DEFAULT_MEGABYTES, DEFAULT_DAYS = 64.0, 30.0
UNLABELLED_SHARE = 0.25
"""Of the windows, those without a label that never make room for others."""
GROUP_WINDOWS = 64
"""Most windows in one group: a sensor that never pauses would otherwise give a single one."""
_FEWEST = 16  # windows that must fit
_OVERHEAD = 1 << 15  # bytes: ends of blocks, the folder itself
_SYNC_SECONDS, _EXPIRE_SECONDS, _DAY = 30.0, 3600.0, 86_400.0
_SET_CLOCK = 1e9  # a clock before 2001 was never set: by it, nothing is too old
_FREE = bytes(RECORD.itemsize)


def victim(fields: NDArray[np.void], target: str) -> int:
    """Which window of a full store makes room for another.

    Windows with a label outlive those without, but for a quarter of the places, which those without keep:
    their label may be on its way, and the newest of them show what the device sees now. Among labelled ones
    the class with the most windows loses its oldest, so that a rare class is not washed out by a common one.

    Args:
        fields: ``[places]`` of ``RECORD``; a ``seq`` of 0 is a free place.
        target: what the labels are; numbers are all of one class.

    Returns:
        Its place.
    """
    used = fields["seq"] > 0
    bare = used & np.isnan(fields["label"])
    if np.count_nonzero(bare) >= max(1.0, UNLABELLED_SHARE * np.count_nonzero(used)):
        return _oldest(fields, bare)
    labelled = used & ~bare
    if target != "number":
        classes, counts = np.unique(fields["label"][labelled], return_counts=True)
        labelled &= np.isin(fields["label"], classes[counts == counts.max()])
    return _oldest(fields, labelled)


def _oldest(fields: NDArray[np.void], among: NDArray[np.bool_]) -> int:
    places = np.flatnonzero(among)
    return int(places[fields["seq"][places].argmin()])


class Keep:
    """The store, as its only writer sees it."""

    def __init__(
        self, files: Files, meta: Meta, most_bytes: int, now: Callable[[], float] = time.time
    ) -> None:
        """Take over what is there. What a killed process left unfinished, is too old or too much, goes.

        Args:
            files: where it lies.
            meta: what the windows are.
            most_bytes: more than this it never takes up.
            now: Unix time in seconds.

        Raises:
            ConfigError: hardly a window fits.
            SetupError: it cannot be written.
        """
        room = (most_bytes - _OVERHEAD - 2 * len(meta.to_bytes())) // (meta.window_bytes + RECORD.itemsize)
        if room < _FEWEST:
            raise ConfigError(
                f"{most_bytes} bytes hold {max(0, room)} windows; make room for {_FEWEST} or more"
            )
        self._files, self._meta, self._now = files, meta, now
        self._labels = Labels(meta.target, meta.classes)
        try:
            self._take_over(min(room, MAX_KEPT))
            self._expire()
        except OSError as error:
            raise _unwritten(error) from error
        self._synced = self._expired = now()
        self._session = self._group = int(self._fields["group"].max(initial=0)) + 1
        self._seq = int(self._fields["seq"].max(initial=0))
        self._stretch, self._in_group = -1, 0

    def __len__(self) -> int:
        """How many windows are there."""
        return int(np.count_nonzero(self._fields["seq"]))

    @property
    def labelled(self) -> int:
        """How many of them have a label."""
        return int(np.count_nonzero((self._fields["seq"] > 0) & ~np.isnan(self._fields["label"])))

    def add(self, window: Window, label: Label | None) -> None:
        """Keep a window; an older one goes where there is no room.

        Raises:
            SetupError: it cannot be written; at most the window that made room for it is lost.
        """
        if window.stretch != self._stretch or self._in_group >= GROUP_WINDOWS:
            self._stretch, self._in_group, self._group = window.stretch, 0, self._group + 1
        content = np.ascontiguousarray(window.x, "<f4").tobytes()
        record = np.zeros((), RECORD)
        for name, value in (
            ("seq", self._seq + 1),
            ("group", self._group),
            ("begin", window.begin),
            ("end", window.end),
            ("label", np.nan if label is None else label),
            ("kept", self._now()),
            ("clocked", window.clocked),
            ("window", zlib.crc32(content)),
        ):
            record[name] = value
        try:
            place = self._place()
            self._files.put_window(place, content)
            self._put(place, record)
        except OSError as error:
            raise _unwritten(error) from error
        self._seq += 1
        self._in_group += 1

    def new_input(self) -> None:
        """What comes now goes with nothing before it."""
        self._stretch = -1
        self._session = self._group + 1

    def attach(self, late: LateLabel) -> int:
        """Give a label that comes later to the windows it reaches; gives how many those are.

        Where the input has timestamps these may be of an earlier run.

        Raises:
            DataError: it is no label of the model.
            SetupError: it cannot be written.
        """
        label, fields = self._labels.code(late.label), self._fields
        mine = (fields["seq"] > 0) & ((fields["clocked"] == 1) | (fields["group"] >= self._session))
        reached = mine & self._labels.reached(
            label, late.start, late.stop, fields["begin"], fields["end"], fields["label"]
        )
        try:
            for place in np.flatnonzero(reached).tolist():
                record = fields[place].copy()
                record["label"] = label
                self._put(place, record)
        except OSError as error:
            raise _unwritten(error) from error
        return int(np.count_nonzero(reached))

    def normal(self, most: int = 512) -> NDArray[np.float32]:
        """The last windows ``[n, *shape]`` that are labelled normal, for an anomaly task."""
        fields, size = self._fields, self._meta.window_bytes
        places = np.flatnonzero((fields["seq"] > 0) & (fields["label"] == 0))
        places = places[np.argsort(fields["seq"][places])][-most:]
        found = [(self._files.window(int(place), size), fields["window"][place]) for place in places]
        whole = [content for content, crc in found if zlib.crc32(content) == crc]
        return np.frombuffer(b"".join(whole), "<f4").reshape(-1, *self._meta.shape).astype(np.float32)

    def tend(self) -> None:
        """Bring to the disk what is due, and let go of what is too old; to be called now and then.

        Raises:
            SetupError: it cannot be written.
        """
        now = self._now()
        try:
            if not 0 <= now - self._synced < _SYNC_SECONDS:
                self._files.sync()
                self._synced = now
            if not 0 <= now - self._expired < _EXPIRE_SECONDS:
                self._expire()
                self._expired = now
        except OSError as error:
            raise _unwritten(error) from error

    def close(self) -> None:
        """Bring everything to the disk; raises as ``tend`` does."""
        try:
            self._files.sync()
        except OSError as error:
            raise _unwritten(error) from error
        finally:
            self._files.close()

    def _take_over(self, room: int) -> None:
        """Read what is there and bring it into ``room`` places."""
        content = self._files.index()
        records, size = parse_records(content), self._meta.window_bytes
        there = np.frombuffer(content, RECORD, len(content) // RECORD.itemsize)["seq"]
        self._fields = np.zeros(max(room, len(there)), RECORD)
        self._fields[records.place] = records.fields
        for place in np.flatnonzero(there != self._fields["seq"][: len(there)]).tolist():
            self._free(place)  # damaged, or a move that was stopped half-way
        while len(self) > room:
            self._free(victim(self._fields, self._meta.target))
        beyond = room + np.flatnonzero(self._fields["seq"][room:])
        for place in beyond.tolist():
            to = int(np.argmin(self._fields["seq"] > 0))
            self._files.put_window(to, self._files.window(place, size))
            self._put(to, self._fields[place].copy())
        self._fields = self._fields[:room].copy()
        self._files.cut(room, size)

    def _place(self) -> int:
        """A free place, or that of the window which is to go: it has gone once the next one stands there."""
        free = int(np.argmin(self._fields["seq"] > 0))
        return victim(self._fields, self._meta.target) if self._fields["seq"][free] else free

    def _free(self, place: int) -> None:
        """The window at ``place`` is gone, and its bytes are overwritten."""
        self._files.put_record(place, _FREE)
        self._files.put_window(place, bytes(self._meta.window_bytes))
        self._fields[place] = np.zeros((), RECORD)

    def _put(self, place: int, record: NDArray[np.void]) -> None:
        record["crc"] = crc_of(record.tobytes())
        self._files.put_record(place, record.tobytes())
        self._fields[place] = record

    def _expire(self) -> None:
        """Let go of what is too old; its bytes are overwritten."""
        now = self._now()
        if now < _SET_CLOCK:
            return
        used = self._fields["seq"] > 0
        for place in np.flatnonzero(used & (self._fields["kept"] > now + _DAY)).tolist():
            record = self._fields[place].copy()  # kept when the clock was wrong: from now on it ages
            record["kept"] = now
            self._put(place, record)
        for place in np.flatnonzero(used & (self._fields["kept"] < now - self._meta.days * _DAY)).tolist():
            self._free(place)


def open_keep(path: Path, meta: Meta, most_bytes: int, now: Callable[[], float] = time.time) -> Keep:
    """Open the store in the folder ``path``, or begin one there.

    Raises:
        ConfigError, SetupError, DataError: as ``Keep`` and ``FolderFiles`` do.
    """
    files = FolderFiles(path, meta)
    try:
        return Keep(files, meta, most_bytes, now)
    except BaseException:
        files.close()
        raise


def _unwritten(error: OSError) -> SetupError:
    return SetupError(f"the windows cannot be kept: {error.strerror or error}")
