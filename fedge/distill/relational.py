"""Relational knowledge distillation by distances (Park, Kim, Lu, Cho 2019, section 3.2.1) on soft targets.

The student learns how far apart the windows of a batch lie in the teacher's features, not the features
themselves. Matching the features would need a projection from the student's few dimensions to the teacher's
many, which is trained and then thrown away; distances need none, whatever the two dimensions are, and the
student is left free in how it lays out its own space.
"""

import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from torch import Tensor

from fedge.data.types import TargetKind
from fedge.distill import Answers, How
from fedge.distill._parts import divergence, mixed
from fedge.errors import ConfigError

TARGETS: frozenset[TargetKind] = frozenset({"class"})
FEATURES = True

_SMALLEST_MEAN = 1e-6
"""Below this mean distance all windows count as one point; a division by it stays finite."""


def loss(student: Answers, teacher: Answers, hard: Tensor, how: How) -> Tensor:
    """``soft = T^2 * KL(teacher_T || student_T) + feature_weight * mean huber(psi_s - psi_t)``.

    ``psi`` are the Euclidean distances between the features of two windows, over their mean in the batch
    (ibid., equations 5 and 6); the mean of the Huber loss (delta 1) is over all pairs of different windows,
    where the paper has the sum. A batch of one window has no pairs.

    Raises:
        ConfigError: student or teacher gives no features, or they answer in different shapes.
    """
    if student.features is None or teacher.features is None:
        raise ConfigError("distillation loss 'relational' needs the features of student and teacher")
    soft = how.temperature**2 * divergence(student, teacher, how.temperature)
    if len(student.features) > 1:
        ours, theirs = relations(student.features), relations(teacher.features)
        soft = soft + how.feature_weight * F.smooth_l1_loss(ours, theirs)
    return mixed(hard, soft, how)


def relations(features: Tensor) -> Tensor:
    """Distances between the rows of ``[n, d]`` over their mean, ``[n (n - 1) / 2]``; 0 if all are alike."""
    distances = F.pdist(features)
    return distances / distances.mean().clamp_min(_SMALLEST_MEAN)
