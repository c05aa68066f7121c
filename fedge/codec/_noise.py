"""Random bits that are the same with every machine and NumPy: raw outputs of a counter-based generator."""

import numpy as np
from numpy.typing import NDArray


def words(count: int, seed: int, counter: int) -> NDArray[np.uint64]:
    """The first ``count`` 64-bit outputs, little-endian, of Philox-4x64-10 with key (``seed``, ``counter``).

    Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    raw: NDArray[np.uint64] = np.random.Philox(key=np.array([seed, counter], np.uint64)).random_raw(count)
    return raw.astype("<u8")


def uniform(count: int, seed: int, counter: int) -> NDArray[np.float32]:
    """``count`` multiples of 2^-24 in [0, 1), two from each word: its low half first."""
    halves = words(-(-count // 2), seed, counter).view("<u4")[:count]
    return (halves >> 8).astype(np.float32) * np.float32(2.0**-24)


def bits(count: int, seed: int, counter: int) -> NDArray[np.bool_]:
    """``count`` bits, 64 from each word: its lowest first."""
    octets = words(-(-count // 64), seed, counter).view(np.uint8)
    return np.unpackbits(octets, count=count, bitorder="little").view(np.bool_)
