"""Codecs: named float arrays to few bytes and back, one codec a file.

A codec is a record of pure functions (the shape of fedjax's algorithms): state goes in and comes back,
nothing is kept. Each module of this folder without a leading underscore is a codec and offers

* ``Settings``: a frozen dataclass of its knobs, with units, ranges and defaults;
* ``build(settings) -> Codec``.

Names and order of the arrays never travel: both sides know the shapes, and ``Limits`` states them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Shapes = Mapping[str, tuple[int, ...]]
Arrays = Mapping[str, NDArray[np.float32]]
State = Mapping[str, NDArray[np.generic]]
"""What a codec remembers between two calls: plain arrays, so that anyone can store it."""


@dataclass(frozen=True)
class Limits:
    """What a receiver expects; ``decode`` refuses everything else before it allocates for it.

    Attributes:
        shapes: names, order and shapes of the arrays that must come out.
        max_bytes: longest payload that is looked at.
        max_abs: largest magnitude of a decoded value.
    """

    shapes: Shapes
    max_bytes: int
    max_abs: float = 1e3


@dataclass(frozen=True)
class Codec:
    """One way of turning named arrays into bytes.

    Attributes:
        name: the module's name, as in a scenario.
        additive: whether the decoded sum of two payloads is the decoded payload of the sum.
        init: shapes to a fresh state (residuals of zero).
        encode: ``(state, arrays) -> (state, payload)``. What the payload leaves out stays in the state as
            the residual of error feedback (Seide et al. 2014; Karimireddy et al. 2019) and is added to the
            next arrays. Raises ``PayloadError`` for arrays of other shapes or that are not finite.
        decode: ``(payload, limits) -> arrays``. Raises ``PayloadError``.
    """

    name: str
    additive: bool
    init: Callable[[Shapes], State]
    encode: Callable[[State, Arrays], tuple[State, bytes]]
    decode: Callable[[bytes, Limits], dict[str, NDArray[np.float32]]]
