"""A number: squared error to the teacher's number."""

from torch import Tensor

from fedge.data.types import TargetKind
from fedge.distill import Answers, How
from fedge.distill._parts import mixed, squared_error

TARGETS: frozenset[TargetKind] = frozenset({"number"})
FEATURES = False


def loss(student: Answers, teacher: Answers, hard: Tensor, how: How) -> Tensor:
    """``soft = mean (teacher - student)^2``, in the units of the outputs ``[n, 1]``, squared.

    With a squared error as ``hard`` too, the student learns the mean of label and teacher's number, weighed
    by ``hard_weight``: the teacher's number stands in for the label without its noise.

    Raises:
        ConfigError: teacher and student answer in different shapes.
    """
    return mixed(hard, squared_error(student, teacher), how)
