"""Images to classes: which way a sign points, what is in front of a camera."""

from typing import TYPE_CHECKING

from fedge.tasks import Task, Turning

if TYPE_CHECKING:
    from torch import Generator, Tensor

_SHIFT = 0.1
"""Largest shift, as a share of the shorter side; never mirrored: left and right are classes."""

_LIGHT, _CONTRAST = 0.6, 0.5
"""Cameras outdoors differ most in light: measured on road signs, twice what is usual gains 2 points."""


def loss(outputs: "Tensor", labels: "Tensor") -> "Tensor":
    """Cross-entropy of ``outputs [n, classes]`` with ``labels [n]``."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(outputs, labels)


def augment(x: "Tensor", generator: "Generator", _turning: Turning) -> "Tensor":
    """Images ``[n, channels, height, width]`` from a little further left or up, in other light."""
    from fedge.augment import ImageVariation, vary_images

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
    loss=loss,
    augment=augment,
)
