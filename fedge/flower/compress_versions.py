"""The server's memory of what nodes hold: one line of versions, each a coded step from the one before.

All nodes of a version hold the same bits: the base as decoded, plus the steps as decoded. What the codec of
a step left out is the difference between the server's weights and these, so the next step carries it: error
feedback without a residual of its own (Seide et al. 2014; Karimireddy et al. 2019).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedge.flower.compress_frames import Base
from fedge.flower.compress_scheme import LARGEST, Coded, Coding, Scheme, decode, encode

QUANTIZED, FLOAT32 = Coding("quantized", {"error_feedback": False}), Coding("raw")
"""Codecs of a base."""

_RAW_OVERHEAD = 5
"""Bytes of a float32 base beside its values."""


@dataclass(frozen=True, eq=False)
class History:
    """The current version and how to get there.

    Attributes:
        scheme: names, shapes and codecs.
        version: number of the current version; the base of a run is version 1.
        held: the coded arrays as every node of this version holds them.
        base: version 1, as long as base and steps together are smaller than ``held`` in float32.
        steps: the payloads that lead to the current version, without gaps; the first ones may be dropped.
        state: of the downlink codec.
    """

    scheme: Scheme
    version: int
    held: Coded
    base: Base | None
    steps: tuple[bytes, ...]
    state: Mapping[str, Any]


def begin(scheme: Scheme, weights: Coded, bits: int | None) -> History:
    """Version 1: ``weights`` quantized to ``bits`` bits, or in float32 if ``None``."""
    base = _base(scheme, weights, bits)
    state = step_codec(scheme).init(scheme.shapes)
    return History(scheme, 1, read_base(base, scheme), base, (), state)


def advance(history: History, weights: Coded) -> History:
    """The next version: a step towards ``weights``, as far as the codec goes.

    Raises:
        PayloadError: ``weights`` are further away than float32 reaches.
    """
    scheme, codec = history.scheme, step_codec(history.scheme)
    with np.errstate(over="ignore"):
        change = {name: weights[name] - history.held[name] for name in weights}
    state, step = encode(codec, history.state, change)
    held, steps = apply_step(history.held, step, scheme), (*history.steps, step)
    room, base = 4 * scheme.values + _RAW_OVERHEAD, history.base
    if base is not None and len(base.payload) + sum(map(len, steps)) > room:
        base = None
    while sum(map(len, steps)) > room:
        steps = steps[1:]
    return replace(history, version=history.version + 1, held=held, base=base, steps=steps, state=state)


def way_from(history: History, known: int | None) -> tuple[Base | None, tuple[bytes, ...]]:
    """The shortest way to the current version for a node that holds ``known``, or nothing that we know of."""
    if known is not None and 0 <= history.version - known <= len(history.steps):
        return None, history.steps[len(history.steps) - (history.version - known) :]
    if history.base is not None:
        return history.base, history.steps
    return _base(history.scheme, history.held, None), ()


def read_base(base: Base, scheme: Scheme) -> Coded:
    """The weights that a base stands for.

    Raises:
        PayloadError: not such a payload.
    """
    codec = (FLOAT32 if base.float32 else QUANTIZED).build()
    return decode(codec, base.payload, scheme.limits(LARGEST))


def apply_step(held: Coded, step: bytes, scheme: Scheme) -> Coded:
    """The weights one step on, in float32; server and nodes do the same, so they hold the same bits.

    Raises:
        PayloadError: not such a payload.
    """
    change = decode(step_codec(scheme), step, scheme.limits(LARGEST))
    return {name: held[name] + change[name] for name in held}


def step_codec(scheme: Scheme) -> Any:
    """The downlink's codec. It keeps no residual: the difference to the server's weights is one."""
    return scheme.downlink.build(error_feedback=False)


def _base(scheme: Scheme, weights: Coded, bits: int | None) -> Base:
    coding = FLOAT32 if bits is None else replace(QUANTIZED, settings={**QUANTIZED.settings, "bits": bits})
    codec = coding.build()
    return Base(scheme.to_bytes(), encode(codec, codec.init(scheme.shapes), weights)[1], bits is None)
