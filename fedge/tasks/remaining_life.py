"""Windows to a number: for how many cycles or hours will this go on working?"""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fedge.augment import WindowVariation, vary_windows
from fedge.tasks import Task, Turning

_VARIATION = WindowVariation(scale=0.02, jitter=0.1, offset=0.02, shift=0.0)
"""Little: the level of a channel is what tells how worn a machine is."""


def augment(x: Tensor, generator: torch.Generator, _turning: Turning) -> Tensor:
    """Windows ``[n, channels, time]`` as another machine of the same age would give them."""
    return vary_windows(x, generator, _VARIATION)


TASK = Task(
    name="remaining_life",
    target="number",
    images=False,
    metric="negative_rmse",
    also=(),
    teacher="residual",
    distillation="regression",
    loss=F.mse_loss,
    augment=augment,
)
