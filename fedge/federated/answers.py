"""What the outputs of a student say, for each kind of task.

What a student is to say of a window is of one of three kinds (``Task.target``): ``answering`` gives a
student's description the outputs that its kind needs, ``targets`` makes from windows and labels what the
outputs are compared with in training, and ``agreement`` compares two answers.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fedge.models.student import Number, Reconstruction, StudentSpec, summary
from fedge.tasks import Task

_LEAST_SCALE = 0.1
"""Of a reconstruction: what hardly varies in normal windows must not make the score explode."""

_SAME_NUMBER = 0.01
"""Two answers that are numbers agree when they are this share of the targets' deviation apart, or less."""


def answering(task: Task, spec: StudentSpec, x: Tensor, y: Tensor) -> StudentSpec:
    """``spec`` with what turns its outputs into answers, fitted on the server's windows.

    Args:
        task: what is learned.
        spec: a student with as many outputs as the task needs.
        x: ``[n, channels, *size]``, preprocessed.
        y: labels or numbers ``[n]``.
    """
    if task.target == "number":
        spread = float(y.double().std(unbiased=False))
        return replace(spec, number=Number(float(y.double().mean()), spread or 1.0))
    if task.target == "anomaly":
        plain = Reconstruction(max(1, spec.size[0] // 2), (1.0,) * (2 * spec.channels))
        scale = summary(plain, x).double().std(dim=0, unbiased=False).clamp_min(_LEAST_SCALE)
        return replace(spec, reconstruction=replace(plain, scale=tuple(scale.tolist())))
    return spec


def targets(spec: StudentSpec, x: Tensor, y: Tensor) -> Tensor:
    """What outputs are compared with in training.

    Classes ``[n]`` as they are, numbers ``[n, 1]`` standardised, or what there is to reconstruct
    ``[n, outputs]``, taken from the windows ``x [n, channels, *size]`` before anything is done to them.
    """
    if spec.number is not None:
        return ((y.float() - spec.number.offset) / spec.number.scale)[:, None]
    if spec.reconstruction is not None:
        return summary(spec.reconstruction, x)
    return y


def agreement(
    task: Task, spec: StudentSpec, one: NDArray[np.float32], other: NDArray[np.float32], threshold: float
) -> NDArray[np.bool_]:
    """For each window, whether two answers ``[n, scores]`` say the same.

    The same class; on the same side of ``threshold``; or numbers that are close.
    """
    if task.target == "class":
        return np.asarray(one.argmax(axis=1) == other.argmax(axis=1))
    if task.target == "anomaly":
        return np.asarray((one[:, 0] > threshold) == (other[:, 0] > threshold))
    close = _SAME_NUMBER * (spec.number.scale if spec.number else 1.0)
    return np.asarray(np.abs(one[:, 0] - other[:, 0]) <= close)
