"""Random students and windows for them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedge.models.student import StudentSpec, build_spec

Windows = NDArray[np.float32]


def student(size: str, channels: int, time: int, seed: int = 1) -> tuple[StudentSpec, dict[str, Tensor]]:
    """A student with weights of the usual size (He et al. 2015) and small biases."""
    generator = torch.Generator().manual_seed(seed)
    spec = build_spec(size, channels, time, classes=7)
    params = {}
    for name, shape in spec.shapes().items():
        inputs = torch.Size(shape[1:]).numel()
        scale = (2 / inputs) ** 0.5 if len(shape) > 1 else 0.1
        params[name] = torch.randn(shape, generator=generator) * scale
    return spec, params


def noise(n: int, spec: StudentSpec, seed: int = 3) -> Windows:
    """Windows ``[n, channels, time]`` of white noise."""
    shape = (n, spec.channels, spec.time)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def movement(n: int, spec: StudentSpec, seed: int = 3) -> Windows:
    """Windows like those of a sensor that is worn: an orientation, a movement that repeats, some noise."""
    rng = np.random.default_rng(seed)
    each = (n, spec.channels, 1)
    phase = 2 * np.pi * rng.uniform(0.3, 6, each) * np.arange(spec.time) / 50 + rng.uniform(
        0, 2 * np.pi, each
    )
    x = rng.gamma(2, 0.5, each) * np.sin(phase) + rng.normal(0, 0.7, each)
    return (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32)


def arrays(params: dict[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    return {name: value.numpy() for name, value in params.items()}


def same_class(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The share of windows that two models give the same class."""
    return float(np.mean(a.argmax(axis=1) == b.argmax(axis=1)))
