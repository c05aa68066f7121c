"""From named arrays to one flat vector and back, and from a coder of vectors to a ``Codec``.

Whatever all codecs must do is here once: shapes and finite values are checked, the residual of error
feedback is added and kept, the container is closed and opened, decoded values are held against the limits.
"""

import json
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fedge.codec import Arrays, Codec, Limits, Shapes, State
from fedge.codec._container import Reader, seal, unseal
from fedge.errors import PayloadError

Vector = NDArray[np.float32]
_T = TypeVar("_T", bound=np.generic)

MAX_ENTRIES = 2**31 - 1
"""Largest number of entries of all arrays together."""


@dataclass(frozen=True)
class Layout:
    """Where each named array lies in the flat vector.

    Attributes:
        names: of the arrays, in order.
        shapes: of the arrays, in the same order.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(shapes: Shapes) -> "Layout":
        """The layout of arrays of these names and shapes.

        Raises:
            PayloadError: a dimension is negative, or there are more than ``MAX_ENTRIES`` entries.
        """
        return _layout(tuple(shapes), tuple(tuple(s) for s in shapes.values()))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Entries of each array."""
        return tuple(math.prod(s) for s in self.shapes)

    @cached_property
    def total(self) -> int:
        """Entries of all arrays."""
        return sum(self.sizes)

    @cached_property
    def text(self) -> bytes:
        """Names and shapes as canonical JSON."""
        return json.dumps([self.names, self.shapes], separators=(",", ":")).encode()

    @cached_property
    def digest(self) -> int:
        """CRC-32 of names and shapes."""
        return zlib.crc32(self.text)

    @cached_property
    def places(self) -> tuple[slice, ...]:
        """Where each array lies."""
        return tuple(slice(start, end) for start, end in pairwise(accumulate(self.sizes, initial=0)))

    def split(self, flat: NDArray[_T]) -> list[NDArray[_T]]:
        """Views of the ``[total]`` vector, one flat piece per array."""
        return [flat[place] for place in self.places]


@lru_cache(maxsize=16)
def _layout(names: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]) -> Layout:
    """Kept: a server asks for the same one with every update."""
    layout = Layout(names, tuple(tuple(int(d) for d in s) for s in shapes))
    if any(d < 0 for s in layout.shapes for d in s) or layout.total > MAX_ENTRIES:
        raise PayloadError(f"shapes are negative, or hold more than {MAX_ENTRIES} entries")
    return layout


Encode = Callable[[Vector, Layout, int], tuple[bytes, Vector]]
"""``(vector, layout, counter) -> (body, decoded)``: ``decoded`` is bit for bit what a receiver gets."""

Decode = Callable[[Reader, Layout], Vector]
"""``(reader, layout) -> vector``: raises ``PayloadError``; memory is bounded by shapes and payload."""


@dataclass(frozen=True)
class Coder:
    """A codec of flat vectors.

    Attributes:
        number: names the codec in the first byte of a payload; 0..31, never given twice.
        encode: see ``Encode``.
        decode: see ``Decode``.
        error_feedback: whether what a payload leaves out is kept and added to the next arrays.
        counts: whether the state counts calls (for what is drawn anew in each).
    """

    number: int
    encode: Encode
    decode: Decode
    error_feedback: bool = False
    counts: bool = False


def assemble(name: str, coder: Coder, *, additive: bool = False) -> Codec:
    """The ``Codec`` around a coder of flat vectors."""

    def init(shapes: Shapes) -> State:
        layout = Layout.of(shapes)
        state: dict[str, NDArray[np.generic]] = {"layout": np.frombuffer(layout.text, np.uint8)}
        if coder.error_feedback:
            state["residual"] = np.zeros(layout.total, np.float32)
        if coder.counts:
            state["counter"] = np.zeros(1, np.uint64)
        return state

    def encode(state: State, arrays: Arrays) -> tuple[State, bytes]:
        layout = Layout.of({k: v.shape for k, v in arrays.items()})
        _check_state(state, layout, coder)
        vector = _gather(arrays, layout)
        after = dict(state)
        if coder.error_feedback:
            vector = _plus(vector, state["residual"])
        counter = int(state["counter"].astype(np.uint64)[0]) if coder.counts else 0
        body, decoded = coder.encode(vector, layout, counter)
        if coder.error_feedback:
            after["residual"] = _plus(vector, -decoded)
        if coder.counts:
            after["counter"] = np.array([(counter + 1) % 2**64], np.uint64)
        return after, seal(coder.number, body, layout.digest)

    def decode(payload: bytes, limits: Limits) -> dict[str, Vector]:
        layout = Layout.of(limits.shapes)
        reader = unseal(payload, coder.number, layout.digest, limits.max_bytes)
        flat = coder.decode(reader, layout)
        reader.end()
        _within(flat, limits.max_abs)
        pieces = zip(layout.names, layout.shapes, layout.split(flat), strict=True)
        return {k: piece.astype(np.float32, copy=False).reshape(shape) for k, shape, piece in pieces}

    return Codec(name, additive, init, encode, decode)


def residual(state: State) -> dict[str, Vector]:
    """The residual that ``state`` carries, by name and in shape; empty without error feedback."""
    if "residual" not in state:
        return {}
    names, shapes = json.loads(state["layout"].tobytes())
    layout = Layout(tuple(names), tuple(tuple(s) for s in shapes))
    pieces = zip(layout.names, layout.shapes, layout.split(state["residual"]), strict=True)
    return {k: piece.astype(np.float32).reshape(shape) for k, shape, piece in pieces}


def _check_state(state: State, layout: Layout, coder: Coder) -> None:
    needed = {"layout"} | ({"residual"} if coder.error_feedback else set())
    needed |= {"counter"} if coder.counts else set()
    if set(state) != needed:
        raise PayloadError(f"the codec's state holds {sorted(state)}; expected {sorted(needed)}")
    if state["layout"].tobytes() != layout.text:
        raise PayloadError("arrays have other names, order or shapes than the codec's state was made for")
    for key, shape in (("residual", (layout.total,)), ("counter", (1,))):
        if key in state and state[key].shape != shape:
            raise PayloadError(f"the state's {key} has shape {state[key].shape}; expected {shape}")


def _gather(arrays: Arrays, layout: Layout) -> Vector:
    for name, a in arrays.items():
        if a.dtype.newbyteorder("=") != np.float32:
            raise PayloadError(f"array {name!r} has type {a.dtype}; expected float32")
        if not np.isfinite(a).all():
            raise PayloadError(f"array {name!r} has values that are not finite (infinite or NaN)")
    flat = np.empty(layout.total, np.float32)
    for piece, a in zip(layout.split(flat), arrays.values(), strict=True):
        piece[:] = a.reshape(-1)
    return flat


def _plus(a: Vector, b: NDArray[np.generic]) -> Vector:
    with np.errstate(over="ignore", invalid="ignore"):
        total: Vector = a + b.astype(np.float32, copy=False)
    if not np.isfinite(total).all():
        raise PayloadError("arrays and residual together leave the range of float32")
    return total


def _within(flat: Vector, max_abs: float) -> None:
    largest = float(np.maximum.reduce(np.abs(flat), initial=0.0))
    if not largest <= max_abs:
        raise PayloadError(f"payload holds a value of magnitude {largest:.6g}; the limit is {max_abs:.6g}")
