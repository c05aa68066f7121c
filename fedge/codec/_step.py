"""The step of a uniform quantizer: least squared error, or just fine enough for a number of bytes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ONE_BY_ONE = 2048
_DROPPED = 17
_COARSE, _FINE = 48, 4


@dataclass(frozen=True, eq=False)
class Magnitudes:
    """Magnitudes of many entries in few numbers.

    Attributes:
        values: ``[m]`` float64, increasing or as given.
        weights: ``[m]`` float64, entries that each value stands for.
    """

    values: NDArray[np.float64]
    weights: NDArray[np.float64]

    @property
    def peak(self) -> float:
        """The largest magnitude; 0 if there is none."""
        return float(self.values.max(initial=0.0))


def magnitudes(vector: NDArray[np.float32]) -> Magnitudes:
    """Of ``vector`` (``[n]``): one by one if they are few, else in bins of 1/64 octave, and the peak."""
    sizes = np.abs(vector)
    if len(sizes) <= _ONE_BY_ONE:
        return Magnitudes(sizes.astype(np.float64), np.ones(len(sizes)))
    counts = np.bincount(sizes.view(np.uint32) >> np.uint32(_DROPPED))
    bins = np.flatnonzero(counts)
    centres = (bins.astype(np.uint32) << np.uint32(_DROPPED)) | np.uint32((bins > 0) << (_DROPPED - 1))
    values = centres.view(np.float32).astype(np.float64)
    values[-1] = float(sizes.max())
    return Magnitudes(values, counts[bins].astype(np.float64))


def best_step(sizes: Magnitudes, top: int, rounding: float) -> float:
    """The step of least squared error for levels ``0..top``; 0 if all magnitudes are 0.

    A magnitude ``a`` becomes ``min(floor(a / step + rounding), top)`` steps. Candidates lie between half the
    mean and the peak over ``top``: on a coarse geometric grid, then on a fine one around the best of it.
    """
    high = sizes.peak / top
    if not high:
        return 0.0
    low = min(high, float(np.average(sizes.values, weights=sizes.weights)) / top / 2)
    ratio = (high / low) ** (1 / (_COARSE - 1))

    def error(step: float) -> float:
        levels = np.minimum(np.floor(sizes.values / step + rounding), top)
        return float(sizes.weights @ np.square(sizes.values - step * levels))

    best: float = min([low * ratio**i for i in range(_COARSE)], key=error)
    fine: list[float] = [best * ratio ** (i / _FINE) for i in range(-_FINE, _FINE + 1)]
    return min(fine, key=error)


def level_counts(sizes: Magnitudes, step: float, top: int, rounding: float | None) -> NDArray[np.int64]:
    """How often each symbol ``0..2 * top`` is expected, both signs alike; ``rounding`` None is at random."""
    steps = np.minimum(sizes.values / step, top)
    if rounding is None:
        below = np.floor(steps)
        up = steps - below
        counts = np.bincount(below.astype(np.int64), sizes.weights * (1 - up), top + 2)
        counts += np.bincount(below.astype(np.int64) + 1, sizes.weights * up, top + 2)
    else:
        levels = np.minimum(np.floor(steps + rounding), top).astype(np.int64)
        counts = np.bincount(levels, sizes.weights, top + 2)
    side = counts[1 : top + 1] / 2
    both: NDArray[np.int64] = np.ceil(np.concatenate([side[::-1], counts[:1], side])).astype(np.int64)
    return both
