"""Tasks: what is learned, one a file. Each module offers ``TASK``, a ``Task``."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedge.metrics import Metric
from fedge.models.student import StudentSpec


@dataclass(frozen=True)
class Task:
    """What is learned, as functions that the rest of fedge calls.

    Attributes:
        name: the module's name, as in a scenario.
        metric: name of the score in reports; higher is better.
        score: ``(scores [n, classes], y [n]) -> score``, NumPy.
        teacher: ``(size, (time, channels), classes) -> module`` from windows ``[n, channels, time]``.
        student: ``(size, (time, channels), classes) -> spec``.
        loss: ``(logits [n, classes], y [n]) -> scalar``, with labels only.
        augment: ``(windows [n, channels, time], generator) -> windows`` that could be the same class.
    """

    name: str
    metric: str
    score: Metric
    teacher: Callable[[str, tuple[int, int], int], nn.Module]
    student: Callable[[str, tuple[int, int], int], StudentSpec]
    loss: Callable[[Tensor, Tensor], Tensor]
    augment: Callable[[Tensor, torch.Generator], Tensor]
