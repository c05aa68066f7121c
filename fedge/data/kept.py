"""A device's own store of windows, as ``fedge infer --keep`` writes it and ``fedge client --data`` reads it.

A folder with three files. ``kept.json`` says what the windows are. ``kept.windows`` holds them one after the
other, float32, little-endian. ``kept.index`` has one record of 64 bytes for each place in it: which window is
there, when it was, and its label. All windows have one size and all records have one, so a window is replaced
where it stands. A record is written after its window and carries checksums of both; where they do not fit, a
writer was stopped between the two, and there is no window.

Reading takes no lock: a window that is replaced meanwhile does not fit its record, and is left out.
"""

import json
import math
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from fedge.data.types import Dataset, TargetKind, Windows
from fedge.errors import DataError

META, INDEX, WINDOWS = "kept.json", "kept.index", "kept.windows"
RECORD = np.dtype(
    [("seq", "<u8"), ("group", "<u8"), ("begin", "<f8"), ("end", "<f8"), ("label", "<f8"), ("kept", "<f8"),
     ("clocked", "<u4"), ("zero", "<u4"), ("window", "<u4"), ("crc", "<u4")]
)  # fmt: skip
"""``seq`` counts what was kept, from 1 (0: nothing is here). Windows of one ``group`` stay together in a
split. ``begin`` and ``end`` are times of the first and the last sample, in seconds if ``clocked`` is 1, else
numbers of samples. ``label`` is NaN for none. ``kept`` is when that was, in Unix seconds. ``window`` is the
CRC-32 of the window, ``crc`` that of the record before it."""

MAX_KEPT = 1 << 18
"""Most windows in a store."""
MAX_META_BYTES = 1 << 18
_MAX_VALUES = 1 << 20  # in one window
_MAX_NAMES = 1024


@dataclass(frozen=True, eq=False)
class Records:
    """Records of windows that are there, by ``seq``.

    Attributes:
        fields: ``[n]`` of ``RECORD``.
        place: ``[n]`` int64, which place in the store each is of.
    """

    fields: NDArray[np.void]
    place: NDArray[np.int64]

    def take(self, index: NDArray[Any] | slice) -> "Records":
        """Those at ``index``."""
        return Records(self.fields[index], self.place[index])


@dataclass(frozen=True)
class Meta:
    """What the windows of a store are.

    Attributes:
        shape: of one window, ``(time, channels)`` or ``(height, width, channels)``.
        channels: their names.
        classes: names of the classes; none where the target is a number.
        target: what the labels are.
        days: how long a window is kept.
    """

    shape: tuple[int, ...]
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    target: TargetKind
    days: float

    @property
    def window_bytes(self) -> int:
        """Bytes of one window."""
        return 4 * math.prod(self.shape)

    def to_bytes(self) -> bytes:
        """As ``kept.json`` holds it."""
        return json.dumps({"schema": 1, **asdict(self)}, sort_keys=True).encode()


def is_kept(path: Path) -> bool:
    """Whether a store is at ``path``."""
    return (path / META).is_file()


def read_kept(path: Path, window: int, target: TargetKind) -> Dataset:
    """The labelled windows of a store, in the order in which they came: what a device learns from.

    For an anomaly task a store without any label is taken as normal throughout, as a file is. There may be no
    window at all.

    Args:
        path: the folder.
        window: samples in a window (rows of an image), as the model takes it.
        target: what is learned.

    Raises:
        DataError: it cannot be read, or holds other windows than these.
    """
    meta = read_meta(path)
    if (meta.target, meta.shape[0]) != (target, window):
        found = f"windows of {meta.shape[0]} samples, labelled for the target {meta.target!r}"
        raise DataError(f"{path}: holds {found}; the model has {window} and {target!r}")
    records = read_records(path, meta)
    labelled = ~np.isnan(records.fields["label"])
    if target != "anomaly" or labelled.any():
        records = records.take(labelled)
    records, x = read_windows(path, meta, records)
    label = np.nan_to_num(records.fields["label"], nan=0.0)
    y: NDArray[Any] = label.astype(np.float32 if target == "number" else np.int64)
    trainable = y == 0 if target == "anomaly" else None
    windows = Windows(x, y, records.fields["group"].astype(np.int64), trainable)
    return Dataset("kept", {"kept": windows}, meta.classes, meta.channels)


def recent(path: Path, most: int = 256) -> NDArray[np.float32]:
    """The last windows of a store, labelled or not, ``[n, *shape]``: what a device has seen lately.

    Raises:
        DataError: it cannot be read.
    """
    meta = read_meta(path)
    return read_windows(path, meta, read_records(path, meta).take(slice(-most, None)))[1]


def read_meta(path: Path) -> Meta:
    """What the windows in the folder ``path`` are.

    Raises:
        DataError: it cannot be read, is malformed, or of another version of fedge.
    """
    content = _read(path / META, MAX_META_BYTES)
    try:
        raw = json.loads(content)
        lists = {key: tuple(raw[key]) for key in ("shape", "channels", "classes")}
        meta = Meta(**lists, target=raw["target"], days=raw["days"])
        _check_meta(meta)
        if meta.to_bytes() == content:
            return meta
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise DataError(f"{path / META}: is damaged, or of another version of fedge; keep to a new folder")


def _check_meta(meta: Meta) -> None:
    names = (*meta.channels, *meta.classes)
    sizes = all(type(n) is int and n > 0 for n in meta.shape) and len(meta.shape) in (2, 3)
    if not sizes or math.prod(meta.shape) > _MAX_VALUES or len(meta.channels) != meta.shape[-1]:
        raise ValueError("shape")
    if not all(isinstance(n, str) for n in names) or len(names) > 2 * _MAX_NAMES:
        raise ValueError("names")
    if (
        meta.target not in get_args(TargetKind)
        or type(meta.days) is not float
        or not 0 < meta.days < math.inf
    ):
        raise ValueError("target or days")


def read_records(path: Path, meta: Meta) -> Records:
    """The records in the folder ``path`` of the windows that are not too old.

    Raises:
        DataError: they cannot be read.
    """
    records = parse_records(_read(path / INDEX, MAX_KEPT * RECORD.itemsize))
    return records.take(records.fields["kept"] >= time.time() - meta.days * 86_400)


def parse_records(content: bytes) -> Records:
    """The records of an index that are in use and whole; each ``seq`` once."""
    size = RECORD.itemsize
    fields = np.frombuffer(content, RECORD, len(content) // size)
    used = np.flatnonzero(fields["seq"]).tolist()
    place = np.array(
        [i for i in used if crc_of(content[i * size : (i + 1) * size]) == fields["crc"][i]], np.int64
    )
    first = np.unique(fields["seq"][place], return_index=True)[1]
    return Records(fields[place[first]], place[first])


def crc_of(record: bytes) -> int:
    """The checksum that stands at the end of a record."""
    return zlib.crc32(record[:-4])


def read_windows(path: Path, meta: Meta, records: Records) -> tuple[Records, NDArray[np.float32]]:
    """The windows ``[n, *shape]`` of those ``records`` that have theirs, and these records.

    Raises:
        DataError: the file cannot be read.
    """
    x = np.empty((len(records.place), *meta.shape), np.float32)
    held: list[int] = []
    try:
        with (path / WINDOWS).open("rb") as file:
            for index, (place, crc) in enumerate(zip(records.place, records.fields["window"], strict=True)):
                file.seek(int(place) * meta.window_bytes)
                content = file.read(meta.window_bytes)
                if len(content) == meta.window_bytes and zlib.crc32(content) == crc:
                    x[len(held)] = np.frombuffer(content, "<f4").reshape(meta.shape)
                    held.append(index)
    except OSError as error:
        raise DataError(f"{path / WINDOWS}: cannot be read ({error.strerror})") from None
    return records.take(np.array(held, np.int64)), x[: len(held)]


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if len(content) > limit:
        raise DataError(f"{path}: has more than {limit} bytes, the limit for such a file")
    return content
