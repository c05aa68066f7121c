"""Sparse ternary updates: the largest entries of all arrays together, as positions, signs and one magnitude.

Sparse ternary compression of Sattler et al. 2019 (arXiv 1903.02891, algorithm 1): what is not sent stays in
the residual. Body of a payload:

    varint      k << 1 | split          k entries are sent; nothing follows if k is 0
    varints     if split: the entries sent of each array but the last
    2 bytes     the magnitude, little-endian (``_scale``): the mean of the k largest
    bits        gaps between positions, Golomb coded, then k signs (1 is negative), then zeros to a byte

Positions count through the concatenated arrays, with one divisor; if split, each array is counted on its
own with a divisor of its own, which is smaller when entries gather in few arrays. The encoder takes the
shorter. Divisors follow from counts and are not sent.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from fedge.codec import Codec
from fedge.codec import _bits as bits_
from fedge.codec import _golomb as golomb
from fedge.codec._bits import Ints
from fedge.codec._container import OVERHEAD, Reader, varint
from fedge.codec._flat import Coder, Layout, Vector, assemble
from fedge.codec._rate import check_budget, largest
from fedge.codec._scale import from_code, to_code
from fedge.errors import ConfigError, PayloadError


@dataclass(frozen=True)
class Settings:
    """Knobs of ``ternary``.

    Attributes:
        share: fraction of all entries that is sent, in (0, 1]; at least one entry, never one that is zero.
        budget_bytes: if given, ``share`` is not used: as many entries are sent as lower the error and fit
            into this many bytes, container included.
        error_feedback: keep what is not sent and add it to the next arrays.
    """

    share: float = 0.01
    budget_bytes: int | None = None
    error_feedback: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigError: a knob is out of its range.
        """
        if not 0 < self.share <= 1:
            raise ConfigError(f"share of entries is {self.share}; give one above 0 and up to 1")
        check_budget(self.budget_bytes)


def build(settings: Settings) -> Codec:
    """The codec."""
    coder = Coder(2, partial(_encode, settings), _decode, error_feedback=settings.error_feedback)
    return assemble("ternary", coder)


@dataclass(frozen=True)
class _Positions:
    """Sorted positions as gaps within segments of the vector.

    Attributes:
        gaps: ``[k]``, entries skipped since the last position of the segment, or since its start.
        counts: positions in each segment.
        divisors: ``[k]``, of each gap.
    """

    gaps: Ints
    counts: Ints
    divisors: Ints

    @property
    def head(self) -> bytes:
        """Counts as they are sent."""
        k, split = int(self.counts.sum()), len(self.counts) > 1
        fields = [k << 1 | split, *self.counts[:-1].tolist()]
        return b"".join(varint(f) for f in fields)

    @property
    def size(self) -> int:
        """Bytes of the whole payload."""
        k = len(self.gaps)
        bits = golomb.cost(self.gaps, self.divisors) + k
        return OVERHEAD + len(self.head) + (2 + -(-bits // 8) if k else 0)


def _encode(settings: Settings, vector: Vector, layout: Layout, counter: int) -> tuple[bytes, Vector]:  # noqa: ARG001  (the signature of every coder)
    positions = _select(settings, np.abs(vector), layout)
    decoded = np.zeros_like(vector)
    code = to_code(float(np.abs(vector[positions]).mean(dtype=np.float64))) if len(positions) else 0
    if not code:
        return varint(0), decoded
    decoded[positions] = np.copysign(_magnitude(code), vector[positions])
    where = _shorter(positions, layout)
    signs = np.signbit(vector[positions]).astype(np.uint8)
    bits = np.concatenate([golomb.encode(where.gaps, where.divisors), signs])
    return where.head + code.to_bytes(2, "little") + bits_.to_bytes(bits), decoded


def _magnitude(code: int) -> np.float32:
    return np.float32(from_code(np.array([code], np.uint16))[0])


def _select(settings: Settings, size: Vector, layout: Layout) -> Ints:
    """Sorted positions of the entries to send; of equal magnitudes the first."""
    budget = settings.budget_bytes
    if budget is None:
        return np.sort(_top(size, max(1, round(settings.share * len(size)))))
    # An entry costs two bits or more. One magnitude for k entries takes (sum of k)^2 / k off the squared
    # error: past the maximum of that, another entry makes it worse.
    order = _top(size, 4 * budget)
    if not len(order):
        return order
    taken = np.cumsum(size[order], dtype=np.float64) ** 2 / np.arange(1, len(order) + 1)

    def fits(k: int) -> bool:
        return _shorter(np.sort(order[:k]), layout).size <= budget

    return np.sort(order[: largest(fits, 1, int(np.argmax(taken)) + 1)])


def _top(size: Vector, k: int) -> Ints:
    """Positions of the ``k`` largest entries that are not zero, largest first, equal ones in order."""
    if k < len(size):
        threshold = np.partition(size, len(size) - k)[len(size) - k]
        candidates = np.flatnonzero(size >= threshold)
    else:
        candidates = np.arange(len(size))
    candidates = candidates[size[candidates] > 0]
    return candidates[np.argsort(-size[candidates], kind="stable")[:k]]


def _shorter(positions: Ints, layout: Layout) -> _Positions:
    whole = _gaps(positions, np.array([layout.total]))
    if len(layout.sizes) < 2:
        return whole
    split = _gaps(positions, np.array(layout.sizes))
    return split if split.size < whole.size else whole


def _gaps(positions: Ints, spans: Ints) -> _Positions:
    ends = np.cumsum(spans)
    segment = np.searchsorted(ends, positions, side="right")
    counts = np.bincount(segment, minlength=len(spans))
    first = np.diff(segment, prepend=-1) > 0
    before = np.where(first, (ends - spans)[segment] - 1, np.roll(positions, 1))
    divisors = np.repeat(_divisors(counts, spans), counts)
    return _Positions(positions - before - 1, counts, divisors)


def _divisors(counts: Ints, spans: Ints) -> Ints:
    each = [golomb.divisor(k, n) for k, n in zip(counts.tolist(), spans.tolist(), strict=True)]
    return np.array(each, np.int64)


def _decode(reader: Reader, layout: Layout) -> Vector:
    counts, spans = _read_counts(reader, layout)
    k = int(counts.sum())
    if not k:
        return np.zeros(layout.total, np.float32)
    magnitude = _magnitude(int.from_bytes(reader.take(2), "little"))
    divisors = _divisors(counts, spans)
    bits = _read_bits(reader, counts, divisors, spans)
    gaps, bits = golomb.decode(bits, np.repeat(divisors, counts), layout.total)
    bits_.need_bits(bits, k)
    bits_.end(bits[k:])
    flat = np.zeros(layout.total, np.float32)
    flat[_positions(gaps, counts, spans)] = np.where(bits[:k], -magnitude, magnitude)
    return flat


def _read_counts(reader: Reader, layout: Layout) -> tuple[Ints, Ints]:
    first = reader.varint(layout.total << 1 | 1)
    k, split = first >> 1, first & 1
    if not split:
        return np.array([k]), np.array([layout.total])
    counts = [reader.varint(size) for size in layout.sizes[:-1]]
    counts.append(k - sum(counts))
    if not 0 <= counts[-1] <= layout.sizes[-1]:
        raise PayloadError("payload has counts of entries that do not add up")
    return np.array(counts), np.array(layout.sizes)


def _read_bits(reader: Reader, counts: Ints, divisors: Ints, spans: Ints) -> bits_.Bits:
    """All bits that are left, once they are neither too few nor too many for the counts."""
    k = int(counts.sum())
    most = golomb.most_bits(counts, spans, divisors) + k
    if not 2 * k <= 8 * reader.left < most + 8:
        raise PayloadError(
            f"payload has {reader.left} bytes for {k} entries; expected {k // 4} to {most // 8 + 1}"
        )
    return bits_.from_bytes(reader.rest())


def _positions(gaps: Ints, counts: Ints, spans: Ints) -> Ints:
    walked = np.zeros(len(gaps) + 1, np.int64)
    (gaps + 1).cumsum(out=walked[1:])
    ends = spans.cumsum()
    if len(spans) > 1:
        starts = ends - spans - walked[counts.cumsum() - counts]
        positions: Ints = walked[1:] - 1 + starts.repeat(counts)
        beyond = positions >= ends.repeat(counts)
    else:
        positions = walked[1:] - 1
        beyond = positions[-1:] >= ends
    if beyond.any():
        raise PayloadError("payload has a position beyond the end of the arrays")
    return positions
