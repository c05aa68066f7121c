"""Every value as it is: float32, bit for bit. The reference that all other codecs are measured against."""

from dataclasses import dataclass

import numpy as np

from fedge.codec import Codec
from fedge.codec._container import Reader
from fedge.codec._flat import Coder, Layout, Vector, assemble
from fedge.errors import PayloadError


@dataclass(frozen=True)
class Settings:
    """Nothing to set. A payload has 4 bytes per value and 5 more."""


def build(settings: Settings) -> Codec:  # noqa: ARG001  (every codec is built from its settings)
    """The codec. It is additive: the sum of two decoded payloads is the decoded payload of the sum."""
    return assemble("raw", Coder(0, _encode, _decode), additive=True)


def _encode(vector: Vector, layout: Layout, counter: int) -> tuple[bytes, Vector]:  # noqa: ARG001  (the signature of every coder)
    return vector.astype("<f4").tobytes(), vector


def _decode(reader: Reader, layout: Layout) -> Vector:
    if reader.left != 4 * layout.total:
        raise PayloadError(f"payload has {reader.left} bytes of values; expected {4 * layout.total}")
    return np.frombuffer(reader.rest(), "<f4").astype(np.float32)
