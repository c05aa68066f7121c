"""A few dozen coefficients in a random subspace that is drawn anew for every payload.

Training in random subspaces: Li et al. 2018 (arXiv 1804.08838); redrawn each time: Gressmann et al. 2020
(arXiv 2011.04720). Basis vector ``j`` has random signs at the entries ``j, j + d, j + 2d, ...`` and zeros
elsewhere: orthogonal, of equal length, and one pass over the entries for any number of dimensions ``d``.
(As good as dense random signs: docs/decisions/codec-subspace.md.) Body of a payload:

    varint      seed
    varint      counter: of the payloads made from this state
    varint      dimensions d; nothing follows if 0
    2 bytes     scale (``_scale``)
    4 bits each     d levels 0..15, high half first, zeros to a byte

Entry ``i`` decodes to sign ``i`` * scale * (2 * level - 15) with the level of dimension ``i % d``. Signs are
the bits that ``_noise`` gives for seed and counter: 1 is negative.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fedge.codec import Codec
from fedge.codec._container import Reader, varint
from fedge.codec._flat import Coder, Layout, Vector, assemble
from fedge.codec._noise import bits
from fedge.codec._scale import from_code, to_code
from fedge.errors import ConfigError, PayloadError

MOST_DIMENSIONS = 4096
_MOST_COUNT = 2**64 - 1


@dataclass(frozen=True)
class Settings:
    """Knobs of ``subspace``.

    Attributes:
        dimensions: coefficients in a payload, half a byte each; 1 to 4096.
        seed: of the bases, with the count of calls in the state; 0 to 2 ** 64 - 1. Small ones are shorter.
            Clients with the same seed and count work in the same subspace.
        gain: what the projection is multiplied by, above 0 and up to 1e6. 1 has the least squared error,
            entries / dimensions is unbiased for arrays that were not trained in the subspace.
        error_feedback: keep what the subspace misses and add it to the next arrays.
    """

    dimensions: int = 64
    seed: int = 0
    gain: float = 1.0
    error_feedback: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot work.

        Raises:
            ConfigError: a knob is out of its range.
        """
        if not 1 <= self.dimensions <= MOST_DIMENSIONS:
            raise ConfigError(f"dimensions is {self.dimensions}; give 1 to {MOST_DIMENSIONS}")
        if not 0 <= self.seed <= _MOST_COUNT:
            raise ConfigError(f"seed is {self.seed}; give 0 to 2**64 - 1")
        if not 0 < self.gain <= 1e6:
            raise ConfigError(f"gain is {self.gain}; give one above 0 and up to 1e6")


def build(settings: Settings) -> Codec:
    """The codec."""
    coder = Coder(4, partial(_encode, settings), _decode, settings.error_feedback, counts=True)
    return assemble("subspace", coder)


def project(vector: Vector, dimensions: int, seed: int, counter: int) -> Vector:
    """``vector`` (``[n]``, the arrays one after the other) projected on a subspace, nothing quantized.

    For clients that train inside the subspace of their next payload.
    """
    negative = bits(len(vector), seed, counter)
    return _spread(_means(vector, negative, min(dimensions, len(vector))).astype(np.float32), negative)


def _encode(settings: Settings, vector: Vector, layout: Layout, counter: int) -> tuple[bytes, Vector]:  # noqa: ARG001  (the signature of every coder)
    d = min(settings.dimensions, len(vector))
    head = varint(settings.seed) + varint(counter) + varint(d)
    if not d:
        return head, vector
    negative = bits(len(vector), settings.seed, counter)
    code, levels = _quantize(_means(vector, negative, d) * settings.gain)
    pairs = np.append(levels, np.zeros(d % 2, np.uint8)).reshape(-1, 2)
    packed = (pairs[:, 0] << 4 | pairs[:, 1]).astype(np.uint8).tobytes()
    return head + code.to_bytes(2, "little") + packed, _values(code, levels, negative)


def _quantize(means: NDArray[np.float64]) -> tuple[int, NDArray[np.uint8]]:
    """The code of half a step, and levels 0..15, for the least squared error."""
    peak = float(np.abs(means).max())

    def levels(code: int) -> NDArray[np.float64]:
        half = float(from_code(np.array([code], np.uint16))[0])
        return np.clip(np.floor(means / (2 * half)) + 8, 0, 15) if half else np.full(len(means), 8.0)

    def error(code: int) -> float:
        half = float(from_code(np.array([code], np.uint16))[0])
        return float(np.square(means - half * (2 * levels(code) - 15)).sum())

    code = min({to_code(peak / 15 * share / 32) for share in range(8, 36)}, key=error)
    return code, levels(code).astype(np.uint8)


def _decode(reader: Reader, layout: Layout) -> Vector:
    seed, counter = reader.varint(_MOST_COUNT), reader.varint(_MOST_COUNT)
    d = reader.varint(min(layout.total, MOST_DIMENSIONS))
    if not d:
        return np.zeros(layout.total, np.float32)
    code = int.from_bytes(reader.take(2), "little")
    packed = np.frombuffer(reader.take(-(-d // 2)), np.uint8)
    levels = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)
    if levels[d:].any():
        raise PayloadError("payload has trailing bits")
    return _values(code, levels[:d], bits(layout.total, seed, counter))


def _values(code: int, levels: NDArray[np.uint8], negative: NDArray[np.bool_]) -> Vector:
    scale = from_code(np.array([code], np.uint16))[0]
    return _spread((2 * levels.astype(np.float32) - np.float32(15)) * scale, negative)


def _means(vector: Vector, negative: NDArray[np.bool_], d: int) -> NDArray[np.float64]:
    """Mean of the entries of each dimension, times their signs: ``[d]``."""
    signed = np.where(negative, -vector, vector)
    whole = len(vector) // d * d
    sums: NDArray[np.float64] = signed[:whole].reshape(-1, d).sum(axis=0, dtype=np.float64)
    sums[: len(vector) - whole] += signed[whole:]
    sums /= len(vector) // d + (np.arange(d) < len(vector) - whole)
    return sums


def _spread(means: Vector, negative: NDArray[np.bool_]) -> Vector:
    flat = np.resize(means, len(negative))
    np.negative(flat, out=flat, where=negative)
    return flat
