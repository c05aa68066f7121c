"""Frequency tables for ``_rans``: few bytes, the same integers on every machine.

The frequency of a symbol is sent as a level, a quarter of an octave each (2 ** (level / 4)); level 0 means
that the symbol does not occur. Symbols are ``0..2 * top``, standing for ``-top..top``. Levels are given at
nodes:

    FULL        every symbol
    MIRRORED    every magnitude; both signs are equally frequent
    KNOTS       some magnitudes, closer near zero; levels between them are interpolated

The encoder takes what makes table and symbols together shortest: with few symbols of many kinds a smooth
table of a dozen nodes costs less than the histogram would.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedge.codec import _bits as bits_
from fedge.codec._bits import Bits, Ints
from fedge.codec._container import Reader
from fedge.codec._rans import PRECISION, Table
from fedge.errors import PayloadError

FULL, MIRRORED, KNOTS = 0, 1, 2

_TOP_LEVEL = 60
_MANTISSA = (16, 19, 23, 27)
_WEIGHTS = np.array([0] + [_MANTISSA[i % 4] << i // 4 for i in range(_TOP_LEVEL)], np.int64)
"""Weight of each level: 16 * 2 ** ((level - 1) / 4), as integers so that all machines agree."""

_RICE = 2
_WIDTH = 6


@dataclass(frozen=True, eq=False)
class Coded:
    """A table and what it costs.

    Attributes:
        kind: where its nodes are.
        data: the levels as they are sent.
        table: frequency of each symbol.
        bits: of the table and of all symbols coded with it, rounded to the entropy's own precision.
    """

    kind: int
    data: bytes
    table: Table
    bits: float


def fit(counts: Ints, top: int) -> Coded:
    """The cheapest table for symbols that occur ``counts`` (``[2 * top + 1]``, not all 0) times."""
    return min((_coded(kind, counts, top) for kind in (FULL, MIRRORED, KNOTS)), key=lambda c: c.bits)


def read(reader: Reader, kind: int, top: int) -> Table:
    """The table that ``fit`` wrote.

    Raises:
        PayloadError: it ends early, or has levels that do not exist.
    """
    levels = _read_levels(reader, len(_nodes(kind, top)))
    return _normalised(_WEIGHTS[_spread(levels, kind, top)])


def _coded(kind: int, counts: Ints, top: int) -> Coded:
    levels = _levels(_at_nodes(counts, kind, top))
    data = _write_levels(levels)
    table = _normalised(_WEIGHTS[_spread(levels, kind, top)])
    occurs = counts > 0
    if (table[occurs] == 0).any():
        return Coded(kind, data, table, np.inf)
    cost = float((counts[occurs] * (PRECISION - np.log2(table[occurs]))).sum())
    return Coded(kind, data, table, cost + 8 * len(data))


def _nodes(kind: int, top: int) -> Ints:
    """The symbols (``FULL``) or magnitudes whose levels are sent."""
    if kind == FULL:
        return np.arange(2 * top + 1)
    if kind == MIRRORED:
        return np.arange(top + 1)
    knots = [m for m in (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96) if m < top]
    return np.array([*knots, top])


def _at_nodes(counts: Ints, kind: int, top: int) -> NDArray[np.float64]:
    """Mean count of a symbol around each node."""
    if kind == FULL:
        return counts.astype(np.float64)
    both = (counts[top:] + counts[top::-1]) / 2
    if kind == MIRRORED:
        return both
    nodes = _nodes(kind, top)
    owner = np.searchsorted((nodes[1:] + nodes[:-1] + 1) / 2, np.arange(top + 1), side="right")
    means: NDArray[np.float64] = np.bincount(owner, both) / np.bincount(owner)
    return np.maximum(means, 1e-3)


def _levels(counts: NDArray[np.float64]) -> Ints:
    relative = np.log2(np.maximum(counts, 1e-9) / counts.max())
    return np.where(counts > 0, np.maximum(np.rint(_TOP_LEVEL + 4 * relative), 1), 0).astype(np.int64)


def _spread(levels: Ints, kind: int, top: int) -> Ints:
    """The level of every symbol from those of the nodes, in integers."""
    if kind == FULL:
        return levels
    nodes, magnitudes = _nodes(kind, top), np.arange(top + 1)
    right = np.minimum(np.searchsorted(nodes, magnitudes, side="right"), len(nodes) - 1)
    left = np.maximum(right - 1, 0)
    span = np.maximum(nodes[right] - nodes[left], 1)
    ahead = levels[left] + ((levels[right] - levels[left]) * (magnitudes - nodes[left]) * 2 + span) // (
        2 * span
    )
    return np.concatenate([ahead[:0:-1], ahead])


def _normalised(weights: Ints) -> Table:
    """Frequencies in proportion to ``weights``, 1 or more for each above 0; the largest takes the rest."""
    total = int(weights.sum())
    if not total:
        raise PayloadError("payload has an empty frequency table")
    table = np.where(weights > 0, np.maximum((weights << PRECISION) // total, 1), 0)
    table[np.argmax(table)] += (1 << PRECISION) - table.sum()
    return table.astype(np.uint32)


def _write_levels(levels: Ints) -> bytes:
    """The first level in 6 bits, then signed steps in Rice codes; the best of four Rice parameters first."""
    steps = np.diff(levels)
    folded = np.where(steps < 0, -2 * steps - 1, 2 * steps)
    rice = min(range(4), key=lambda r: int(((folded >> r) + 1 + r).sum()))
    quotients = folded >> rice
    unary = np.zeros(int(quotients.sum()) + len(folded), np.uint8)
    unary[np.cumsum(quotients + 1) - 1] = 1
    first = bits_.pack(np.array([rice, int(levels[0])]), np.array([_RICE, _WIDTH]))
    rest = bits_.pack(folded & (1 << rice) - 1, np.full(len(folded), rice))
    return bits_.to_bytes(np.concatenate([first, unary, rest]))


def _read_levels(reader: Reader, count: int) -> Ints:
    first = reader.take(1)[0]
    rice, level = first >> _WIDTH, first & (1 << _WIDTH) - 1
    bits = _take_codes(reader, count - 1, rice)
    ones = np.flatnonzero(bits)[: count - 1]
    quotients = np.diff(ones, prepend=-1) - 1
    rest = bits[int(ones[-1]) + 1 :] if len(ones) else bits
    folded = quotients << rice | bits_.unpack(rest, np.full(count - 1, rice))
    bits_.end(rest[rice * (count - 1) :])
    levels = np.cumsum(np.concatenate([[level], np.where(folded & 1, -(folded + 1) // 2, folded // 2)]))
    if levels.min() < 0 or levels.max() > _TOP_LEVEL:
        raise PayloadError("payload has a frequency table with levels that do not exist")
    return levels


def _take_codes(reader: Reader, count: int, rice: int) -> Bits:
    """As many whole bytes as ``count`` Rice codes take."""
    data, ones = b"", 0
    while ones < count:
        if len(data) > 16 * count:
            raise PayloadError("payload has a frequency table that is too long")
        data += reader.take(1)
        ones = sum(byte.bit_count() for byte in data)
    bits = bits_.from_bytes(data)
    end = int(np.flatnonzero(bits)[count - 1]) + 1 if count else 0
    missing = -(-(end + rice * count) // 8) - len(data)
    return np.concatenate([bits, bits_.from_bytes(reader.take(missing))])
