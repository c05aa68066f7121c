"""Soft targets with temperature (Hinton, Vinyals, Dean 2015, section 2)."""

from torch import Tensor

from fedge.data.types import TargetKind
from fedge.distill import Answers, How
from fedge.distill._parts import divergence

TARGETS: frozenset[TargetKind] = frozenset({"class"})
FEATURES = False


def loss(student: Answers, teacher: Answers, hard: Tensor, how: How) -> Tensor:
    """``hard_weight * hard + (1 - hard_weight) * T^2 * KL(teacher_T || student_T)``.

    The answers are softened by the temperature ``T``; the factor ``T^2`` keeps the gradients' size (ibid.).

    Raises:
        ConfigError: teacher and student answer in different shapes.
    """
    soft = divergence(student, teacher, how.temperature)
    return how.hard_weight * hard + (1 - how.hard_weight) * how.temperature**2 * soft
