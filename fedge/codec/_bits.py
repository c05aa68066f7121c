"""Fields of given widths to bits and back, all fields at once. Most significant bit first."""

import numpy as np
from numpy.typing import NDArray

from fedge.errors import PayloadError

Bits = NDArray[np.uint8]
"""One bit per entry, 0 or 1."""

Ints = NDArray[np.int64]


def pack(values: Ints, widths: Ints) -> Bits:
    """The bits of ``values[i]`` in ``widths[i]`` (0..62) bits each, one field after the other."""
    ends = np.cumsum(widths)
    bits = np.zeros(int(ends[-1]) if len(ends) else 0, np.uint8)
    starts = ends - widths
    for j in range(int(widths.max(initial=0))):
        has = widths > j
        bits[starts[has] + j] = (values[has] >> (widths[has] - 1 - j)) & 1
    return bits


def unpack(bits: Bits, widths: Ints) -> Ints:
    """The fields of ``widths[i]`` bits each from the front of ``bits``: the inverse of ``pack``.

    Raises:
        PayloadError: ``bits`` has fewer than the widths add up to.
    """
    widest = int(widths.max(initial=0))
    if (widths == widest).all():  # as good as always, and several times faster
        need_bits(bits, len(widths) * widest)
        powers = np.int64(1) << np.arange(widest - 1, -1, -1)
        return bits[: len(widths) * widest].reshape(len(widths), widest) @ powers
    ends = np.cumsum(widths)
    need_bits(bits, int(ends[-1]))
    starts = ends - widths
    values = np.zeros(len(widths), np.int64)
    for j in range(widest):
        has = widths > j
        values[has] = values[has] << 1 | bits[starts[has] + j]
    return values


def need_bits(bits: Bits, count: int) -> None:
    """Check that ``bits`` has at least ``count`` entries.

    Raises:
        PayloadError: it has fewer.
    """
    if len(bits) < count:
        raise PayloadError(f"payload ends early: {count} bits expected, {len(bits)} left")


def to_bytes(bits: Bits) -> bytes:
    """Eight bits a byte, the last byte filled up with zeros."""
    return np.packbits(bits).tobytes()


def from_bytes(data: bytes) -> Bits:
    """The bits of ``data``, eight entries for each byte."""
    return np.unpackbits(np.frombuffer(data, np.uint8))


def end(bits: Bits) -> None:
    """Check that what is left is less than a byte, and zeros.

    Raises:
        PayloadError: trailing bytes, or bits of the filling that are set.
    """
    if len(bits) >= 8 or bits.any():
        raise PayloadError("payload has trailing bits")
