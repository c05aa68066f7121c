"""An anomaly score: squared error to the teacher's reconstruction."""

from torch import Tensor

from fedge.data.types import TargetKind
from fedge.distill import Answers, How
from fedge.distill._parts import mixed, squared_error

TARGETS: frozenset[TargetKind] = frozenset({"anomaly"})
FEATURES = False


def loss(student: Answers, teacher: Answers, hard: Tensor, how: How) -> Tensor:
    """``soft = mean (teacher - student)^2`` over windows and reconstructed numbers ``[n, k]``.

    The teacher's reconstruction is the window without what is not normal in it, and without the noise that
    nobody can reconstruct: an easier target for a small student than the window itself, which ``hard`` is.

    Raises:
        ConfigError: teacher and student answer in different shapes.
    """
    return mixed(hard, squared_error(student, teacher), how)
