"""What a delta is made of: pieces of the new file, predicted from the old one or from others of the new one.

Every piece says how many bytes it makes. They follow each other without a gap, so a file is rebuilt by
filling a buffer; where a prediction needs other bytes of the new file, those were filled in before.

    LITERAL             from the literals
    COPY                from the old file
    INT8, INT32         the old file's values, or 0 without a source, plus what is coded
    PRODUCT             float32 values elsewhere in the new file times a float32 scalar elsewhere in it
    SCALED8, SCALED32   the old file's integers times their old step, in units of the new step, rounded, plus
                        what is coded; one step for each of ``rows`` rows
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from fedge.codec._container import Reader, varint
from fedge.errors import PayloadError

Ints = NDArray[np.int64]
MAX_SEGMENTS, MAX_CONTEXTS = 1 << 12, 256


class Kind(IntEnum):
    """See the top of this file."""

    LITERAL = 0
    COPY = 1
    INT8 = 2
    INT32 = 3
    PRODUCT = 4
    SCALED8 = 5
    SCALED32 = 6


WIDTHS: Mapping[Kind, int] = {Kind.INT8: 1, Kind.SCALED8: 1, Kind.INT32: 4, Kind.SCALED32: 4}
"""Bytes of a value, for those kinds of which something is coded."""
PLAIN = (Kind.INT8, Kind.INT32)
SCALED = (Kind.SCALED8, Kind.SCALED32)
_MOST = {1: 127, 4: 2**31 - 1}


@dataclass(frozen=True)
class Segment:
    """One piece. Offsets are from the start of the file.

    Attributes:
        kind: how it is made.
        size: bytes that it makes.
        source: where its values start in the old file; None for values that are 0.
        context: with which others its values are coded.
        rows: steps, or factors of a product.
        old_steps: where the old steps (float32) start in the old file.
        new_steps: where the new steps, or the factors, start in the new file.
        scalar: where the scalar of a product is in the new file.
    """

    kind: Kind
    size: int
    source: int | None = None
    context: int = 0
    rows: int = 0
    old_steps: int = 0
    new_steps: int = 0
    scalar: int = 0

    def to_bytes(self) -> bytes:
        """As varints."""
        numbers = [int(self.kind), self.size]
        if self.kind is not Kind.LITERAL and self.kind is not Kind.PRODUCT:
            numbers.append(0 if self.source is None else self.source + 1)
        if self.kind in WIDTHS:
            numbers.append(self.context)
        if self.kind in SCALED:
            numbers += [self.rows, self.old_steps, self.new_steps]
        if self.kind is Kind.PRODUCT:
            numbers += [self.new_steps, self.scalar]
        return b"".join(map(varint, numbers))


def read(reader: Reader, old: int, new: int) -> list[Segment]:
    """The segments of a file of ``new`` bytes, made from one of ``old`` bytes, until nothing is left.

    Raises:
        PayloadError: one is of an unknown kind, reaches beyond one of the files, or they do not add up.
    """
    found: list[Segment] = []
    left = new
    while reader.left:
        segment = _read_one(reader, old, new, left)
        left -= segment.size
        found.append(segment)
        if len(found) > MAX_SEGMENTS:
            raise PayloadError(f"payload has more than {MAX_SEGMENTS} segments")
    if left:
        raise PayloadError(f"payload's segments leave {left} bytes out")
    return found


def predicted(segment: Segment, old: bytes, new: bytearray) -> Ints:
    """The values that ``segment`` is predicted to have, within its width."""
    width = WIDTHS[segment.kind]
    count = segment.size // width
    if segment.source is None:
        return np.zeros(count, np.int64)
    values = np.frombuffer(old, f"<i{width}", count, segment.source).astype(np.int64)
    if segment.kind not in SCALED:
        return values
    before = np.frombuffer(old, "<f4", segment.rows, segment.old_steps).astype(np.float64)
    after = np.frombuffer(new, "<f4", segment.rows, segment.new_steps).astype(np.float64)
    with np.errstate(all="ignore"):  # each operation is correctly rounded: the same on every machine
        scaled = np.rint(values.reshape(segment.rows, -1) * (before / after)[:, np.newaxis])
    most = _MOST[width]
    finite = np.nan_to_num(scaled, nan=0.0, posinf=most, neginf=-most)
    whole: Ints = np.clip(finite, -most, most).astype(np.int64).ravel()
    return whole


def product(segment: Segment, new: bytearray) -> bytes:
    """The content of a ``PRODUCT``."""
    factors = np.frombuffer(new, "<f4", segment.size // 4, segment.new_steps)
    with np.errstate(all="ignore"):
        values = factors * np.frombuffer(new, "<f4", 1, segment.scalar)
    return bytes(values.astype("<f4").tobytes())


def _read_one(reader: Reader, old: int, new: int, left: int) -> Segment:
    number, size = reader.varint(max(Kind)), reader.varint(left)
    kind, rows, steps = Kind(number), 0, (0, 0)
    source, context, scalar = None, 0, 0
    if kind is not Kind.LITERAL and kind is not Kind.PRODUCT:
        at = reader.varint(old + 1)
        source = at - 1 if at else None
    if kind in WIDTHS:
        context = reader.varint(MAX_CONTEXTS - 1)
    if kind in SCALED:
        rows, *offsets = reader.varint(size // WIDTHS[kind]), reader.varint(old), reader.varint(new)
        steps = offsets[0], offsets[1]
    if kind is Kind.PRODUCT:
        steps, scalar = (0, reader.varint(new)), reader.varint(new)
    segment = Segment(kind, size, source, context, rows, steps[0], steps[1], scalar)
    _check(segment, old, new)
    return segment


def _check(segment: Segment, old: int, new: int) -> None:
    """Whether all that the segment reads is there, and its values are whole."""
    kind, size, rows = segment.kind, segment.size, segment.rows
    sound = size > 0 and size % WIDTHS.get(kind, 4 if kind is Kind.PRODUCT else 1) == 0
    if segment.source is not None:
        sound = sound and segment.source + size <= old
    elif kind is Kind.COPY or kind in SCALED:
        sound = False
    if kind in SCALED:
        whole = rows > 0 and size % (rows * WIDTHS[kind]) == 0
        sound = sound and whole and max(segment.old_steps - old, segment.new_steps - new) + 4 * rows <= 0
    if kind is Kind.PRODUCT:
        sound = sound and max(segment.new_steps + size, segment.scalar + 4) <= new
    if not sound:
        raise PayloadError(f"payload has a {kind.name} segment of {size} bytes that does not fit the files")
