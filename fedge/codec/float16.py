"""Every value as an IEEE 754 half: 2 bytes, relative error at most 2^-11 between 6.1e-5 and 65504.

Larger magnitudes are sent as 65504; with error feedback the rest follows in later payloads.
"""

from dataclasses import dataclass

import numpy as np

from fedge.codec import Codec
from fedge.codec._container import Reader
from fedge.codec._flat import Coder, Layout, Vector, assemble
from fedge.errors import PayloadError

_LARGEST = np.float32(65504.0)


@dataclass(frozen=True)
class Settings:
    """Knobs of ``float16``.

    Attributes:
        error_feedback: keep what rounding leaves out and add it to the next arrays; false for snapshots.
    """

    error_feedback: bool = True


def build(settings: Settings) -> Codec:
    """The codec. A payload has 2 bytes per value and 5 more."""
    return assemble("float16", Coder(1, _encode, _decode, error_feedback=settings.error_feedback))


def _encode(vector: Vector, layout: Layout, counter: int) -> tuple[bytes, Vector]:  # noqa: ARG001  (the signature of every coder)
    halves = np.clip(vector, -_LARGEST, _LARGEST).astype("<f2")
    return halves.tobytes(), halves.astype(np.float32)


def _decode(reader: Reader, layout: Layout) -> Vector:
    if reader.left != 2 * layout.total:
        raise PayloadError(f"payload has {reader.left} bytes of values; expected {2 * layout.total}")
    return np.frombuffer(reader.rest(), "<f2").astype(np.float32)
