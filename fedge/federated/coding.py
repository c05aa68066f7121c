"""Between global weights and payloads: which weights are alive, snapshots, and the codecs of a plan."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedge import plugins
from fedge.codec import Codec, Limits, Shapes
from fedge.errors import ConfigError, PayloadError
from fedge.federated.frames import Step, StepKind
from fedge.federated.plan import Coding

Arrays = dict[str, NDArray[np.float32]]
Weights = Mapping[str, NDArray[np.float32]]

BIAS_BITS = 8
"""Biases are few and sensitive: they always travel with this many bits."""

LARGEST_WEIGHT = 1e6
"""Largest magnitude of a weight, or of what is added to one, that is taken from the network."""

_LARGEST_PAYLOAD = 1 << 28


@dataclass(frozen=True, eq=False)
class Support:
    """The weights that are alive: everything but what pruning (and the first download) set to zero.

    Updates and changes are coded over the live entries only, ``[live]`` per array, so a zero stays a zero
    and never costs a bit.
    """

    alive: Mapping[str, NDArray[np.bool_]]

    @staticmethod
    def of(weights: Weights) -> "Support":
        """Alive: every bias, and every weight that is not exactly zero in the student as first sent."""
        return Support({n: (w != 0) if w.ndim > 1 else np.ones(w.shape, bool) for n, w in weights.items()})

    def shapes(self) -> dict[str, tuple[int]]:
        """Shapes of the gathered arrays."""
        return dict(self._shapes)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int]]:
        """Counted once: the server asks for every update."""
        return {name: (int(alive.sum()),) for name, alive in self.alive.items()}

    def gather(self, weights: Weights) -> Arrays:
        """The live entries of each array, ``[live]``."""
        return {name: weights[name][alive] for name, alive in self.alive.items()}

    def scatter(self, gathered: Weights) -> Arrays:
        """Arrays of full shape with zeros where nothing lives."""
        full = {}
        for name, alive in self.alive.items():
            full[name] = np.zeros(alive.shape, np.float32)
            full[name][alive] = gathered[name]
        return full

    def add(self, weights: Weights, gathered: Weights) -> Arrays:
        """``weights`` plus a change of the live entries, in float32."""
        change = self.scatter(gathered)
        return {name: weights[name] + change[name] for name in self.alive}

    def zero_share(self) -> float:
        """Share of the weights (not biases) that are exactly zero."""
        weights = [a for a in self.alive.values() if a.ndim > 1]
        return 1 - sum(int(a.sum()) for a in weights) / sum(a.size for a in weights)


def build_codec(coding: Coding) -> Codec:
    """The codec that a plan names.

    Raises:
        ConfigError: no such codec, or a setting that it does not have or that is out of range.
    """
    module = plugins.load("codec", coding.codec)
    return module.build(_settings(module, coding))  # type: ignore[no-any-return]


def _settings(module: ModuleType, coding: Coding) -> Any:
    known = [f.name for f in fields(module.Settings)]
    for key in coding.settings:
        if key not in known:
            raise ConfigError(f"codec {coding.codec!r} has no setting {key!r}; {plugins.nearest(key, known)}")
    try:
        return module.Settings(**coding.settings)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"codec {coding.codec!r}: {error}") from None


def limits(shapes: Shapes, max_abs: float = LARGEST_WEIGHT) -> Limits:
    """What may come out of a payload for arrays of these shapes: at most 8 bytes an entry come in."""
    entries = sum(math.prod(s) for s in shapes.values())
    return Limits(shapes, max_bytes=min(_LARGEST_PAYLOAD, 1024 + 8 * entries), max_abs=max_abs)


def encode_dense(arrays: Weights, bits: int) -> bytes:
    """All entries at ``bits`` bits, biases at 8: a snapshot of weights, or a dense change to them."""
    weights, biases = _parts(arrays)
    first, second = _encode_part(weights, bits), _encode_part(biases, BIAS_BITS)
    return len(first).to_bytes(4, "little") + first + second


def decode_dense(payload: bytes, shapes: Shapes) -> Arrays:
    """What ``encode_dense`` coded.

    Raises:
        PayloadError: truncated, damaged, or of other shapes.
    """
    first = int.from_bytes(payload[:4], "little")
    if first > len(payload) - 4:
        raise PayloadError("a snapshot is truncated")
    weights, biases = _parts(shapes)
    decoded = _dense(BIAS_BITS).decode(payload[4 : 4 + first], limits(weights))
    decoded |= _dense(BIAS_BITS).decode(payload[4 + first :], limits(biases))
    return {name: decoded[name] for name in shapes}


def apply_step(step: Step, weights: Weights, support: Support, downlink: Codec) -> Arrays:
    """Global weights after one step; the server does the same, so both hold the same bits."""
    if step.kind is StepKind.UPDATE:
        return support.add(weights, downlink.decode(step.payload, limits(support.shapes())))
    if step.kind is StepKind.CHANGE:
        return support.add(weights, decode_dense(step.payload, support.shapes()))
    return support.scatter(decode_dense(step.payload, support.shapes()))


def snapshot_step(weights: Weights, support: Support, bits: int) -> Step:
    """All live weights, quantized: for a client whose own are unknown, or too old to be led on."""
    return Step(StepKind.SNAPSHOT, encode_dense(support.gather(weights), bits))


def _encode_part(arrays: Weights, bits: int) -> bytes:
    codec = _dense(bits)
    return codec.encode(codec.init({n: a.shape for n, a in arrays.items()}), arrays)[1]


def _dense(bits: int) -> Codec:
    return build_codec(Coding("quantized", {"bits": bits, "error_feedback": False}))


def _parts(named: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    biases = {n: v for n, v in named.items() if n.endswith(".bias")}
    return {n: v for n, v in named.items() if n not in biases}, biases
