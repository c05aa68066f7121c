"""Range asymmetric numeral systems with a static table (Duda 2013, arXiv 1311.2540), many lanes at a time.

Symbol ``i`` belongs to lane ``i % lanes``. A lane's state is in [2^16, 2^32); it gives and takes 16 bits at a
time, all lanes share one stream of words, and each step works on all lanes with vector operations
(interleaving: Giesen 2014, arXiv 1402.3392). Integers only: the same on every machine.

A lane costs four bytes, and its symbols fill one of them on average. Two more come back as ``spare``: 16 bits
of anything are where a lane starts when it is encoded, and what remains of it when it has been decoded.

    lanes x 4 bytes     states, little-endian
    rest                words of 2 bytes, little-endian, in the order in which the decoder wants them
"""

import numpy as np
from numpy.typing import NDArray

from fedge.errors import PayloadError

PRECISION = 15
"""Frequencies of a table add up to ``2 ** PRECISION``."""

Symbols = NDArray[np.uint8]
Words = NDArray[np.uint16]
Table = NDArray[np.uint32]
"""Frequency of each symbol, adding up to ``2 ** PRECISION``."""

_LOW = 1 << 16
_SHIFT = np.uint32(PRECISION)
_MASK = np.uint32((1 << PRECISION) - 1)
_WORD = np.uint32(16)


def encode(symbols: Symbols, table: Table, lanes: int, spare: Words) -> bytes:
    """Code ``symbols`` (``[n]``, each with a frequency above 0) in 1..n lanes; ``spare`` is ``[lanes]``."""
    freqs, starts = table.astype(np.uint32), _starts(table)
    rests = np.uint32(1 << PRECISION) - freqs
    # A state above this gives up a word first; a frequency of 2^15 makes it 2^32 - 1: never.
    highest = ((freqs.astype(np.uint64) << np.uint64(32 - PRECISION)) - np.uint64(1)).astype(np.uint32)
    state = spare.astype(np.uint32) + np.uint32(_LOW)
    chunks: list[NDArray[np.uint32]] = []
    for at in range((len(symbols) - 1) // lanes * lanes, -1, -lanes):
        row = symbols[at : at + lanes].astype(np.intp)
        x = state[: len(row)]
        full = (x > highest[row]).nonzero()[0]
        if len(full):
            over = x[full]
            chunks.append(over)
            x[full] = over >> _WORD
        # (x // f) 2^15 + x % f + start, without the remainder.
        x += x // freqs[row] * rests[row]
        x += starts[row]
    words = np.concatenate(chunks[::-1]) if chunks else np.zeros(0, np.uint32)
    return state.astype("<u4").tobytes() + (words & np.uint32(0xFFFF)).astype("<u2").tobytes()


def decode(data: bytes, count: int, table: Table, lanes: int) -> tuple[Symbols, Words]:
    """``count`` symbols and the spare words (``[lanes]``) from exactly ``data``; 1 <= lanes <= count.

    Raises:
        PayloadError: the data are too short or too long, or no encoder's.
    """
    if len(data) < 4 * lanes or len(data) % 2:
        raise PayloadError(f"payload has {len(data)} bytes of coded symbols in {lanes} lanes")
    state = np.frombuffer(data, "<u4", lanes).astype(np.uint32)
    if (state < _LOW).any():
        raise PayloadError("payload has a coder state that is out of range")
    words = np.frombuffer(data, "<u2", offset=4 * lanes).astype(np.uint32)
    slots, used = _walk(state, words, count, table)
    if used != len(words) or (state >> _WORD != 1).any():
        raise PayloadError("payload's coded symbols do not end where they should")
    symbol_of = np.repeat(np.arange(len(table), dtype=np.uint8), table)
    return symbol_of[slots], (state & np.uint32(0xFFFF)).astype(np.uint16)


def _walk(
    state: NDArray[np.uint32], words: NDArray[np.uint32], count: int, table: Table
) -> tuple[Words, int]:
    """The slot of each symbol, and the words used; ``state`` is advanced in place."""
    freq_of = np.repeat(table.astype(np.uint32), table)
    offset_of = np.arange(1 << PRECISION, dtype=np.uint32) - np.repeat(_starts(table), table)
    slots, used = np.empty(count, np.uint16), 0
    for at in range(0, count, len(state)):
        x = state[: count - at]
        slot = (x & _MASK).astype(np.intp)
        slots[at : at + len(x)] = slot
        x >>= _SHIFT
        x *= freq_of[slot]
        x += offset_of[slot]
        empty = (x < _LOW).nonzero()[0]
        if len(empty):
            fresh = words[used : used + len(empty)]
            if len(fresh) < len(empty):
                raise PayloadError("payload's coded symbols end early")
            x[empty] = x[empty] << _WORD | fresh
            used += len(empty)
    return slots, used


def _starts(table: Table) -> Table:
    starts: Table = (np.cumsum(table) - table).astype(np.uint32)
    return starts
