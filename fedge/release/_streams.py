"""Bytes of one kind, coded in the shortest of four ways. Both sides know how many there are.

mode 1 byte     0 all zero | 1 as they are | 2 zlib | 3 + kind of table: as numbers -127..127, with rANS
2: varint length, zlib stream
3: largest magnitude 1 byte | varint lanes | table (``fedge.codec._table``) | varint length, symbols
"""

import zlib

import numpy as np
from numpy.typing import NDArray

from fedge.codec import _rans, _table
from fedge.codec._container import Reader, varint
from fedge.errors import PayloadError

Bytes = NDArray[np.uint8]

_ZERO, _RAW, _ZLIB, _RANS = 0, 1, 2, 3
_TOP = 127
_PER_LANE = 4096
"""Symbols in one lane, at most: decoding a stream takes no more steps than that."""


def write(values: Bytes) -> bytes:
    """``values`` coded."""
    if not values.any():
        return bytes([_ZERO])
    raw = values.tobytes()
    packed = zlib.compress(raw)
    found = [bytes([_RAW]) + raw, bytes([_ZLIB]) + varint(len(packed)) + packed, *_with_rans(values)]
    return min(found, key=len)


def read(reader: Reader, count: int) -> Bytes:
    """The next ``count`` values.

    Raises:
        PayloadError: what is coded ends early, is of an unknown kind, or is damaged.
    """
    mode = reader.take(1)[0]
    if mode == _ZERO:
        return np.zeros(count, np.uint8)
    if mode == _RAW:
        return np.frombuffer(reader.take(count), np.uint8)
    if mode == _ZLIB:
        return np.frombuffer(inflate(reader.take(reader.varint(reader.left)), count), np.uint8)
    if mode > _RANS + _table.KNOTS or not count:
        raise PayloadError(f"payload has a stream of kind {mode}, with {count} values")
    return _read_rans(reader, count, mode - _RANS)


def inflate(content: bytes, size: int, dictionary: bytes = b"") -> bytes:
    """Exactly ``size`` bytes from a zlib stream that is exactly ``content``.

    Raises:
        PayloadError: it is damaged, or of another size; no more than one byte too many is inflated.
    """
    stream = zlib.decompressobj(zdict=dictionary)
    try:
        inside = stream.decompress(content, size + 1)
    except zlib.error as error:
        raise PayloadError(f"payload has a damaged zlib stream: {error}") from error
    if len(inside) != size or not stream.eof or stream.unused_data or stream.unconsumed_tail:
        raise PayloadError(f"payload has a zlib stream that does not end after {size} bytes")
    return inside


def _with_rans(values: Bytes) -> list[bytes]:
    """Not for -128: the coder's symbols are at most 255."""
    numbers = values.view(np.int8).astype(np.int64)
    top = int(np.abs(numbers).max())
    if top > _TOP:
        return []
    fit = _table.fit(np.bincount(numbers + top, minlength=2 * top + 1), top)
    lanes = -(-len(values) // _PER_LANE)
    symbols = (numbers + top).astype(np.uint8)
    coded = _rans.encode(symbols, fit.table, lanes, np.zeros(lanes, np.uint16))
    head = bytes([_RANS + fit.kind, top])
    return [b"".join((head, varint(lanes), fit.data, varint(len(coded)), coded))]


def _read_rans(reader: Reader, count: int, kind: int) -> Bytes:
    top = reader.take(1)[0]
    if not 1 <= top <= _TOP:
        raise PayloadError(f"payload has a stream of numbers up to {top}; the limit is {_TOP}")
    lanes = reader.varint(min(count, reader.left))
    if lanes < -(-count // _PER_LANE):
        raise PayloadError(f"payload has {lanes} coder lanes for {count} values")
    table = _table.read(reader, kind, top)
    symbols, spare = _rans.decode(reader.take(reader.varint(reader.left)), count, table, lanes)
    if spare.any():
        raise PayloadError("payload has coder lanes that do not end where they should")
    return symbols - np.uint8(top)
