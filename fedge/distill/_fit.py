"""The one training loop on the server: AdamW, one-cycle rate, seeded batches, augmentation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Augment = Callable[[Tensor, torch.Generator], Tensor]
BatchLoss = Callable[[Tensor, Tensor], Tensor]
"""``(windows [n, channels, time], labels [n]) -> scalar``, differentiable."""


@dataclass(frozen=True)
class Fit:
    """How long and how fast.

    Attributes:
        epochs: passes over the data.
        batch: windows per step.
        learning_rate: peak of the one-cycle schedule (Smith and Topin 2018).
        seed: order of the batches and augmentation.
    """

    epochs: int
    batch: int
    learning_rate: float
    seed: int


def fit(
    parameters: list[Tensor],
    x: Tensor,
    y: Tensor,
    loss: BatchLoss,
    how: Fit,
    augment: Augment | None = None,
    after_step: Callable[[], None] = lambda: None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> float:
    """Minimise ``loss`` over ``parameters`` in place; returns the mean loss of the last epoch.

    A last batch of one window is left out, since batch statistics of one mean nothing. ``after_step`` runs
    after each step (masks), ``progress`` after each epoch.
    """
    generator = torch.Generator().manual_seed(how.seed)
    batches = max(1, len(x) // how.batch + (len(x) % how.batch > 1))
    optimizer = torch.optim.AdamW(parameters, lr=how.learning_rate, weight_decay=0.01)
    steps = max(1, how.epochs * batches)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, how.learning_rate, total_steps=steps + 1)
    mean = 0.0
    for epoch in range(how.epochs):
        order, total = torch.randperm(len(x), generator=generator), 0.0
        for index in torch.split(order, how.batch)[:batches]:
            windows = augment(x[index], generator) if augment else x[index]
            value = loss(windows, y[index])
            optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            after_step()
            total += float(value.detach())
        mean = total / batches
        progress(epoch + 1, how.epochs)
    return mean
