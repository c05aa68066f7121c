"""Windows of sensor data to classes: what a person does, what state a machine is in."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fedge.metrics import accuracy
from fedge.models.student import StudentSpec, build_spec
from fedge.models.teacher import Teacher, build_teacher
from fedge.tasks import Task

_SCALE, _JITTER, _OFFSET, _SHIFT = 0.15, 0.05, 0.2, 0.08
"""In standard deviations of a channel; the shift as a share of the window."""


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Another wearer, mounting or moment: scale and offset per channel, noise, a shift in time.

    The usual augmentations of wearable data (Um et al. 2017), on standardised windows
    ``[n, channels, time]``; the shift repeats the sample at the window's edge.
    """
    n, channels, time = x.shape
    scale = 1 + _SCALE * torch.randn(n, channels, 1, generator=generator)
    offset = _OFFSET * torch.randn(n, channels, 1, generator=generator)
    noise = _JITTER * torch.randn(x.shape, generator=generator)
    most = max(1, round(_SHIFT * time))
    shift = torch.randint(-most, most + 1, (n, 1), generator=generator)
    source = (torch.arange(time) + shift).clamp(0, time - 1)
    return (x * scale + offset + noise).gather(2, source[:, None].expand_as(x))


def _teacher(size: str, window: tuple[int, int], classes: int) -> Teacher:
    return build_teacher(size, window[1], classes)


def _student(size: str, window: tuple[int, int], classes: int) -> StudentSpec:
    return build_spec(size, channels=window[1], time=window[0], classes=classes)


TASK = Task(
    name="activity",
    metric="accuracy",
    score=accuracy,
    teacher=_teacher,
    student=_student,
    loss=F.cross_entropy,
    augment=augment,
)
