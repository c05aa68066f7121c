"""Windows of sensor data to classes: what a person does, what state a machine is in."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fedge.augment import WindowVariation, vary_windows
from fedge.tasks import Task, Turning


def augment(x: Tensor, generator: torch.Generator, turning: Turning) -> Tensor:
    """Windows ``[n, channels, time]`` as another wearer or mounting would give them."""
    return vary_windows(x, generator, WindowVariation(rotation=turning.degrees, triples=turning.triples))


TASK = Task(
    name="activity",
    target="class",
    images=False,
    metric="accuracy",
    also=("macro_f1",),
    teacher="residual",
    distillation="soft_targets",
    loss=F.cross_entropy,
    augment=augment,
)
