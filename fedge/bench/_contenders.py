"""Who takes part in ``fedge bench codec``, and what each of them does with one update."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedge import plugins
from fedge.bench import _eden
from fedge.bench._entropy import Levels, entropy_bits, levels_of, relative_error
from fedge.bench._peers import Bytewise, Ideal
from fedge.codec import Arrays, Codec
from fedge.codec._container import OVERHEAD
from fedge.federated.coding import build_codec, limits
from fedge.federated.plan import Coding

_SEED = 0


@dataclass(frozen=True, eq=False)
class Job:
    """One contender's work on one update.

    Attributes:
        encode: makes the payload.
        decode: the way back, from a payload of ``encode``.
        error: relative error of what ``decode`` gave.
        header: bytes of a payload that are container.
        entropy: bits of the order-0 entropy of the quantized sequence; ``None`` if it has no meaning here.
        entropy_by_array: the same with a histogram for each array.
    """

    encode: Callable[[], bytes]
    decode: Callable[[bytes], Any]
    error: Callable[[Any], float]
    header: int = 0
    entropy: float | None = None
    entropy_by_array: float | None = None


@dataclass(frozen=True)
class Field:
    """Everyone who takes part.

    Attributes:
        uplink: the default codec, with the scenario's settings.
        coders: general coders of bytes.
        ideal: an entropy coder that is given the histogram, if there is one.
    """

    uplink: Coding
    coders: list[Bytewise]
    ideal: Ideal | None

    def codecs(self, entries: int) -> dict[str, Codec]:
        """fedge's codecs by name: each at its defaults, the scenario's as the scenario sets it."""
        settings: dict[str, Mapping[str, Any]] = {name: {} for name in plugins.names("codec")}
        settings[self.uplink.codec] = self.uplink.settings
        found = {name: build_codec(Coding(name, each)) for name, each in settings.items()}
        one_bit = Coding("quantized", {"budget_bytes": max(24, entries // 8)})
        return found | {"quantized_1bit": build_codec(one_bit)}

    def entropy_coded(self) -> list[str]:
        """Those whose payload is meant to be as long as the entropy of what comes out."""
        return list(dict.fromkeys([self.uplink.codec, "quantized", "quantized_1bit"]))

    def jobs(self, update: Arrays) -> dict[str, Job]:
        """What everyone does with ``update``: a fresh residual, nothing known of earlier ones."""
        vector = np.concatenate([a.reshape(-1) for a in update.values()])
        jobs: dict[str, Job] = {}
        for name, codec in self.codecs(len(vector)).items():
            jobs[name] = _codec_job(codec, update)
            if name in self.entropy_coded():
                jobs |= self._on_levels(name, jobs)
        jobs |= {f"{c.name}_float32": _float_job(c, vector) for c in self.coders}
        return jobs | {"eden_1bit": _eden_job(vector)}

    def _on_levels(self, name: str, jobs: Mapping[str, Job]) -> dict[str, Job]:
        """The codec with the entropy of its levels, and the general coders on the same levels."""
        job = jobs[name]
        decoded = job.decode(job.encode())
        arrays, error = levels_of(decoded), job.error(decoded)
        levels = np.concatenate(arrays)
        entropy = entropy_bits(levels), sum(entropy_bits(a) for a in arrays)
        found = {name: replace(job, entropy=entropy[0], entropy_by_array=entropy[1])}
        for coder in self.coders:
            found[f"{name}+{coder.name}"] = _level_job(coder, levels, error, entropy)
        if self.ideal is not None:
            found[f"{name}+constriction"] = _ideal_job(self.ideal, levels, error, entropy)
        return found


def _codec_job(codec: Codec, update: Arrays) -> Job:
    shapes = {name: a.shape for name, a in update.items()}
    state, bounds = codec.init(shapes), limits(shapes)
    return Job(
        encode=lambda: codec.encode(state, update)[1],
        decode=lambda payload: codec.decode(payload, bounds),
        error=lambda decoded: relative_error(update.values(), decoded.values()),
        header=OVERHEAD,
    )


def _float_job(coder: Bytewise, vector: NDArray[np.float32]) -> Job:
    return Job(
        encode=lambda: coder.compress(vector.astype("<f4").tobytes()),
        decode=lambda payload: np.frombuffer(coder.decompress(payload), "<f4"),
        error=lambda decoded: relative_error([vector], [decoded]),
    )


def _level_job(coder: Bytewise, levels: Levels, error: float, entropy: tuple[float, float]) -> Job:
    return Job(
        encode=lambda: coder.compress(levels.tobytes()),
        decode=lambda payload: np.frombuffer(coder.decompress(payload), np.int8),
        error=lambda decoded: _same(levels, decoded, error),
        entropy=entropy[0],
        entropy_by_array=entropy[1],
    )


def _ideal_job(ideal: Ideal, levels: Levels, error: float, entropy: tuple[float, float]) -> Job:
    return Job(
        encode=lambda: ideal.encode(levels),
        decode=lambda payload: ideal.decode(payload, levels),
        error=lambda decoded: _same(levels, decoded, error),
        entropy=entropy[0],
        entropy_by_array=entropy[1],
    )


def _eden_job(vector: NDArray[np.float32]) -> Job:
    return Job(
        encode=lambda: _eden.encode(vector, _SEED),
        decode=lambda payload: _eden.decode(payload, len(vector), _SEED),
        error=lambda decoded: relative_error([vector], [decoded]),
    )


def _same(levels: Levels, decoded: Levels, error: float) -> float:
    """The error of the levels themselves, if the coder gave all of them back.

    Raises:
        ValueError: it did not.
    """
    if not np.array_equal(levels, decoded):
        raise ValueError("a lossless coder lost something")
    return error
