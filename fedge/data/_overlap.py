"""Finding windows that share samples, and images that are there twice, from their content alone."""

import hashlib

import numpy as np
from numpy.typing import NDArray

_CHANGES = 16
_BASE = np.uint64(0x9E3779B97F4A7C15)

_Hashes = NDArray[np.uint64]
_Mask = NDArray[np.bool_]


def overlaps(x: NDArray[np.float32], other: NDArray[np.float32]) -> _Mask:
    """Which windows, or images, of ``x`` hold something that ``other`` holds too.

    Args:
        x: ``[n, time, channels]`` or ``[n, height, width, channels]``.
        other: ``[m, ...]``, likewise.

    Returns:
        ``[n]`` bool.
    """
    return same_image(x, other) if x.ndim == 4 else shares_samples(x, other)


def same_image(x: NDArray[np.float32], other: NDArray[np.float32]) -> _Mask:
    """Which images of ``x`` are in ``other`` too, exactly, and could hardly be equal by chance.

    They could not if at least 16 pixels differ from the one before, row by row. A dark, saturated or blank
    picture does not count: a camera takes many of those. Pictures of one thing that are only alike are not
    found; their group has to say so.

    Args:
        x: ``[n, height, width, channels]``.
        other: ``[m, height, width, channels]``.

    Returns:
        ``[n]`` bool.
    """
    known = {_digest(image) for image in other}
    found = np.array([_digest(image) in known for image in x], np.bool_)
    for index in np.flatnonzero(found):
        pixels = x[index].reshape(-1, x.shape[3])
        found[index] = np.count_nonzero((pixels[1:] != pixels[:-1]).any(axis=1)) >= _CHANGES
    return found


def _digest(image: NDArray[np.float32]) -> bytes:
    return hashlib.sha256((image + np.float32(0)).tobytes()).digest()  # -0.0 becomes 0.0


def shares_samples(x: NDArray[np.float32], other: NDArray[np.float32]) -> _Mask:
    """Which windows of ``x`` hold samples that a window of ``other`` holds too.

    Two windows share samples when the end of one equals the beginning of the other, exactly, over 1 to
    ``time`` samples (all of them: the window is there twice), and when that stretch could hardly be equal
    by chance. It could not if it holds a sample that has the same neighbours wherever it occurs, and
    differs from them, as the samples of a finely resolved signal do; or if it changes at least 16 times.
    So a sensor at rest, padding and values on a coarse grid do not make windows overlap.

    Args:
        x: ``[n, time, channels]``.
        other: ``[m, time, channels]``.

    Returns:
        ``[n]`` bool.
    """
    n, time = x.shape[:2]
    shared = np.zeros(n, np.bool_)
    if not n or not len(other):
        return shared
    both = np.concatenate([x, other])
    rows = _row_hashes(both)
    telling, changed = _evidence(rows)
    heads, tails = _stretch_hashes(rows)
    for length in range(time, 0, -1):
        for first, second, a, b in ((tails, heads, time - length, 0), (heads, tails, 0, time - length)):
            end = a + length
            sound = (telling[:n, end] > telling[:n, a]) | (changed[:n, end] - changed[:n, a + 1] >= _CHANGES)
            hit = ~shared & sound
            hit[hit] = np.isin(first[:n, length][hit], second[n:, length])
            for i in np.flatnonzero(hit):
                partners = n + np.flatnonzero(second[n:, length] == first[i, length])
                stretch = both[i, a : a + length]
                shared[i] = any(np.array_equal(stretch, both[j, b : b + length]) for j in partners)
    return shared


def _row_hashes(x: NDArray[np.float32]) -> _Hashes:
    """One 64-bit hash for each sample (all channels at one time): ``[n, time]``."""
    bits = np.ascontiguousarray(x).view(np.uint32).astype(np.uint64)
    hashes = np.zeros(x.shape[:2], np.uint64)
    for channel in range(x.shape[2]):
        hashes = (hashes ^ bits[:, :, channel]) * _BASE
        hashes ^= hashes >> np.uint64(29)
    return hashes


def _stretch_hashes(rows: _Hashes) -> tuple[_Hashes, _Hashes]:
    """Hashes of the first and of the last ``length`` samples: twice ``[n, time + 1]``, by length.

    A stretch ``r_1 .. r_k`` has the polynomial hash ``sum r_i B^(k-i)`` modulo 2^64.
    """
    n, time = rows.shape
    heads, tails = np.zeros((n, time + 1), np.uint64), np.zeros((n, time + 1), np.uint64)
    power = np.ones(1, np.uint64)
    for length in range(1, time + 1):
        heads[:, length] = heads[:, length - 1] * _BASE + rows[:, length - 1]
        tails[:, length] = tails[:, length - 1] + rows[:, time - length] * power
        power = power * _BASE
    return heads, tails


def _evidence(rows: _Hashes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many of the first ``k`` samples of a window are telling, and how many differ from the one before.

    A sample is telling if it has the same neighbours wherever it occurs, and differs from them.

    Returns:
        Twice ``[n, time + 1]``, by ``k``.
    """
    kinds, kind = np.unique(rows, return_inverse=True)
    kind = kind.reshape(rows.shape).astype(np.int64)
    changed = np.zeros(rows.shape, np.bool_)
    changed[:, 1:] = kind[:, 1:] != kind[:, :-1]
    pairs = np.unique(kind[:, :-1] * len(kinds) + kind[:, 1:])
    before, after = np.divmod(pairs, len(kinds))
    followers = np.bincount(before, minlength=len(kinds))
    leaders = np.bincount(after, minlength=len(kinds))
    telling = (followers <= 1) & (leaders <= 1) & (followers + leaders > 0)
    telling[before[before == after]] = False
    return _counts(telling[kind]), _counts(changed)


def _counts(mask: _Mask) -> NDArray[np.int64]:
    return np.pad(np.cumsum(mask, axis=1, dtype=np.int64), ((0, 0), (1, 0)))
