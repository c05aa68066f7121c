"""How short a quantized sequence can be: its levels, and their empirical entropy."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fedge.codec import Arrays

Levels = NDArray[np.int8]

_LARGEST = 127
_TOLERANCE = 1e-4


def levels_of(decoded: Arrays) -> list[Levels]:
    """The integers that each array of ``decoded`` holds, flat.

    Each array is some unit times integers of -127..127. The unit is found from the values alone, so nothing
    of a codec's inside is needed.

    Raises:
        ValueError: an array is no such multiple.
    """
    return [_levels(a.reshape(-1).astype(np.float64)) for a in decoded.values()]


def _levels(values: NDArray[np.float64]) -> Levels:
    sizes = np.unique(np.abs(values))
    sizes = sizes[sizes > 0]
    if not len(sizes):
        return np.zeros(len(values), np.int8)
    for smallest in range(1, _LARGEST + 1):
        steps = sizes / sizes[0] * smallest
        if steps[-1] > _LARGEST + 0.5:
            break
        if np.abs(steps - np.rint(steps)).max() < _TOLERANCE:
            found: Levels = np.rint(values / sizes[0] * smallest).astype(np.int8)
            return found
    raise ValueError("values are no multiples -127..127 of one unit")


def entropy_bits(levels: Levels) -> float:
    """Empirical order-0 entropy of the whole sequence: bits, with the histogram known for free.

    Shannon 1948. A coder that knows more than the histogram (which array an entry lies in) can be below it.
    """
    _, counts = np.unique(levels, return_counts=True)
    return float((counts * (np.log2(max(len(levels), 1)) - np.log2(counts))).sum())


def relative_error(truth: Iterable[NDArray[np.float32]], decoded: Iterable[NDArray[np.float32]]) -> float:
    """Length of the difference over the length of the truth (2-norms); 0 where both are 0."""
    pairs = [(t.astype(np.float64), d) for t, d in zip(truth, decoded, strict=True)]
    lost = sum(float(np.square(t - d).sum()) for t, d in pairs)
    whole = sum(float(np.square(t).sum()) for t, _ in pairs)
    return float(np.sqrt(lost / whole)) if whole else (0.0 if not lost else float("inf"))
