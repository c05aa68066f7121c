"""Preprocessing: one standardisation per channel, fitted on the server's data, used everywhere.

:meth:`Preprocess.apply` is the only path from a sensor's units to a model's input in training, and a released
model has the same operations at the front of its graph (``fedge.compress.export``). They are three
elementwise float32 operations, each of which IEEE 754 rounds in one way only, so the server and every device
get the same bits.

What is said of windows ``[n, time, channels]`` holds for images ``[n, height, width, channels]`` too: the
channels come last here, and first in the model's input.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedge.errors import DataError, PayloadError

MAX_CHANNELS = 1024
DEFAULT_CLIP = 10.0
NOT_FINITE = "windows must be finite; these hold NaN, infinity or values beyond float32"
_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, eq=False)
class Preprocess:
    """``clip((x - mean) / scale)``, per channel.

    Attributes:
        mean: ``[channels]`` float32, in the sensor's units; not writeable.
        scale: ``[channels]`` float32, above 0, in the sensor's units; not writeable.
        clip: what is left is held within ``-clip..clip``, in standard deviations.

    Raises:
        DataError: a shape or a value outside these bounds.
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    clip: float = DEFAULT_CLIP

    def __post_init__(self) -> None:
        """Check the values and freeze the arrays."""
        mean, scale = (np.array(v, dtype=np.float32) for v in (self.mean, self.scale))
        if mean.ndim != 1 or mean.shape != scale.shape or not 1 <= len(mean) <= MAX_CHANNELS:
            raise DataError(f"mean and scale must be [channels], with 1 to {MAX_CHANNELS} channels")
        if not (np.isfinite(mean).all() and np.isfinite(scale).all() and (scale >= _SMALLEST).all()):
            raise DataError("mean and scale must be finite, and scale above 0")
        if not _SMALLEST <= self.clip <= _LARGEST:
            raise DataError(f"clip must be above 0 and finite, not {self.clip}")
        mean.flags.writeable = scale.flags.writeable = False
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "scale", scale)

    def apply(self, x: NDArray[Any], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Turn windows in the sensor's units into a model's input.

        Args:
            x: ``[n, time, channels]`` or ``[n, height, width, channels]``, float or integer; converted to
                float32 before anything else.
            out: where to write, of the shape that is returned, float32; by default a new array.

        Returns:
            ``[n, channels, time]`` or ``[n, channels, height, width]`` float32, contiguous.

        Raises:
            DataError: ``x`` has another shape, another kind of number, or holds NaN or infinity.
        """
        x = _windows(x, len(self.mean))
        if out is None:
            out = np.empty((len(x), x.shape[-1], *x.shape[1:-1]), np.float32)
        clip = np.float32(self.clip)
        mean, scale = (v.reshape(-1, *[1] * (x.ndim - 2)) for v in (self.mean, self.scale))
        with np.errstate(over="ignore"):  # an overflow becomes infinity, which is clipped
            np.subtract(np.moveaxis(x, -1, 1), mean, out=out)
            np.divide(out, scale, out=out)
        np.maximum(out, -clip, out=out)
        return np.minimum(out, clip, out=out)

    def to_dict(self) -> dict[str, object]:
        """As JSON can hold it; :func:`from_dict` gives back the same bits."""
        return {"mean": self.mean.tolist(), "scale": self.scale.tolist(), "clip": float(self.clip)}


def fit(x: NDArray[Any], clip: float = DEFAULT_CLIP) -> Preprocess:
    """Mean and standard deviation of each channel over all windows and times (or pixels) of ``x``.

    A channel that is constant (its deviation is no more than the rounding of its own values) has
    nothing to divide by: it gets scale 1, so that it comes out as zeros.

    Args:
        x: ``[n, time, channels]`` or ``[n, height, width, channels]``, float or integer, in the sensor's
            units; at least one window.
        clip: see :class:`Preprocess`.

    Raises:
        DataError: no windows, too many channels, or ``x`` holds NaN or infinity.
    """
    if x.ndim not in (3, 4) or x.size == 0:
        raise DataError(
            "preprocessing is fitted on windows [n, time, channels] or images [n, height, width, channels]; "
            f"these are {list(x.shape)}"
        )
    wide, over = _windows(x, x.shape[-1]).astype(np.float64), tuple(range(x.ndim - 1))
    mean, scale = wide.mean(axis=over), wide.std(axis=over)
    rounding = np.finfo(np.float32).eps * np.abs(wide).max(axis=over)
    scale[scale <= np.maximum(rounding, _SMALLEST)] = 1.0
    return Preprocess(mean.astype(np.float32), scale.astype(np.float32), clip)


def from_dict(raw: object) -> Preprocess:
    """Parse what :meth:`Preprocess.to_dict` wrote, from a source that is not trusted.

    Raises:
        PayloadError: an unknown or missing key, a wrong type, or a value outside its bounds.
    """
    if not isinstance(raw, Mapping) or set(raw) != {"mean", "scale", "clip"}:
        raise PayloadError("preprocessing must have the keys clip, mean and scale, and no others")
    mean, scale = _numbers(raw["mean"], "mean"), _numbers(raw["scale"], "scale")
    (clip,) = _numbers([raw["clip"]], "clip")
    try:
        return Preprocess(np.array(mean, np.float32), np.array(scale, np.float32), clip)
    except DataError as error:
        raise PayloadError(f"preprocessing: {error}") from error


def as_float32(x: NDArray[Any]) -> NDArray[np.float32]:
    """``x`` as float32; what is beyond its range becomes infinity.

    Raises:
        DataError: ``x`` holds neither floats nor integers.
    """
    if x.dtype == np.float32:
        return x
    if x.dtype.kind not in "fiu":
        raise DataError(f"windows must be numbers, not {x.dtype}")
    with np.errstate(over="ignore"):
        return x.astype(np.float32)


def check_finite(x: NDArray[np.float32]) -> None:
    """Check that every value of ``x``, of any shape, is finite.

    Raises:
        DataError: ``x`` holds NaN or infinity.
    """
    if not np.isfinite(x).all():
        raise DataError(NOT_FINITE)


def _windows(x: NDArray[Any], channels: int) -> NDArray[np.float32]:
    """``x`` as float32, after its shape and values have been checked."""
    if x.ndim not in (3, 4) or x.shape[-1] != channels:
        wanted = f"[n, time, {channels}], or images [n, height, width, {channels}]"
        raise DataError(f"windows must be {wanted}; these are {list(x.shape)}")
    x = as_float32(x)
    check_finite(x)
    return x


def _numbers(raw: object, name: str) -> list[float]:
    """A short list of numbers that float32 can hold."""
    if not isinstance(raw, list) or not 1 <= len(raw) <= MAX_CHANNELS:
        raise PayloadError(f"preprocessing: {name} must be a list of 1 to {MAX_CHANNELS} numbers")
    for value in raw:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
            raise PayloadError(f"preprocessing: {name} must be finite float32 numbers")
    return [float(value) for value in raw]
