"""Samples to windows, sample by sample. Rules without IO or clock."""

import bisect
import math
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedge.edge.lines import Sample
from fedge.errors import ConfigError, DataError

_PERIODS = 63  # the last ones, of which the median is taken
_FEWEST = 3  # before a gap is looked for


@dataclass(frozen=True, eq=False)
class Window:
    """Some samples in a row, ready for a model.

    Attributes:
        x: ``[time, channels]`` or ``[height, width, channels]`` float32, in the sensor's own units.
        number: of this window in its input, from 0.
        begin: time of its first sample in seconds; without timestamps, its number in the input, from 0.
        end: the same of its last sample.
        clocked: whether these are seconds.
        stamps: both as they were given, to be repeated in the answer; None for a window of a file that
            has no such thing.
        labels: of its samples, in order, as they were given; None where there is none.
        stretch: counts the stretches without a gap.
    """

    x: NDArray[np.float32]
    number: int
    begin: float
    end: float
    clocked: bool
    stamps: tuple[str | float, str | float] | None
    labels: tuple[str | float | None, ...]
    stretch: int


class _Mark(NamedTuple):
    """What is remembered of a sample beside its values."""

    time: float
    stamp: str | float | None
    label: str | float | None


class Cutter:
    """Cuts a stream of samples into windows of ``time`` samples, one every ``step``.

    A gap between two samples begins a new stretch, and no window reaches across it: more than ``gap``
    seconds, by default twice the median of the last periods. Without timestamps, samples that could not be
    read are what makes a gap: two in a row, by default.
    """

    def __init__(self, time: int, channels: int, step: int, gap: float | None = None) -> None:
        """``gap`` in seconds (in samples where they have no time).

        Raises:
            ConfigError: ``step`` or ``gap`` is out of range.
        """
        if not 1 <= step <= 1 << 30:
            raise ConfigError(f"--step {step}: give 1 or more samples")
        if gap is not None and not gap > 0:
            raise ConfigError(f"--gap {gap:g}: give more than 0 seconds")
        self._time, self._step, self._gap = time, step, gap
        self._rows = np.empty((time, channels), np.float32)
        self._marks: deque[_Mark] = deque()
        self._periods = _Median()
        self._place = 0
        self._clocked: bool | None = None
        self._last: float | None = None
        self._wait = 0  # samples to leave out before the next window begins
        self.windows = self.stretch = 0

    def skip(self) -> None:
        """A sample came that could not be read."""
        self._place += 1

    def add(self, sample: Sample) -> Window | None:
        """Take one sample; gives the window that it completes.

        Raises:
            DataError: its time is that of the sample before, or a little earlier; or only some samples have
                a time. It is left out, and the next one may be taken.
        """
        if self._clocked is None:
            self._clocked = sample.time is not None
        if self._clocked != (sample.time is not None):
            self._place += 1
            raise DataError("some samples have a timestamp and some have none")
        now = float(self._place) if sample.time is None else sample.time
        self._place += 1
        self._check_gap(now, sample)
        self._last = now
        if self._wait:
            self._wait -= 1
            return None
        self._rows[len(self._marks)] = sample.values
        self._marks.append(_Mark(now, sample.stamp, sample.label))
        return self._cut() if len(self._marks) == self._time else None

    def _check_gap(self, now: float, sample: Sample) -> None:
        """Begin a new stretch where there is a gap, forwards or backwards (a clock that was set)."""
        if self._last is None:
            return
        period = now - self._last
        limit = self._gap if self._gap is not None else 2 * self._periods.median()
        if abs(period) > limit or (period < 0 and math.isinf(limit)):
            self.stretch += 1
            self._marks.clear()
            self._wait = 0
        elif period <= 0:
            raise DataError(f"the timestamp {sample.stamp} does not come after the one before")
        if period > 0:
            self._periods.add(period)

    def _cut(self) -> Window:
        first, last = self._marks[0], self._marks[-1]
        if first.stamp is None or last.stamp is None:
            stamps: tuple[str | float, str | float] = (int(first.time), int(last.time))
        else:
            stamps = (first.stamp, last.stamp)
        labels = tuple(mark.label for mark in self._marks)
        window = Window(
            self._rows.copy(), self.windows, first.time, last.time, self._clocked or False, stamps, labels,
            self.stretch,
        )  # fmt: skip
        self.windows += 1
        keep = max(0, self._time - self._step)
        self._rows[:keep] = self._rows[self._time - keep :].copy()
        for _ in range(self._time - keep):
            self._marks.popleft()
        self._wait = max(0, self._step - self._time)
        return window


class _Median:
    """The median of the last ``_PERIODS`` numbers."""

    def __init__(self) -> None:
        self._order: deque[float] = deque()
        self._sorted: list[float] = []

    def add(self, value: float) -> None:
        if len(self._order) == _PERIODS:
            del self._sorted[bisect.bisect_left(self._sorted, self._order.popleft())]
        self._order.append(value)
        bisect.insort(self._sorted, value)

    def median(self) -> float:
        """Infinite while there are hardly any."""
        n = len(self._sorted)
        if n < _FEWEST:
            return math.inf
        return (self._sorted[n // 2] + self._sorted[(n - 1) // 2]) / 2
