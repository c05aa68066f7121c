"""Dense values in few bits each: a uniform quantizer per tensor, coded at the entropy of what comes out.

Zero stays zero, so masked weights stay masked. Body of a payload:

    1 byte      bits - 2 | shared << 3 | kind of the frequency table << 4
    varint      lanes of the entropy coder; if 0, every value is zero and nothing follows
    bytes       frequency table (``_table``)
    2 bytes each    scales (``_scale``) that did not find room in a lane; one per tensor, or one for all
    rest        the coded symbols (``_rans``), whose lanes carry the first scales

A decoded value is the scale times an integer of ``-top..top``, ``top = 2 ** (bits - 1) - 1``, with the fewest
bits that hold all levels of the payload.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fedge.codec import Codec, _rans, _table
from fedge.codec._container import OVERHEAD, Reader, varint
from fedge.codec._flat import Coder, Layout, Vector, assemble
from fedge.codec._noise import uniform
from fedge.codec._rate import check_budget, largest
from fedge.codec._scale import SMALLEST, from_code, to_code
from fedge.codec._step import Magnitudes, best_step, level_counts, magnitudes
from fedge.errors import ConfigError, PayloadError

_MOST_BITS = 8
_PER_LANE = 8192
"""Most symbols in a lane of the entropy coder, above one lane."""

Levels = NDArray[np.int8]
Codes = NDArray[np.uint16]
"""Scales in 16 bits: one per tensor, or one for all."""


@dataclass(frozen=True)
class Settings:
    """Knobs of ``quantized``.

    Attributes:
        bits: 2 to 8: a value becomes one of ``2 ** bits - 1`` levels. What is sent is entropy coded and
            takes less.
        dead_zone: 0 to 0.5: how much nearer (in steps) to the level away from zero a value must come
            before it rounds to it. Cheaper to code; the error feedback carries what is lost. None: 0, or
            what suits the budget.
        stochastic: round up or down at random so that the mean is exact; nothing is clipped.
        seed: of the random rounding, with the count of calls in the state; 0 to 2 ** 64 - 1.
        error_feedback: keep what rounding leaves out and add it to the next arrays; false for snapshots.
        budget_bytes: if given, ``bits`` is not used: all tensors share one step, the smallest with which
            the payload, container included, fits into this many bytes.
    """

    bits: int = 4
    dead_zone: float | None = None
    stochastic: bool = False
    seed: int = 0
    error_feedback: bool = True
    budget_bytes: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigError: a knob is out of its range, or two contradict each other.
        """
        if not 2 <= self.bits <= 8:
            raise ConfigError(f"bits is {self.bits}; give 2 to 8")
        if not 0 <= (self.dead_zone or 0) <= 0.5:
            raise ConfigError(f"dead_zone is {self.dead_zone}; give 0 to 0.5 (of a step)")
        if self.stochastic and self.dead_zone:
            raise ConfigError("stochastic rounding with a dead zone is not unbiased; set one of them")
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed is {self.seed}; give 0 to 2**64 - 1")
        check_budget(self.budget_bytes)


def build(settings: Settings) -> Codec:
    """The codec."""
    encode = partial(_encode, settings)
    return assemble("quantized", Coder(3, encode, _decode, settings.error_feedback, settings.stochastic))


def _encode(settings: Settings, vector: Vector, layout: Layout, counter: int) -> tuple[bytes, Vector]:
    rounding = _rounding(settings, layout.total)
    dither = _dither(settings, rounding, layout.total, counter)
    if settings.budget_bytes is None:
        codes, levels = _by_tensor(settings, vector, layout, rounding, dither)
        body = _pack(codes, levels)
    else:
        codes, levels, body = _within_budget(settings.budget_bytes, vector, rounding, dither)
    return body, _values(codes, levels, layout)


def _rounding(settings: Settings, count: int) -> float | None:
    """What is added to a magnitude in steps before it is cut to an integer; None: a random number.

    Under a budget of ``r`` bits a value, a dead zone of 0.3 - 0.1 r loses least (measured, see
    docs/decisions/codec-quantized.md).
    """
    if settings.stochastic:
        return None
    if settings.dead_zone is not None:
        return 0.5 - settings.dead_zone
    if settings.budget_bytes is None:
        return 0.5
    return 0.5 - max(0.0, 0.3 - 0.8 * settings.budget_bytes / max(count, 1))


def _dither(settings: Settings, rounding: float | None, count: int, counter: int) -> Vector:
    """``rounding`` for each entry, in [0, 1)."""
    if rounding is not None:
        return np.broadcast_to(np.float32(rounding), (count,))
    return uniform(count, settings.seed, counter)


def _finest(sizes: Magnitudes, top: int, rounding: float | None) -> int:
    """The code of the step of least squared error, or, for random rounding, the least without clipping."""
    if rounding is None:
        return to_code(sizes.peak / top, up=True)
    return to_code(best_step(sizes, top, rounding))


def _by_tensor(
    settings: Settings, vector: Vector, layout: Layout, rounding: float | None, dither: Vector
) -> tuple[Codes, Levels]:
    top = _top(settings.bits)
    codes = np.array([_finest(magnitudes(piece), top, rounding) for piece in layout.split(vector)], np.uint16)
    levels = np.empty(len(vector), np.int8)
    rows = zip(codes, layout.split(vector), layout.split(dither), layout.split(levels), strict=True)
    for code, piece, noise, out in rows:
        out[:] = _levels(piece, code, top, noise)
    return codes, levels


def _within_budget(
    budget: int, vector: Vector, rounding: float | None, dither: Vector
) -> tuple[Codes, Levels, bytes]:
    """One step for all tensors, as fine as fits: the least squared error that a uniform quantizer has there.

    The step is searched with the expected size, and made coarser until the true size fits.
    """
    top, sizes = _top(_MOST_BITS), magnitudes(vector)
    finest = max(_finest(sizes, top, rounding), SMALLEST)
    coarsest = max(finest, to_code(2.0 * float(sizes.values @ sizes.weights), up=True))

    def fits(fineness: int) -> bool:
        step = float(from_code(np.array([coarsest - fineness], np.uint16))[0])
        counts = level_counts(sizes, step, top, rounding)
        used = int(np.flatnonzero(counts[top:]).max(initial=1))
        bits = _table.fit(counts[top - used : top + used + 1], used).bits if counts.any() else 0
        return OVERHEAD + 3 + bits / 8 + 3 * _lanes(bits, len(vector)) <= budget

    code, stride = coarsest - largest(fits, 0, coarsest - finest), 1
    while code <= coarsest:
        levels = _levels(vector, np.uint16(code), top, dither)
        body = _pack(np.array([code], np.uint16), levels)
        if OVERHEAD + len(body) <= budget:
            return np.array([code], np.uint16), levels, body
        code, stride = code + stride, 2 * stride
    nothing = np.zeros(len(vector), np.int8)
    return np.zeros(1, np.uint16), nothing, _pack(np.zeros(1, np.uint16), nothing)


def _levels(values: Vector, code: np.uint16, top: int, dither: Vector) -> Levels:
    scale = from_code(np.array([code], np.uint16))[0]
    if not scale:
        return np.zeros(len(values), np.int8)
    steps = np.abs(values)
    steps /= scale
    steps += dither
    level = np.minimum(steps, np.float32(top), out=steps).astype(np.int8)
    return np.where(np.signbit(values), -level, level)


def _values(codes: Codes, levels: Levels, layout: Layout) -> Vector:
    flat, scales = levels.astype(np.float32), from_code(codes)
    pieces = [flat] if len(codes) == 1 else layout.split(flat)
    for piece, scale in zip(pieces, scales, strict=True):
        np.multiply(piece, scale, out=piece)
    return flat


def _top(bits: int) -> int:
    return (1 << (bits - 1)) - 1


def _pack(codes: Codes, levels: Levels) -> bytes:
    """The body of the payload."""
    used = max(int(levels.max(initial=0)), -int(levels.min(initial=0)))
    bits = max(used.bit_length() + 1, 2)
    head = bits - 2 | (len(codes) == 1) << 3
    if not used:
        return bytes([head]) + varint(0)
    top = _top(bits)
    symbols = (levels + np.int8(top)).view(np.uint8)
    fit = _table.fit(np.bincount(symbols, minlength=2 * top + 1), top)
    lanes = _lanes(fit.bits, len(symbols))
    spare = np.zeros(lanes, np.uint16)
    spare[: len(codes)] = codes[:lanes]
    return b"".join(
        [
            bytes([head | fit.kind << 4]) + varint(lanes),
            fit.data,
            codes[lanes:].astype("<u2").tobytes(),
            _rans.encode(symbols, fit.table, lanes, spare),
        ]
    )


def _lanes(bits: float, symbols: int) -> int:
    """One for 400 bytes of payload, which costs it 0.75 % and less where lanes carry scales.

    At least one for 8192 symbols, so that no payload takes more steps than that to decode.
    """
    return min(max(1, int(bits) // (8 * 400), symbols // _PER_LANE), symbols)


def _decode(reader: Reader, layout: Layout) -> Vector:
    first = reader.take(1)[0]
    bits, shared, kind = (first & 7) + 2, first >> 3 & 1, first >> 4
    if bits > _MOST_BITS or kind > _table.KNOTS:
        raise PayloadError(f"payload has {bits} bits and table kind {kind}; expected up to 8 and up to 2")
    scales, top = 1 if shared else len(layout.sizes), _top(bits)
    lanes = reader.varint(min(layout.total, reader.left // 4))
    if not lanes:
        return np.zeros(layout.total, np.float32)
    if lanes < layout.total // _PER_LANE:
        raise PayloadError(f"payload has {lanes} coder lanes; expected at least {layout.total // _PER_LANE}")
    table = _table.read(reader, kind, top)
    codes = np.frombuffer(reader.take(2 * max(scales - lanes, 0)), "<u2").astype(np.uint16)
    symbols, spare = _rans.decode(reader.rest(), layout.total, table, lanes)
    if spare[scales:].any():
        raise PayloadError("payload has coder lanes that do not end where they should")
    # 0..2 * top fits into int8 but for 8 bits, where the wrap-around of the subtraction sets it right.
    levels = symbols.view(np.int8) - np.int8(top)
    return _values(np.concatenate([spare[:scales], codes]), levels, layout)
