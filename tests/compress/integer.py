"""An int8 student in plain integers: int8 values, int32 sums, one rounding (half to even) per value.

Written from Jacob et al. 2018 (sections 2.1 to 2.4), not from fedge's code: the reference that fake
quantization and the exported model are compared with.
"""

import itertools
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


def summed(x: Ints, weight: Ints, bias: Ints, stride: int, depthwise: bool = False) -> Ints:
    """Convolution of ``x [n, inputs, *size]``: sums that must fit int32, ``[n, outputs, *size]``."""
    kernel, flat = weight.shape[-1], x.ndim - 2
    padded = np.pad(x, ((0, 0), (0, 0), *[(kernel // 2, kernel // 2)] * flat))
    places = [(s - kernel) // stride + 1 for s in padded.shape[2:]]
    column = (slice(None), *[None] * flat)
    total: Ints = np.zeros((len(x), len(weight), *places), np.int64) + bias[column]
    for at in itertools.product(range(kernel), repeat=flat):
        ends = [slice(k, k + stride * (n - 1) + 1, stride) for k, n in zip(at, places, strict=True)]
        moved = padded[(slice(None), slice(None), *ends)]
        for i in range(weight.shape[1]):
            factor = weight[(slice(None), i, *at)][column]
            total += factor * (moved if depthwise else moved[:, i, None])
    assert np.abs(total).max() < 2**31
    return total


def outputs(
    spec: StudentSpec, weights: Mapping[str, NDArray[np.float32]], scales: Mapping[str, float], x: Floats
) -> Floats:
    """Outputs ``[n, outputs]`` of windows ``x [n, channels, *size]``."""
    scale = scales["input"]
    q = quantized(x, scale, 0)
    for c in spec.convs:
        w, step = weight_ints(weights[f"{c.name}.weight"])
        fine = step * scale
        bias = np.rint(weights[f"{c.name}.bias"] / fine).astype(np.int64)
        total = np.maximum(summed(q, w, bias, c.stride, c.groups > 1), 0)
        scale = scales[c.name]
        q = quantized(total * fine.reshape(-1, *[1] * len(spec.size)), scale, -128) + 128
    flat = q.reshape(*q.shape[:2], -1)
    mean = np.array(flat.sum(axis=2)) / flat.shape[2] * scale
    scale = scales["mean"]
    q = quantized(mean, scale, -128) + 128
    w, step = weight_ints(weights["head.weight"])
    fine = step * scale
    bias = np.rint(weights["head.bias"] / fine).astype(np.int64)
    out: Floats = summed(q[:, :, None], w[:, :, None], bias, 1)[:, :, 0] * fine
    return out
