"""A client's fine-tuning: SGD with momentum through the fake-quantized forward pass.

The step is written out instead of using ``torch.optim``, whose import alone costs a device 70 MB.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedge.compress.quantize import bounded, fake_quantized
from fedge.federated.answers import targets
from fedge.federated.coding import Arrays, Support, Weights
from fedge.federated.plan import Plan
from fedge.models.student import forward, scores
from fedge.tasks import Task, Turning

_EVALUATION_BATCH = 1024
_TEMPERATURES = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)
_LARGEST_NORM = 5.0
"""Gradients are scaled down to this norm: one odd batch cannot throw the student away."""

Drift = Mapping[str, NDArray[np.float32]]
"""FedDyn's memory of a client: minus the gradient of its own loss at its last weights; empty at first."""


def tensors(weights: Weights) -> dict[str, Tensor]:
    """Copies of ``weights`` as tensors."""
    return {name: torch.from_numpy(np.array(value, np.float32)) for name, value in weights.items()}


@dataclass(frozen=True, eq=False)
class _Pull:
    """What is added to a gradient: towards the global weights (FedProx), and against drift (FedDyn)."""

    anchor: Mapping[str, Tensor]
    strength: float
    drift: Mapping[str, Tensor]

    def added(self, name: str, value: Tensor, gradient: Tensor) -> Tensor:
        if self.strength > 0:
            gradient = gradient + self.strength * (value - self.anchor[name])
        return gradient - self.drift[name] if name in self.drift else gradient


def fine_tune(
    plan: Plan,
    task: Task,
    weights: Weights,
    support: Support,
    data: tuple[Tensor, Tensor],
    rate: float,
    seed: int,
    drift: Drift | None = None,
) -> tuple[Arrays, float]:
    """Train on windows ``[n, channels, *size]`` and labels or numbers ``[n]``.

    FedProx (Li et al. 2020, equation 2) adds half the squared distance to ``weights``, FedDyn (Acar et al.
    2021, algorithm 1) that and the client's own ``drift``.

    Returns:
        The weights after ``plan.training.epochs`` passes, and the mean loss of the last pass.
    """
    x, y = data[0], targets(plan.spec, *data)
    how, numerics = plan.training, fake_quantized(plan.spec, plan.scales)
    params = {name: value.requires_grad_() for name, value in tensors(weights).items()}
    pull = _Pull(tensors(weights), how.proximal + how.dynamic, tensors(drift or {}))
    alive = {name: torch.from_numpy(mask.astype(np.float32)) for name, mask in support.alive.items()}
    velocity = {name: torch.zeros_like(value) for name, value in params.items()}
    generator = torch.Generator().manual_seed(seed)
    mean = 0.0
    for _ in range(how.epochs):
        losses = []
        for index in torch.split(torch.randperm(len(x), generator=generator), how.batch):
            windows = task.augment(x[index], generator, how.turning) if how.augment else x[index]
            loss = task.loss(forward(plan.spec, params, windows, numerics), y[index])
            gradients = torch.autograd.grad(loss, list(params.values()))
            _step(params, velocity, alive, gradients, rate, how.momentum, pull)
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
    pull: _Pull,
) -> None:
    norm = float(torch.sqrt(sum((g.square().sum() for g in gradients), torch.zeros(()))))
    shrink = min(1.0, _LARGEST_NORM / max(norm, 1e-12))
    for (name, value), gradient in zip(params.items(), gradients, strict=True):
        pulled = pull.added(name, value, gradient * shrink) * alive[name]
        velocity[name].mul_(momentum).add_(pulled)
        value.sub_(velocity[name], alpha=rate)


def drifted(drift: Drift, change: Weights, strength: float) -> Arrays:
    """FedDyn's memory after a round: ``drift - strength * change`` (algorithm 1, line 9)."""
    alpha = np.float32(strength)
    return {n: drift.get(n, np.zeros_like(c)) - alpha * c for n, c in change.items()}


@torch.no_grad()
def outputs(plan: Plan, weights: Weights, x: Tensor, *, quantized: bool) -> NDArray[np.float32]:
    """Outputs ``[n, outputs]`` of windows ``[n, channels, *size]``, in float or as of the int8 model."""
    numerics = (fake_quantized if quantized else bounded)(plan.spec, plan.scales)
    params = tensors(weights)
    parts = [forward(plan.spec, params, part, numerics).numpy() for part in torch.split(x, _EVALUATION_BATCH)]
    return np.concatenate(parts) if parts else np.zeros((0, plan.spec.outputs), np.float32)


@torch.no_grad()
def loss_and_score(plan: Plan, task: Task, weights: Weights, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Loss and metric of the int8 student on windows and labels; the metric is NaN where it is not defined.

    Of classes, the loss at the best of some temperatures (Guo et al. 2017): otherwise whoever answers more
    softly has the lower loss, though it knows less. The loss of an anomaly task is taken on spoilt windows,
    always the same ones, since a student that copies its input would have the least on clean ones.
    """
    given = torch.from_numpy(outputs(plan, weights, x, quantized=True))
    score = task.score(scores(plan.spec, x, given).numpy(), y.numpy())
    if task.target == "anomaly":
        spoilt = task.augment(x, torch.Generator().manual_seed(0), Turning())
        given = torch.from_numpy(outputs(plan, weights, spoilt, quantized=True))
    wanted = targets(plan.spec, x, y)
    temperatures = _TEMPERATURES if task.target == "class" else (1.0,)
    return min(float(task.loss(given / t, wanted)) for t in temperatures), score


def answers(plan: Plan, weights: Weights, x: Tensor, *, quantized: bool) -> NDArray[np.float32]:
    """Answers ``[n, scores]``, as the released model gives them."""
    given = torch.from_numpy(outputs(plan, weights, x, quantized=quantized))
    return scores(plan.spec, x, given).numpy() if len(x) else np.zeros((0, plan.spec.scores), np.float32)
