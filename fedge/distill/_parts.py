"""What several distillation losses are made of."""

import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from torch import Tensor

from fedge.distill import Answers, How
from fedge.errors import ConfigError


def mixed(hard: Tensor, soft: Tensor, how: How) -> Tensor:
    """The task's own loss and the teacher's part, weighed; both scalars."""
    return how.hard_weight * hard + (1 - how.hard_weight) * soft


def check_shapes(student: Answers, teacher: Answers) -> None:
    """Refuse answers that broadcasting would compare wrongly.

    Raises:
        ConfigError: teacher and student answer in different shapes.
    """
    if student.outputs.shape != teacher.outputs.shape:
        shapes = [list(a.outputs.shape) for a in (teacher, student)]
        raise ConfigError(f"the teacher answers in shape {shapes[0]} and the student in {shapes[1]}")


def divergence(student: Answers, teacher: Answers, temperature: float) -> Tensor:
    """``KL(teacher_T || student_T)`` in nats, mean over the batch.

    Raises:
        ConfigError: teacher and student answer in different shapes.
    """
    check_shapes(student, teacher)
    return F.kl_div(
        F.log_softmax(student.outputs / temperature, dim=1),
        F.log_softmax(teacher.outputs / temperature, dim=1),
        log_target=True,
        reduction="batchmean",
    )


def squared_error(student: Answers, teacher: Answers) -> Tensor:
    """Mean over the batch and the outputs of the squared difference.

    Raises:
        ConfigError: teacher and student answer in different shapes.
    """
    check_shapes(student, teacher)
    return F.mse_loss(student.outputs, teacher.outputs)
