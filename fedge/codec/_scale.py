"""A positive scale in 16 bits: the exponent and the first 8 bits of the fraction of a float32.

Against a half (5 bits of exponent) this has the whole range of float32, so a scale neither overflows nor
fades as training settles, for the same two bytes; its relative error is at most 2^-9.
"""

import numpy as np
from numpy.typing import NDArray

from fedge.errors import PayloadError

_DROPPED = 15
SMALLEST = 1 << 8
"""The code of 2^-126, the smallest normal float32; smaller scales count as zero."""
_LARGEST = (127 + 120) << 8
"""The code of 2^120: 127 steps of it are still a finite float32."""


def to_code(value: float, *, up: bool = False) -> int:
    """The code nearest to ``value`` (>= 0), or with ``up`` the next not below it; at most that of 2^120."""
    bits = int(np.float32(min(value, 2.0**120)).view(np.uint32))
    code = (bits + ((1 << _DROPPED) - 1 if up else 1 << (_DROPPED - 1))) >> _DROPPED
    return 0 if code < SMALLEST else min(code, _LARGEST)


def from_code(codes: NDArray[np.unsignedinteger]) -> NDArray[np.float32]:
    """The scales that ``codes`` (16 bits each) stand for, as float32.

    Raises:
        PayloadError: a code that ``to_code`` never gives (above 2^120, NaN, subnormal).
    """
    wide = codes.astype(np.uint32)
    if wide.size and (int(wide.max()) > _LARGEST or bool(((wide > 0) & (wide < SMALLEST)).any())):
        raise PayloadError("payload has a scale that is above 2^120, not a number, or subnormal")
    return (wide << np.uint32(_DROPPED)).view(np.float32)
