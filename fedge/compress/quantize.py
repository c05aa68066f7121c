"""Fake quantization: a forward pass in float that rounds wherever the int8 model will round.

Weights are int8 per output channel, symmetric, with a scale that follows from the weights themselves, so it
never has to be sent. Activations are int8 per tensor with scales that the server calibrates once and that
travel with the plan. Gradients pass straight through the rounding (Bengio et al. 2013) except where a value
is clipped. Biases are rounded to int32 at the scale of the accumulator, as ONNX Runtime keeps them
(Jacob et al. 2018, section 2.4). ``export`` writes exactly these numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedge.errors import ConfigError, PayloadError
from fedge.models.student import FLOAT, Numerics, Params, StudentSpec, activations, forward

Scales = Mapping[str, float]
"""Scale of each activation tensor: real value of one int8 step, by the names of ``activations(spec)``."""

_SMALLEST = 1e-8
_MSE_SAMPLES = 200_000


def zero_point(name: str) -> int:
    """The int8 value of real zero: 0 for the signed input, -128 where ReLU leaves nothing negative."""
    return 0 if name == "input" else -128


def weight_scale(weight: Tensor) -> Tensor:
    """Per output channel, the real value of one int8 step: largest magnitude / 127. Shape ``[outputs]``."""
    return (weight.detach().abs().flatten(1).amax(1) / 127).clamp_min(_SMALLEST)


def fake_quantized(spec: StudentSpec, scales: Scales) -> Numerics:
    """Numerics that round as the int8 model does.

    Raises:
        PayloadError: a scale is missing, not finite or not positive.
    """
    _check_scales(spec, scales)
    source = dict(zip([c.name for c in spec.convs] + ["head"], _inputs(spec), strict=True))

    def weights(layer: str, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        step = weight_scale(weight)
        zeros = torch.zeros_like(step, dtype=torch.int32)
        rounded = torch.fake_quantize_per_channel_affine(weight, step, zeros, 0, -127, 127)
        fine = step * scales[source[layer]]
        return rounded, bias + (torch.round(bias / fine) * fine - bias).detach()

    def activation(name: str, values: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(values, scales[name], zero_point(name), -128, 127)

    return Numerics(weights, activation)


def sent_at(bits: int, numerics: Numerics) -> Numerics:
    """``numerics``, with weights as they will arrive after a download at ``bits`` bits per weight.

    One step per tensor, levels ``-top..top`` with ``top = 2^(bits-1) - 1``; the step is the one of least
    squared error among a grid of candidates, taken anew each time, as the codec takes it when it sends.
    """
    top = 2 ** (bits - 1) - 1

    def weights(layer: str, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        step = _best_step(weight.detach(), top)
        levels = torch.clamp(torch.round(weight.detach() / step), -top, top) * step
        _, bias = numerics.weights(layer, weight, bias)
        return weight + (levels - weight).detach(), bias

    return Numerics(weights, numerics.activation)


def _best_step(weight: Tensor, top: int) -> Tensor:
    """Of 40 steps between a tenth of the largest and the largest that makes sense, the best."""
    largest = (weight.abs().amax() / top).clamp_min(_SMALLEST)
    steps = largest * torch.linspace(0.1, 1.0, 40)
    flat = weight.flatten()
    levels = torch.clamp(torch.round(flat / steps[:, None]), -top, top) * steps[:, None]
    return steps[torch.argmin((levels - flat).square().sum(1))]


def bounded(spec: StudentSpec, scales: Scales) -> Numerics:
    """The student in float: nothing is rounded, but activations keep to the range that int8 can hold.

    The bounds are part of the function that the clients train (a ReLU with a ceiling, as ReLU6 in Sandler et
    al. 2018), so the float student has them too; without them it is another network, 1 to 2 points apart on
    ``watch``.

    Raises:
        PayloadError: a scale is missing, not finite or not positive.
    """
    _check_scales(spec, scales)

    def activation(name: str, values: Tensor) -> Tensor:
        return values.clamp(*bounds(name, scales[name]))

    return Numerics(FLOAT.weights, activation)


def bounds(name: str, scale: float) -> tuple[float, float]:
    """Smallest and largest value of an activation tensor that int8 can hold."""
    return (-128 - zero_point(name)) * scale, (127 - zero_point(name)) * scale


def _check_scales(spec: StudentSpec, scales: Scales) -> None:
    for name in activations(spec):
        if not 0 < scales.get(name, 0.0) < float("inf"):
            raise PayloadError(f"activation {name!r} has no usable scale")


def _inputs(spec: StudentSpec) -> list[str]:
    """For each layer with weights, the name of the activation that it reads."""
    return ["input", *(c.name for c in spec.convs[:-1]), "mean"]


METHODS = ("minmax", "percentile", "mse")


@dataclass(frozen=True)
class Calibration:
    """How activation scales are found (Nagel et al. 2021, section 2.2, per tensor).

    Attributes:
        method: ``minmax``: fixed, the largest magnitude seen; ``percentile``: adaptive, as ``percentile``
            says; ``mse``: adaptive, the range of least squared rounding and clipping error.
        percentile: share of the values, in percent, that must not be clipped.
        headroom: factor on the range, for what training will still change.
    """

    method: str = "percentile"
    percentile: float = 99.99
    headroom: float = 1.2


@torch.no_grad()
def calibrate(spec: StudentSpec, params: Params, x: Tensor, how: Calibration) -> dict[str, float]:
    """Activation scales for windows like ``x [n, channels, *size]``: range times headroom, in 8 bits.

    Raises:
        ConfigError: no such method.
    """
    if how.method not in METHODS:
        raise ConfigError(f"quantize.calibration: unknown method {how.method!r}; known: {', '.join(METHODS)}")
    ranges: dict[str, float] = {}

    def watch(name: str, values: Tensor) -> Tensor:
        ranges[name] = _range(name, values.flatten(), how)
        return values

    forward(spec, params, x, Numerics(FLOAT.weights, watch))
    steps = {name: 127.0 if zero_point(name) == 0 else 255.0 for name in ranges}
    # float32, because that is how the scale is written into the ONNX model
    return {n: float(torch.tensor(max(r * how.headroom / steps[n], _SMALLEST))) for n, r in ranges.items()}


def _range(name: str, values: Tensor, how: Calibration) -> float:
    """The largest magnitude of ``values`` that is not clipped."""
    flat = values.abs()
    if how.method == "minmax":
        return float(flat.max())
    if how.method == "mse":
        return _least_error_range(name, values)
    rank = max(1, min(flat.numel(), round(flat.numel() * how.percentile / 100)))
    return float(flat.kthvalue(rank).values)


def _least_error_range(name: str, values: Tensor) -> float:
    """Of 60 ranges up to the largest magnitude, the one whose int8 values are nearest to the real ones."""
    values = values[:: max(1, values.numel() // _MSE_SAMPLES)]
    largest, levels = float(values.abs().max()), 127.0 if zero_point(name) == 0 else 255.0
    best, least = largest, float("inf")
    for share in torch.linspace(0.02, 1.0, 60).tolist():
        scale = max(largest * share / levels, _SMALLEST)
        rounded = torch.fake_quantize_per_tensor_affine(values, scale, zero_point(name), -128, 127)
        error = float((rounded - values).square().sum())
        if error < least:
            best, least = largest * share, error
    return best
