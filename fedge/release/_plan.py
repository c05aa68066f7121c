"""Which pieces a delta is made of: the constants of both models side by side, and what lies between them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from fedge.release import _protobuf
from fedge.release._protobuf import FLOAT, INT8, INT32, Tensor
from fedge.release._segments import MAX_CONTEXTS, MAX_SEGMENTS, Kind, Segment

_WIDTHS = {FLOAT: 4, INT8: 1, INT32: 4}
_PLAIN = {FLOAT: Kind.INT32, INT8: Kind.INT8, INT32: Kind.INT32}
_SCALED = {INT8: Kind.SCALED8, INT32: Kind.SCALED32}
_SCALAR = 4
_FEW, _MANY = 16, 256
"""Bytes below which a constant is left where it lies, and values from which one is coded apart."""
_FLOATS, _INTS, _SMALL, _OWN = 0, 1, 2, 3
"""Contexts: steps, biases, small weights; then one for each large constant."""
_MOST_FACTORS, _MOST_SCALARS, _NEAR = 1 << 14, 256, 4


def plan(old: bytes, new: bytes) -> list[Segment]:
    """Segments that make ``new`` from ``old``, which may be empty; neither needs to be a model."""
    mine, theirs = _tensors(new), {t.name: t for t in _tensors(old)}
    known = {t.name: t for t in mine}
    scalars = [t for t in mine if (t.kind, t.size) == (FLOAT, _SCALAR)][:_MOST_SCALARS]
    steps: dict[int, list[Tensor]] = {}  # the float constants so far that are no products, by size
    segments: list[Segment] = []
    at = before = 0
    for context, tensor in enumerate(t for t in mine if _is_coded(t)):
        base = _alike(tensor, theirs)
        end = before + tensor.offset - at if base is None else base.offset
        segments += _between(new[at : tensor.offset], old, before, end)
        content = new[tensor.offset : tensor.offset + tensor.size]
        if base is not None and old[base.offset : base.offset + base.size] == content:
            segments.append(Segment(Kind.COPY, tensor.size, base.offset))
        elif factors := _factors(tensor, new, steps.get(tensor.size, [])[-_NEAR:], scalars):
            segments.append(Segment(Kind.PRODUCT, tensor.size, new_steps=factors[0], scalar=factors[1]))
        else:
            segments.append(replace(_coded(tensor, base, known, theirs), context=_context(tensor, context)))
        if tensor.kind == FLOAT and segments[-1].kind is not Kind.PRODUCT:
            steps.setdefault(tensor.size, []).append(tensor)
        at, before = tensor.offset + tensor.size, end + tensor.size
    segments += _between(new[at:], old, before, max(before, len(old)))
    merged = _merged([s for s in segments if s.size])
    return merged if len(merged) <= MAX_SEGMENTS else [Segment(Kind.LITERAL, len(new))]


def _tensors(model: bytes) -> list[Tensor]:
    try:
        return _protobuf.tensors(model)
    except ValueError:
        return []


def _is_coded(tensor: Tensor) -> bool:
    """Weights, biases and steps; not the zero points, nor what is too small to be worth a segment."""
    wanted = tensor.kind == FLOAT or tensor.step is not None
    return wanted and tensor.size >= _FEW and tensor.size % _WIDTHS.get(tensor.kind, tensor.size + 1) == 0


def _alike(tensor: Tensor, theirs: Mapping[bytes, Tensor]) -> Tensor | None:
    other = theirs.get(tensor.name)
    return other if other and (other.kind, other.size) == (tensor.kind, tensor.size) else None


def _context(tensor: Tensor, number: int) -> int:
    if tensor.size // _WIDTHS[tensor.kind] >= _MANY:
        return _OWN + number % (MAX_CONTEXTS - _OWN)
    return {FLOAT: _FLOATS, INT8: _SMALL, INT32: _INTS}[tensor.kind]


def _coded(
    tensor: Tensor, base: Tensor | None, known: Mapping[bytes, Tensor], theirs: Mapping[bytes, Tensor]
) -> Segment:
    """From the old integers in units of the new steps, where both have some; else from the old values."""
    source = None if base is None else base.offset
    plain = Segment(_PLAIN[tensor.kind], tensor.size, source)
    if base is None or tensor.step is None or base.step is None or tensor.kind not in _SCALED:
        return plain
    new, old = known.get(tensor.step), theirs.get(base.step)
    if new is None or old is None or (new.kind, new.size) != (FLOAT, old.size):
        return plain
    rows = new.size // _WIDTHS[FLOAT]
    if not rows or tensor.size // _WIDTHS[tensor.kind] % rows:
        return plain
    return replace(plain, kind=_SCALED[tensor.kind], rows=rows, old_steps=old.offset, new_steps=new.offset)


def _factors(
    tensor: Tensor, new: bytes, before: Sequence[Tensor], scalars: Sequence[Tensor]
) -> tuple[int, int] | None:
    """Where a constant of ``before`` and a scalar lie whose product this one is, as a bias's steps are."""
    if tensor.kind != FLOAT or tensor.size > _MOST_FACTORS or not scalars:
        return None
    content = np.frombuffer(new, "<f4", tensor.size // 4, tensor.offset)
    numbers = np.array([np.frombuffer(new, "<f4", 1, t.offset)[0] for t in scalars], np.float32)
    for other in before:
        factors = np.frombuffer(new, "<f4", len(content), other.offset)
        with np.errstate(all="ignore"):
            hits = np.flatnonzero((np.multiply.outer(numbers, factors) == content).all(axis=1))
        if len(hits):
            return other.offset, scalars[hits[0]].offset
    return None


def _between(gap: bytes, old: bytes, start: int, end: int) -> list[Segment]:
    """What lies between two constants, most often as in ``old[start:end]``: its two ends are copied."""
    there = old[start:end]
    head = _common(gap, there)
    tail = _common(gap[head:][::-1], there[head:][::-1])
    return [
        Segment(Kind.COPY, head, start),
        Segment(Kind.LITERAL, len(gap) - head - tail),
        Segment(Kind.COPY, tail, max(start, min(end, len(old)) - tail)),
    ]


def _common(a: bytes, b: bytes) -> int:
    """How many bytes at the start are the same."""
    size = min(len(a), len(b))
    differ = np.flatnonzero(np.frombuffer(a, np.uint8, size) != np.frombuffer(b, np.uint8, size))
    return int(differ[0]) if len(differ) else size


def _merged(segments: Sequence[Segment]) -> list[Segment]:
    """Literals, and copies that go on where the last one ended, as one."""
    found: list[Segment] = []
    for segment in segments:
        last = found[-1] if found else None
        if last and last.kind is segment.kind and segment.kind in (Kind.LITERAL, Kind.COPY):
            goes_on = last.source is None or segment.source == last.source + last.size
            if goes_on:
                found[-1] = replace(last, size=last.size + segment.size)
                continue
        found.append(segment)
    return found
