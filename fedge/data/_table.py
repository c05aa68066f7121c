"""One recording as a table: CSV or Parquet with ``timestamp``, the channels, and ``label``."""

import csv
import math
from array import array
from collections.abc import Iterable, Iterator, MutableSequence, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fedge.data._labels import MAX_CLASSES
from fedge.data._names import check_name, natural_sorted, nearest, shorten
from fedge.data._zip import MAX_ARRAY_BYTES, check_file
from fedge.data.npz import MAX_CHANNELS
from fedge.data.types import TargetKind
from fedge.errors import DataError, SetupError

MAX_ROWS = 20_000_000
MAX_VALUES = 2**29
_MAX_LINE = 2**20
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class Recording:
    """What one client recorded.

    Attributes:
        timestamp: ``[samples]`` float64, seconds, strictly increasing.
        x: ``[samples, channels]`` float32, in the sensor's own units.
        label: ``[samples]`` int64, index into ``labels``, or float64 where the target is a number; None
            where the file has no column ``label``.
        labels: the different labels in the file, in natural order; empty where the target is a number.
        channels: names of the channels.
    """

    timestamp: NDArray[np.float64]
    x: NDArray[np.float32]
    label: NDArray[Any] | None
    labels: tuple[str, ...]
    channels: tuple[str, ...]


def is_table(path: Path) -> bool:
    """Whether the name of ``path`` ends like a CSV or Parquet file's."""
    return path.suffix.lower() in (".csv", ".parquet")


def read_recording(path: Path | str, target: TargetKind = "class") -> Recording:
    """Read one client's CSV or Parquet file.

    ``timestamp`` is a number of seconds, or a time (in CSV: ISO 8601), and increases from row to row.
    ``label`` may be absent; every other column is a channel. With the target ``"number"``, ``label`` holds
    numbers.

    Raises:
        DataError: anything wrong with the file: which row and column, and what to do.
        SetupError: a Parquet file, and pyarrow is not installed.
    """
    path = Path(path)
    if not is_table(path):
        raise DataError(f"{path}: is neither .csv nor .parquet")
    check_file(path, "a CSV or Parquet file")
    recording = (_read_csv if path.suffix.lower() == ".csv" else _read_parquet)(path, target)
    if not len(recording.timestamp):
        raise DataError(f"{path}: has no rows of data")
    wrong = np.flatnonzero(~(np.diff(recording.timestamp) > 0))
    if len(wrong):
        before, after = recording.timestamp[wrong[0] : wrong[0] + 2]
        raise DataError(
            f"{path}: column 'timestamp' does not increase in data row {wrong[0] + 2} "
            f"({after} after {before}); sort the rows and remove duplicates"
        )
    return recording


def describe_difference(channels: Sequence[str], expected: Sequence[str]) -> str:
    """How one set of channels differs from another, by name."""
    missing = [c for c in expected if c not in channels]
    extra = [c for c in channels if c not in expected]
    parts = [f"has no column {shorten(missing)}"] if missing else []
    return " and ".join([*parts, f"has the column {shorten(extra)}"] if extra else parts)


def _channels(names: Sequence[str], path: Path) -> tuple[str, ...]:
    """The channels among the columns, in their order."""
    if not 2 <= len(names) <= MAX_CHANNELS + 2:
        raise DataError(
            f"{path}: has {len(names)} column(s); give timestamp, 1 to {MAX_CHANNELS} channels, label"
        )
    for name in names:
        check_name(name, f"{path}: the name of a column")
        if names.count(name) > 1:
            raise DataError(f"{path}: has two columns {name!r}; names must differ")
        slip = name.lower().rstrip("s")
        if slip in ("timestamp", "label") and name != slip:
            raise DataError(f"{path}: has a column {name!r}; write it {slip!r}")
    if "timestamp" not in names:
        raise DataError(f"{path}: has no column 'timestamp'; {nearest('timestamp', names)}")
    channels = tuple(n for n in names if n not in ("timestamp", "label"))
    if not channels:
        raise DataError(f"{path}: has no channel; give one column for each beside 'timestamp' and 'label'")
    return channels


class _Labels:
    """Gives each different label a number, as they come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number: dict[str, int] = {}

    def number(self, text: str, where: str) -> int:
        found = self._number.get(text)
        if found is None:
            found = self._number[check_name(text, f"{where}: the label")] = len(self._number)
            if found >= MAX_CLASSES:
                raise DataError(f"{self._path}: has more than {MAX_CLASSES} different labels")
        return found

    def sorted(self, codes: NDArray[np.int64]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        names = natural_sorted(list(self._number))
        rank = np.empty(len(names), np.int64)
        rank[[self._number[name] for name in names]] = np.arange(len(names))
        return rank[codes], tuple(names)


def _read_csv(path: Path, target: TargetKind) -> Recording:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(_lines(file, path), strict=True)
            names = next(rows, [])
            return _parse_csv(rows, names, target, path)
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text") from None
    except csv.Error as error:
        raise DataError(f"{path}: is not CSV ({error})") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _lines(file: IO[str], path: Path) -> Iterator[str]:
    """The lines of a text file, none of them longer than the limit."""
    while line := file.readline(_MAX_LINE + 1):
        if len(line) > _MAX_LINE:
            raise DataError(f"{path}: has a line of more than {_MAX_LINE} characters; is it a CSV file?")
        yield line


def _parse_csv(rows: Iterable[list[str]], names: list[str], target: TargetKind, path: Path) -> Recording:
    channels, numeric = _channels(names, path), target == "number"
    times, values, labels = array("d"), array("f"), _Labels(path)
    codes: MutableSequence[Any] = array("d" if numeric else "q")
    time_at, label_at = names.index("timestamp"), names.index("label") if "label" in names else None
    value_at = [(names.index(c), c) for c in channels]
    for number, row in enumerate(rows, start=2):
        if not row:
            continue
        where = f"{path}: row {number}"
        if len(row) != len(names):
            raise DataError(f"{where} has {len(row)} cells; the header has {len(names)}")
        times.append(_seconds(row[time_at], where))
        values.extend([_number(row[at], where, name) for at, name in value_at])
        if label_at is not None:
            text = row[label_at]
            codes.append(_number(text, where, "label") if numeric else labels.number(text, where))
        if len(times) > MAX_ROWS or len(values) > MAX_VALUES:
            raise DataError(f"{path}: has more than {MAX_ROWS} rows or {MAX_VALUES} values; split the file")
    x = np.array(values, np.float32).reshape(-1, len(channels))
    if label_at is None:
        return Recording(np.array(times), x, None, (), channels)
    label, known = (np.array(codes), ()) if numeric else labels.sorted(np.array(codes, np.int64))
    return Recording(np.array(times), x, label, known, channels)


def _number(text: str, where: str, column: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise DataError(f"{where}: column {column!r} is {text[:40]!r}, which is no number") from None
    if not abs(value) <= _FLOAT32_MAX:
        raise DataError(f"{where}: column {column!r} is {text[:40]!r}: NaN, infinite or beyond float32")
    return value


def _seconds(text: str, where: str) -> float:
    """A number of seconds, or the seconds since 1970 of a time in ISO 8601 (UTC where it has no zone)."""
    try:
        value = float(text)
    except ValueError:
        value = _iso_seconds(text, where)
    if not math.isfinite(value):
        raise DataError(f"{where}: column 'timestamp' is {text[:40]!r}; give a finite number of seconds")
    return value


def _iso_seconds(text: str, where: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise DataError(
            f"{where}: column 'timestamp' is {text[:40]!r}; give seconds or a time in ISO 8601"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _read_parquet(path: Path, target: TargetKind) -> Recording:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise SetupError(
            f"{path}: Parquet needs the package pyarrow; run: pip install 'fedge[simulation]'"
        ) from None
    try:
        with pq.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            channels = _channels(names, path)
            _check_parquet(file, channels, target, path)
        with pq.ParquetFile(path, read_dictionary=[n for n in names if n == "label"]) as file:
            return _from_table(file.read(), channels, target, path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: is damaged or no Parquet file ({str(error)[:120]})") from None


def _check_parquet(file: Any, channels: tuple[str, ...], target: TargetKind, path: Path) -> None:
    """Refuse by size and by the types of the columns, before a column is read."""
    from pyarrow import types

    meta = file.metadata
    size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
    if meta.num_rows > MAX_ROWS or meta.num_rows * len(channels) > MAX_VALUES or size > MAX_ARRAY_BYTES:
        raise DataError(f"{path}: has {meta.num_rows} rows of {len(channels)} channels; split the file")
    for field in file.schema_arrow:
        kind = field.type.value_type if types.is_dictionary(field.type) else field.type
        number = types.is_integer(kind) or types.is_floating(kind)
        text = types.is_string(kind) or types.is_large_string(kind)
        named = text or types.is_integer(kind) or (target == "anomaly" and types.is_boolean(kind))
        label = number if target == "number" else named
        fits = {"timestamp": number or types.is_timestamp(kind), "label": label}
        if not fits.get(field.name, number):
            raise DataError(f"{path}: column {field.name!r} has the type {field.type}, which it cannot have")


def _from_table(table: Any, channels: tuple[str, ...], target: TargetKind, path: Path) -> Recording:
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count:
            raise DataError(
                f"{path}: column {name!r} has {column.null_count} missing values; drop those rows"
            )
    x = np.empty((table.num_rows, len(channels)), np.float32)
    for index, name in enumerate(channels):
        x[:, index] = _parquet_numbers(table, name, path)
    timestamp = _parquet_seconds(table.column("timestamp"), path)
    if "label" not in table.column_names:
        return Recording(timestamp, x, None, (), channels)
    if target == "number":
        return Recording(timestamp, x, _parquet_numbers(table, "label", path), (), channels)
    return Recording(timestamp, x, *_parquet_labels(table.column("label"), path), channels)


def _parquet_numbers(table: Any, name: str, path: Path) -> NDArray[np.float64]:
    values: NDArray[np.float64] = table.column(name).to_numpy().astype(np.float64)
    wrong = np.flatnonzero(~(np.abs(values) <= _FLOAT32_MAX))
    if len(wrong):
        row, value = wrong[0] + 1, values[wrong[0]]
        raise DataError(f"{path}: data row {row}: column {name!r} is {value}: NaN, infinite or too large")
    return values


def _parquet_seconds(column: Any, path: Path) -> NDArray[np.float64]:
    import pyarrow as pa

    if pa.types.is_timestamp(column.type):
        unit = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}[column.type.unit]
        ticks: NDArray[np.float64] = column.cast(pa.int64()).to_numpy().astype(np.float64)
        return ticks / unit
    seconds: NDArray[np.float64] = column.to_numpy().astype(np.float64)
    if not np.isfinite(seconds).all():
        raise DataError(f"{path}: column 'timestamp' has a value that is not finite")
    return seconds


def _parquet_labels(column: Any, path: Path) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    labels = _Labels(path)
    codes = [np.empty(0, np.int64)]
    for chunk in column.chunks:
        coded = chunk if hasattr(chunk, "dictionary") else chunk.dictionary_encode()
        numbers = [labels.number(str(v), f"{path}") for v in coded.dictionary.to_pylist()]
        codes.append(np.array(numbers, np.int64)[coded.indices.to_numpy(zero_copy_only=False)])
    return labels.sorted(np.concatenate(codes))
