"""A client's fine-tuning: SGD with momentum through the fake-quantized forward pass.

The step is written out instead of using ``torch.optim``, whose import alone costs a device 70 MB.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedge.compress.quantize import bounded, fake_quantized
from fedge.federated.coding import Arrays, Support, Weights
from fedge.federated.plan import Plan
from fedge.models.student import forward
from fedge.tasks import Task

_EVALUATION_BATCH = 1024
_LARGEST_NORM = 5.0
"""Gradients are scaled down to this norm: one odd batch cannot throw the student away."""


def tensors(weights: Weights) -> dict[str, Tensor]:
    """Copies of ``weights`` as tensors."""
    return {name: torch.from_numpy(np.array(value, np.float32)) for name, value in weights.items()}


def fine_tune(
    plan: Plan,
    task: Task,
    weights: Weights,
    support: Support,
    data: tuple[Tensor, Tensor],
    rate: float,
    seed: int,
) -> tuple[Arrays, float]:
    """Train on windows ``[n, channels, time]`` and labels ``[n]``.

    Returns:
        The weights after ``plan.training.epochs`` passes, and the mean loss of the last pass.
    """
    x, y = data
    numerics = fake_quantized(plan.spec, plan.scales)
    params = {name: value.requires_grad_() for name, value in tensors(weights).items()}
    alive = {name: torch.from_numpy(mask.astype(np.float32)) for name, mask in support.alive.items()}
    velocity = {name: torch.zeros_like(value) for name, value in params.items()}
    generator = torch.Generator().manual_seed(seed)
    mean = 0.0
    for _ in range(plan.training.epochs):
        losses = []
        for index in torch.split(torch.randperm(len(x), generator=generator), plan.training.batch):
            windows = task.augment(x[index], generator) if plan.training.augment else x[index]
            loss = task.loss(forward(plan.spec, params, windows, numerics), y[index])
            gradients = torch.autograd.grad(loss, list(params.values()))
            _step(params, velocity, alive, gradients, rate, plan.training.momentum)
            losses.append(float(loss.detach()) * len(index))
        mean = sum(losses) / len(x)
    return {name: value.detach().numpy() for name, value in params.items()}, mean


@torch.no_grad()
def _step(
    params: Mapping[str, Tensor],
    velocity: Mapping[str, Tensor],
    alive: Mapping[str, Tensor],
    gradients: tuple[Tensor, ...],
    rate: float,
    momentum: float,
) -> None:
    norm = float(torch.sqrt(sum((g.square().sum() for g in gradients), torch.zeros(()))))
    shrink = min(1.0, _LARGEST_NORM / max(norm, 1e-12))
    for (name, value), gradient in zip(params.items(), gradients, strict=True):
        velocity[name].mul_(momentum).add_(gradient * alive[name], alpha=shrink)
        value.sub_(velocity[name], alpha=rate)


@torch.no_grad()
def logits(plan: Plan, weights: Weights, x: Tensor, *, quantized: bool) -> NDArray[np.float32]:
    """Logits ``[n, classes]`` of windows ``[n, channels, time]``, in float or as the int8 model answers."""
    numerics = (fake_quantized if quantized else bounded)(plan.spec, plan.scales)
    params = tensors(weights)
    parts = [forward(plan.spec, params, part, numerics).numpy() for part in torch.split(x, _EVALUATION_BATCH)]
    return np.concatenate(parts) if parts else np.zeros((0, plan.spec.classes), np.float32)
