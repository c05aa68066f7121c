"""One line of text, one sample: CSV or JSON lines, and labels that come later. Rules without IO.

A CSV stream begins with a header; its columns are the model's channels in any order, ``timestamp`` and
``label`` if they are there, and others that are not used. A JSON line is an object with the same names.
In both, a line ``{"label": "walking", "from": 12.5, "to": 20}`` labels samples that came before.
"""

import csv
import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

from fedge.errors import DataError

MAX_LINE = 1 << 20
"""Longest line, in bytes."""
_LARGEST = 3.4028234663852886e38  # of float32
_TIME, _LABEL = "timestamp", "label"


class Sample(NamedTuple):
    """What the sensor gave at one time.

    Attributes:
        values: one number for each channel of the model, in its order; finite in float32.
        time: seconds; None where the input has no ``timestamp``.
        stamp: the same as it was given, to be repeated in the answer.
        label: as it was given; None if there is none.
    """

    values: list[float]
    time: float | None
    stamp: str | float | None
    label: str | float | None


@dataclass(frozen=True)
class LateLabel:
    """A label for the samples from ``start`` to ``stop``, both included.

    In seconds, as ``timestamp``; without timestamps, in samples since the input began.
    """

    label: str | float
    start: float
    stop: float


class Lines:
    """Turns the lines of one input into samples."""

    def __init__(self, channels: Sequence[str], columns: Sequence[str] | None = None) -> None:
        """``columns``: what the model's ``channels`` are called in this input, in their order.

        Raises:
            DataError: ``columns`` are not as many as the channels, or name one twice.
        """
        self._columns = tuple(columns or channels)
        if len(self._columns) != len(channels) or len(set(self._columns)) != len(channels):
            raise DataError(
                f"the model has the channels {_listed(channels)}: name one column for each of them"
            )
        self._header: list[str] | None = None
        self._at: list[int] = []
        self._time_at = self._label_at = -1
        self.unused: tuple[str, ...] = ()

    @property
    def begun(self) -> bool:
        """Whether the kind of input is known: CSV whose header has come, or JSON lines."""
        return self._header is not None

    def parse(self, line: bytes) -> Sample | LateLabel | None:
        """One line; None for an empty one, and for the header.

        Raises:
            HeaderError: the first line is neither a header with the channels nor JSON.
            DataError: this line cannot be used; the next ones can.
        """
        if len(line) > MAX_LINE:
            raise DataError(f"a line has more than {MAX_LINE} bytes")
        try:
            text = line.decode("utf-8-sig" if self._header is None else "utf-8").strip()
        except UnicodeDecodeError:
            raise (DataError if self.begun else HeaderError)("a line is not UTF-8 text") from None
        if not text:
            return None
        if text.startswith("{"):
            return self._object(text)
        if self._header is None:
            self._read_header(text)
            return None
        if not self._header:
            raise DataError(f"a line is no JSON object: {text[:40]!r}")
        return self._row(text)

    def _read_header(self, text: str) -> None:
        names = [name.strip() for name in _cells(text)]
        missing = [name for name in self._columns if name not in names]
        if missing:
            raise HeaderError(_no_header(missing, names))
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise HeaderError(f"the header has two columns {twice[0]!r}; names must differ")
        self._at = [names.index(name) for name in self._columns]
        self._time_at, self._label_at = (names.index(n) if n in names else -1 for n in (_TIME, _LABEL))
        self.unused = tuple(n for n in names if n not in (*self._columns, _TIME, _LABEL))
        for name in self.unused:
            _check_slip(name)
        self._header = names

    def _row(self, text: str) -> Sample | None:
        cells, names = _cells(text), self._header or []
        if cells[:1] == names[:1] and [c.strip() for c in cells] == names:
            return None  # the sensor's program was started again
        if len(cells) != len(names):
            raise DataError(f"a line has {len(cells)} cells; the header has {len(names)}")
        label = cells[self._label_at].strip() if self._label_at >= 0 else ""
        raw = cells[self._time_at].strip() if self._time_at >= 0 else None
        time, stamp = (None, None) if raw is None else _time(raw)
        return Sample(_values([cells[i] for i in self._at], self._columns), time, stamp, label or None)

    def _object(self, text: str) -> Sample | LateLabel | None:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            raise DataError(f"a line is no JSON object: {text[:40]!r}") from None
        if self._header is None:
            for name in found:
                if name not in self._columns:
                    _check_slip(name)
            self._header = []
        if not any(name in found for name in self._columns) and {"from", "to"} <= set(found):
            return _late(found)
        values = [found.get(name) for name in self._columns]
        if any(value is None or isinstance(value, bool) for value in values):
            raise DataError(_no_channel([n for n in self._columns if found.get(n) is None], list(found)))
        raw, label = found.get(_TIME), found.get(_LABEL)
        time, stamp = (None, None) if raw is None else _time(raw)
        known = None if label is None or label == "" else _label(label)
        return Sample(_values(values, self._columns), time, stamp, known)


class HeaderError(DataError):
    """The input as a whole cannot be read: its first line does not say what the columns are."""


def seconds(raw: object) -> float:
    """A number of seconds, or the seconds since 1970 of a time in ISO 8601 (UTC where it has no zone).

    Raises:
        DataError: it is neither, or not finite.
    """
    return _time(raw)[0]


def _time(raw: object) -> tuple[float, str | float]:
    """The time in seconds, and as answers repeat it: a number, or the text of an ISO time."""
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        raise DataError(f"the time is {raw!r:.40}; give seconds or a time in ISO 8601")
    try:
        value = float(raw)
    except (ValueError, OverflowError):
        return _iso_seconds(str(raw)), str(raw)
    if not math.isfinite(value):
        raise DataError(f"the time is {raw!r:.40}; give a finite number of seconds")
    return value, value


def _iso_seconds(raw: str) -> float:
    try:
        moment = datetime.fromisoformat(raw)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise DataError(f"the time is {raw!r:.40}; give seconds or a time in ISO 8601") from None


def _values(raw: Sequence[Any], columns: Sequence[str]) -> list[float]:
    """Numbers, or text of numbers, that float32 can hold."""
    try:
        values = [float(value) for value in raw]
        if all(-_LARGEST <= value <= _LARGEST for value in values):
            return values
    except (TypeError, ValueError, OverflowError):
        pass
    name, value = next((n, v) for n, v in zip(columns, raw, strict=True) if not _is_number(v))
    raise DataError(f"{name!r} is {value!r:.40}, which is no finite number in float32")


def _is_number(raw: Any) -> bool:
    try:
        return -_LARGEST <= float(raw) <= _LARGEST
    except (TypeError, ValueError, OverflowError):
        return False


def _label(raw: object) -> str | float:
    if isinstance(raw, bool):
        return str(int(raw))
    if not isinstance(raw, str | int | float):
        raise DataError(f"the label is {raw!r:.40}; give text or a number")
    return raw


def _late(found: Mapping[str, object]) -> LateLabel:
    start, stop = seconds(found["from"]), seconds(found["to"])
    if found.get(_LABEL) is None:
        raise DataError("a line has 'from' and 'to' but no 'label'")
    if stop < start:
        raise DataError(f"a label ends at {stop:g}, before it begins at {start:g}")
    return LateLabel(_label(found[_LABEL]), start, stop)


def _cells(text: str) -> list[str]:
    if '"' not in text:
        return text.split(",")
    try:
        return next(csv.reader([text], strict=True))
    except (csv.Error, StopIteration):
        raise DataError(f"a line is not CSV: {text[:40]!r}") from None


def _check_slip(name: str) -> None:
    slip = name.lower().rstrip("s")
    if slip in (_TIME, _LABEL) and slip != name:
        raise HeaderError(f"the header has a column {name!r}; write it {slip!r}")


def _no_header(missing: Sequence[str], names: Sequence[str]) -> str:
    if not any(any(c.isalpha() for c in name) for name in names):
        return f"the first line is data, not a header: give one that names the columns {_listed(missing)}"
    return f"the header has no column {_listed(missing)}; {_nearest(missing[0], names)} (see --columns)"


def _no_channel(missing: Sequence[str], names: Sequence[str]) -> str:
    if not missing:
        return "a line has true or false for a channel; give numbers"
    return f"a line has no number for {_listed(missing)}; {_nearest(missing[0], names)}"


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"is {close[0]!r} meant?" if close and close[0] != name else f"it has {_listed(known)}"


def _listed(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(repr(name)[:60] for name in names[:most])
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"
