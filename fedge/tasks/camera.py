"""Images to classes: which way a sign points, what is in front of a camera."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fedge.augment import ImageVariation, vary_images
from fedge.tasks import Task, Turning

_SHIFT = 0.1
"""Largest shift, as a share of the shorter side; never mirrored: left and right are classes."""

_LIGHT, _CONTRAST = 0.6, 0.5
"""Cameras outdoors differ most in light: measured on road signs, twice what is usual gains 2 points."""


def augment(x: Tensor, generator: torch.Generator, _turning: Turning) -> Tensor:
    """Images ``[n, channels, height, width]`` from a little further left or up, in other light."""
    how = ImageVariation(max(1, round(_SHIFT * min(x.shape[2:]))), _LIGHT, _CONTRAST)
    return vary_images(x, generator, how)


TASK = Task(
    name="camera",
    target="class",
    images=True,
    metric="accuracy",
    also=("macro_f1",),
    teacher="residual",
    distillation="soft_targets",
    loss=F.cross_entropy,
    augment=augment,
)
