"""Golomb codes with any divisor (Golomb 1966, "Run-length encodings"), coded and decoded without a loop.

A gap ``g`` becomes a quotient ``g // m`` in unary and a remainder ``g % m`` in truncated binary. The code
words are those of the textbook; only their parts are stored apart (all quotients, then the leading bits of
all remainders, then their last bits), so that each part is found with one vector operation. The size is the
same to the bit.
"""

import numpy as np

from fedge.codec._bits import Bits, Ints, need_bits, pack, unpack
from fedge.errors import PayloadError


def encode(gaps: Ints, divisors: Ints) -> Bits:
    """The bits of ``gaps`` (``[k]``, >= 0), each with its own divisor (``[k]``, >= 1)."""
    quotients = gaps // divisors
    rest, leading, short = gaps % divisors, *_widths(divisors)
    long = rest >= short
    lifted = np.where(long, rest + short, rest)
    unary = np.zeros(int(quotients.sum()) + len(gaps), np.uint8)
    unary[np.cumsum(quotients + 1) - 1] = 1
    head = pack(np.where(long, lifted >> 1, rest), leading)
    return np.concatenate([unary, head, (lifted[long] & 1).astype(np.uint8)])


def decode(bits: Bits, divisors: Ints, most: int) -> tuple[Ints, Bits]:
    """As many gaps as there are ``divisors``, none above ``most``, and the bits that are left.

    Raises:
        PayloadError: the bits end early, or a gap is above ``most``.
    """
    k = len(divisors)
    need_bits(bits, k)
    ones = np.flatnonzero(bits)[:k]
    if len(ones) < k:
        raise PayloadError(f"payload has {len(ones)} positions; expected {k}")
    quotients = ones.copy()
    quotients[1:] -= ones[:-1] + 1
    if (quotients > most // divisors).any():
        raise PayloadError(f"payload has a gap above {most}")
    bits = bits[int(ones[-1]) + 1 :] if k else bits
    leading, short = _widths(divisors)
    rest = unpack(bits, leading)
    bits = bits[int(leading.sum()) :]
    long = np.flatnonzero(rest >= short)
    need_bits(bits, len(long))
    rest[long] = (rest[long] << 1 | bits[: len(long)]) - short[long]
    gaps = quotients * divisors + rest
    if (gaps > most).any():
        raise PayloadError(f"payload has a gap above {most}")
    return gaps, bits[len(long) :]


def cost(gaps: Ints, divisors: Ints) -> int:
    """Bits that ``encode`` would give."""
    leading, short = _widths(divisors)
    return int((gaps // divisors + 1 + leading + (gaps % divisors >= short)).sum())


def most_bits(counts: Ints, spans: Ints, divisors: Ints) -> int:
    """Bits that are enough, in each segment ``i``, for any ``counts[i]`` gaps within ``spans[i]`` entries."""
    leading, _ = _widths(divisors)
    return int(((spans // divisors + counts * (leading + 2)) * (counts > 0)).sum())


def divisor(count: int, total: int) -> int:
    """A good divisor for the gaps of ``count`` positions spread evenly over ``total``: ln 2 of the mean gap.

    Integers only, so that both sides find the same one.
    """
    return max(1, (total * 45426 + (count << 15)) // (count << 16)) if count else 1


def _widths(divisors: Ints) -> tuple[Ints, Ints]:
    """Width of the leading bits of a remainder, and how many remainders need no further bit."""
    width = np.frexp(divisors - 1)[1]
    short = (np.int64(1) << width) - divisors + (divisors == 1)
    return np.maximum(width - 1, 0, dtype=np.int64), short
