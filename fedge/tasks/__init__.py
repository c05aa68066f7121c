"""Tasks: what is learned, one a file. Each module offers ``TASK``, a ``Task``.

A task can be looked at without torch, as a server does before it starts anything; its functions import what
they need when they are called. What the outputs of a student say is in ``fedge.federated.answers``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedge.data.types import TargetKind
from fedge.metrics import METRICS

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from fedge.augment import Triple


@dataclass(frozen=True)
class Turning:
    """Which channels belong to 3-axis sensors, and by how many degrees these may be turned at random."""

    triples: "tuple[Triple, ...]" = ()
    degrees: float = 0.0


Augment = Callable[["Tensor", "Generator", Turning], "Tensor"]


@dataclass(frozen=True)
class Task:
    """What is learned, as functions that the rest of fedge calls.

    Attributes:
        name: the module's name, as in a scenario.
        target: a class, a number, or whether a window is out of the ordinary.
        images: whether it is for images, rather than for windows.
        metric: name of the score in reports, a key of ``metrics.METRICS``.
        also: names of further metrics for the report.
        teacher: family of the teacher, where the settings name none.
        distillation: loss of distillation, where the settings name none.
        loss: ``(outputs [n, outputs], targets) -> scalar``, mean over the windows.
        augment: ``(windows [n, channels, *size], generator, turning) -> windows`` of which the same is true.
    """

    name: str
    target: TargetKind
    images: bool
    metric: str
    also: tuple[str, ...]
    teacher: str
    distillation: str
    loss: "Callable[[Tensor, Tensor], Tensor]"
    augment: Augment

    def score(self, scores: NDArray[np.float32], y: NDArray[np.generic]) -> float:
        """The metric of answers ``[n, scores]``; NaN where it is not defined on these windows."""
        return METRICS[self.metric](scores, y)


def outputs_of(task: Task, classes: int, channels: int) -> int:
    """How many outputs a student or teacher of this task has."""
    return {"class": classes, "number": 1, "anomaly": 2 * channels}[task.target]
