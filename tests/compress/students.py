"""Random students and windows for them."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedge.models.student import Reconstruction, StudentSpec
from fedge.models.student_families import FAMILIES, SIZES, build_spec

torch.set_num_threads(1)  # with tensors this small, more only wait for each other

Windows = NDArray[np.float32]


ALL = [
    (family, size, window, rebuilds)
    for family in FAMILIES
    for size in SIZES
    for window, rebuilds in (((50, 6), False), ((9, 1), False), ((17, 16, 3), False), ((8, 8, 1), False),
                             ((30, 4), True))
]  # fmt: skip
"""Every family and size, on windows and images, odd and even, and as a student that reconstructs."""


def spec_for(family: str, size: str, window: tuple[int, ...], rebuilds: bool = False) -> StudentSpec:
    """A built-in student with seven outputs, or with two for each channel."""
    if not rebuilds:
        return build_spec(family, size, window, 7)
    outputs = 2 * window[-1]
    scale = tuple(0.5 + 0.25 * i for i in range(outputs))
    plain = build_spec(family, size, window, outputs)
    return replace(plain, reconstruction=Reconstruction(window[0] // 2, scale))


def student(size: str, channels: int, time: int, seed: int = 1) -> tuple[StudentSpec, dict[str, Tensor]]:
    """A plain student for windows."""
    spec = spec_for("plain", size, (time, channels))
    return spec, weights(spec, seed)


def weights(spec: StudentSpec, seed: int = 1) -> dict[str, Tensor]:
    """Weights of the usual size (He et al. 2015) and small biases."""
    generator = torch.Generator().manual_seed(seed)
    params = {}
    for name, shape in spec.shapes().items():
        inputs = torch.Size(shape[1:]).numel()
        scale = (2 / inputs) ** 0.5 if len(shape) > 1 else 0.1
        params[name] = torch.randn(shape, generator=generator) * scale
    return params


def noise(n: int, spec: StudentSpec, seed: int = 3) -> Windows:
    """Windows ``[n, channels, *size]`` of white noise."""
    return np.random.default_rng(seed).normal(size=(n, *spec.input)).astype(np.float32)


def movement(n: int, spec: StudentSpec, seed: int = 3) -> Windows:
    """Windows like those of a sensor that is worn: an orientation, a movement that repeats, some noise."""
    rng = np.random.default_rng(seed)
    each = (n, spec.channels, 1)
    phase = 2 * np.pi * rng.uniform(0.3, 6, each) * np.arange(spec.size[0]) / 50 + rng.uniform(
        0, 2 * np.pi, each
    )
    x = rng.gamma(2, 0.5, each) * np.sin(phase) + rng.normal(0, 0.7, each)
    return (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32)


def arrays(params: dict[str, Tensor]) -> dict[str, NDArray[np.float32]]:
    return {name: value.numpy() for name, value in params.items()}


def same_class(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The share of windows that two models give the same class."""
    return float(np.mean(a.argmax(axis=1) == b.argmax(axis=1)))
