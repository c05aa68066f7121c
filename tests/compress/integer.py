"""An int8 student in plain integers: int8 values, int32 sums, one rounding (half to even) per value.

Written from Jacob et al. 2018 (sections 2.1 to 2.4), not from fedge's code: the reference that fake
quantization and the exported model are compared with.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from fedge.models.student import StudentSpec

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def quantized(real: Floats, scale: float, zero: int) -> Ints:
    """``real`` in steps of ``scale``, as int8."""
    ints: Ints = np.clip(np.rint(real / scale) + zero, -128, 127).astype(np.int64)
    return ints


def weight_ints(weight: NDArray[np.float32]) -> tuple[Ints, Floats]:
    """Symmetric int8 weights, and the step of each output channel."""
    rows = weight.astype(np.float64).reshape(len(weight), -1)
    step = np.array([max(np.float32(np.abs(row).max()) / np.float32(127), 1e-8) for row in rows], np.float64)
    ints = [
        [max(-127, min(127, round(v / s))) for v in row] for row, s in zip(rows.tolist(), step, strict=True)
    ]
    return np.array(ints).reshape(weight.shape), step


def summed(x: Ints, weight: Ints, bias: Ints, stride: int) -> Ints:
    """Convolution of ``x [n, inputs, time]``: sums that must fit int32, ``[n, outputs, time]``."""
    kernel = weight.shape[2]
    padded = np.pad(x, ((0, 0), (0, 0), (kernel // 2, kernel // 2)))
    places = (padded.shape[2] - kernel) // stride + 1
    total = np.repeat(np.repeat(bias[None, :, None], len(x), 0), places, 2)
    for k in range(kernel):
        for i in range(x.shape[1]):
            moved = padded[:, i, k : k + stride * (places - 1) + 1 : stride]
            total += weight[None, :, i, k, None] * moved[:, None, :]
    assert np.abs(total).max() < 2**31
    return total


def logits(
    spec: StudentSpec, weights: Mapping[str, NDArray[np.float32]], scales: Mapping[str, float], x: Floats
) -> Floats:
    """Logits ``[n, classes]`` of windows ``x [n, channels, time]``."""
    scale = scales["input"]
    q = quantized(x, scale, 0)
    for c in spec.convs:
        w, step = weight_ints(weights[f"{c.name}.weight"])
        fine = step * scale
        bias = np.rint(weights[f"{c.name}.bias"] / fine).astype(np.int64)
        total = np.maximum(summed(q, w, bias, c.stride), 0)
        scale = scales[c.name]
        q = quantized(total * fine[:, None], scale, -128) + 128
    mean = np.array(q.sum(axis=2)) / q.shape[2] * scale
    scale = scales["mean"]
    q = quantized(mean, scale, -128) + 128
    w, step = weight_ints(weights["head.weight"])
    fine = step * scale
    bias = np.rint(weights["head.bias"] / fine).astype(np.int64)
    out: Floats = summed(q[:, :, None], w[:, :, None], bias, 1)[:, :, 0] * fine
    return out
