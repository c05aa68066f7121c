"""A model file from another one, in few bytes: what travels of a release to a device that has an earlier one.

The weights of one release are predicted from those of the other: int8 weights are its integers in units of
the new steps, and only what remains is coded: apart for weights that are predicted to be zero (cut ones stay
so) and for the others. Everything else is copied, computed (the steps of biases), or sent as it is.

A payload is a container (``fedge.codec._container``) whose checksum also covers the old file:

    varint size of the new file
    varint size of the segments, varint length, zlib stream    see ``fedge.release._segments``
    varint length, zlib stream of all literals                 the old file's start is its dictionary
    streams of what remains (``fedge.release._streams``), phase by phase, context by context:
        one byte a value     values predicted as 0, then the others
        four bytes a value   (r << 1) ^ (r >> 31), least significant byte first, a stream for each byte

Rebuilding needs no ONNX library and no trust in the payload: it makes as many bytes as that says, up to a
limit, or raises. Whether these are the right ones is for the signed hash to say.
"""

import zlib
from collections.abc import Collection
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from fedge.codec import _container
from fedge.codec._container import Reader, varint
from fedge.release import _segments, _streams
from fedge.release._plan import plan
from fedge.release._segments import PLAIN, SCALED, WIDTHS, Kind, Segment

Placed = tuple[int, Segment]
"""Where a segment starts in the new file, and the segment."""

_NUMBER = 31
"""Stands where the number of a codec does."""
_DICTIONARY = 1 << 15
_MAX_TABLE_BYTES = 24 * _segments.MAX_SEGMENTS
_SLACK = 1 << 16
"""By how much a payload may be longer than the file that it makes."""
_NOTHING = b""


def encode(old: bytes, new: bytes) -> bytes | None:
    """What leads from ``old`` to ``new``; None where the whole of ``new``, packed, is not longer."""
    payload = _encode(old, new)
    return payload if len(payload) < len(pack(new)) else None


def decode(old: bytes, delta: bytes, limit: int) -> bytes:
    """The file that ``delta``, from a source that is not trusted, makes of ``old``: at most ``limit`` bytes.

    Raises:
        PayloadError: the delta is damaged, was made for another old file, or makes a longer one.
    """
    reader = _container.unseal(delta, _NUMBER, zlib.crc32(old), limit + _container.OVERHEAD + _SLACK)
    size = reader.varint(limit)
    table = _take_inflated(reader, reader.varint(_MAX_TABLE_BYTES), b"")
    placed = _placed(_segments.read(Reader(table), len(old), size))
    literals = sum(s.size for _, s in placed if s.kind is Kind.LITERAL)
    new = bytearray(size)
    _fill(placed, old, _take_inflated(reader, literals, old[:_DICTIONARY]), new)
    for group in _groups(placed, PLAIN):
        _read_group(group, old, new, reader)
    for start, segment in placed:
        if segment.kind is Kind.PRODUCT:
            new[start : start + segment.size] = _segments.product(segment, new)
    for group in _groups(placed, SCALED):
        _read_group(group, old, new, reader)
    reader.end()
    return bytes(new)


def pack(model: bytes) -> bytes:
    """The whole of a model file, entropy coded: for a device that has none."""
    return _encode(_NOTHING, model)


def unpack(packed: bytes, limit: int) -> bytes:
    """The inverse of :func:`pack`, for a source that is not trusted: at most ``limit`` bytes.

    Raises:
        PayloadError: it is damaged, or makes a longer file.
    """
    return decode(_NOTHING, packed, limit)


def _encode(old: bytes, new: bytes) -> bytes:
    placed = _placed(plan(old, new))
    table = b"".join(segment.to_bytes() for _, segment in placed)
    text = b"".join(new[at : at + s.size] for at, s in placed if s.kind is Kind.LITERAL)
    parts = [varint(len(new)), varint(len(table)), _deflated(table, b""), _deflated(text, old[:_DICTIONARY])]
    whole = bytearray(new)
    for kinds in (PLAIN, SCALED):
        parts += [_write_group(group, old, whole) for group in _groups(placed, kinds)]
    return _container.seal(_NUMBER, b"".join(parts), zlib.crc32(old))


def _placed(segments: list[Segment]) -> list[Placed]:
    starts = accumulate((s.size for s in segments), initial=0)
    return list(zip(starts, segments, strict=False))


def _groups(placed: list[Placed], kinds: Collection[Kind]) -> list[list[Placed]]:
    """The segments of these kinds that are coded together, in the order in which they are coded."""
    groups: dict[tuple[int, int], list[Placed]] = {}
    for start, segment in placed:
        if segment.kind in kinds:
            groups.setdefault((WIDTHS[segment.kind], segment.context), []).append((start, segment))
    return [groups[key] for key in sorted(groups)]


def _fill(placed: list[Placed], old: bytes, text: bytes, new: bytearray) -> None:
    """Put literals and copies in place."""
    at = 0
    for start, segment in placed:
        if segment.kind is Kind.LITERAL:
            new[start : start + segment.size] = text[at : at + segment.size]
            at += segment.size
        elif segment.kind is Kind.COPY and segment.source is not None:
            new[start : start + segment.size] = old[segment.source : segment.source + segment.size]


def _write_group(group: list[Placed], old: bytes, new: bytearray) -> bytes:
    """What remains of the group's values, coded."""
    width = WIDTHS[group[0][1].kind]
    found = [np.frombuffer(new, f"<i{width}", s.size // width, at) for at, s in group]
    expected = np.concatenate([_segments.predicted(s, old, new) for _, s in group])
    rest = np.concatenate(found).astype(np.int64) - expected
    if width == 1:
        small, zero = rest.astype(np.uint8), expected == 0
        return _streams.write(small[zero]) + _streams.write(small[~zero])
    folded = _fold(rest.astype(np.int32)).astype("<u4").view(np.uint8).reshape(-1, width)
    return b"".join(_streams.write(np.ascontiguousarray(plane)) for plane in folded.T)


def _read_group(group: list[Placed], old: bytes, new: bytearray, reader: Reader) -> None:
    """Put the group's values in place."""
    width = WIDTHS[group[0][1].kind]
    expected = np.concatenate([_segments.predicted(s, old, new) for _, s in group])
    rest = np.empty(len(expected), np.int64)
    if width == 1:
        zero = expected == 0
        for where in (zero, ~zero):
            rest[where] = _streams.read(reader, int(where.sum()))
    else:
        planes = [_streams.read(reader, len(expected)) for _ in range(width)]
        rest[:] = _unfold(np.stack(planes, axis=1).view("<u4").ravel().astype(np.uint32))
    values = (expected + rest).astype(f"<i{width}").tobytes()
    at = 0
    for start, segment in group:
        new[start : start + segment.size] = values[at : at + segment.size]
        at += segment.size


def _fold(numbers: NDArray[np.int32]) -> NDArray[np.uint32]:
    """0, -1, 1, -2, ... to 0, 1, 2, 3, ..."""
    return ((numbers << 1) ^ (numbers >> 31)).view(np.uint32)


def _unfold(folded: NDArray[np.uint32]) -> NDArray[np.int32]:
    return (folded >> np.uint32(1)).view(np.int32) ^ -(folded & np.uint32(1)).view(np.int32)


def _deflated(content: bytes, dictionary: bytes) -> bytes:
    """A zlib stream with its length in front."""
    stream = zlib.compressobj(9, zdict=dictionary)
    packed = stream.compress(content) + stream.flush()
    return varint(len(packed)) + packed


def _take_inflated(reader: Reader, size: int, dictionary: bytes) -> bytes:
    return _streams.inflate(reader.take(reader.varint(reader.left)), size, dictionary)
