"""Squared error between probabilities, and a price on the entropy of the student's answers."""

import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from torch import Tensor

from fedge.data.types import TargetKind
from fedge.distill import Answers, How
from fedge.distill._parts import check_shapes, mixed

TARGETS: frozenset[TargetKind] = frozenset({"class"})
FEATURES = False


def loss(student: Answers, teacher: Answers, hard: Tensor, how: How) -> Tensor:
    """``soft = mean (t - p)^2 + entropy_weight * mean H(p)``, with probabilities ``t`` and ``p``.

    ``t`` is the teacher's softmax and ``p`` the student's, without temperature; the first mean is over
    windows and classes (the Brier score against the teacher, over the number of classes), the second over
    windows; ``H(p) = -sum p log p`` in nats. The entropy draws answers that hesitate towards a decision
    (Grandvalet and Bengio 2004), so a student that equals its teacher still pays for it.

    Raises:
        ConfigError: teacher and student answer in different shapes.
    """
    check_shapes(student, teacher)
    p, log_p = F.softmax(student.outputs, dim=1), F.log_softmax(student.outputs, dim=1)
    entropy = -(p * log_p).sum(dim=1).mean()
    soft = F.mse_loss(p, F.softmax(teacher.outputs, dim=1)) + how.entropy_weight * entropy
    return mixed(hard, soft, how)
