"""Soft targets with temperature (Hinton, Vinyals, Dean 2015, section 2)."""

import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def loss(student: Tensor, teacher: Tensor, y: Tensor, temperature: float, hard_weight: float) -> Tensor:
    """``hard_weight * CE(student, y) + (1 - hard_weight) * T^2 * KL(teacher_T || student_T)``.

    Args:
        student: logits ``[n, classes]``.
        teacher: logits ``[n, classes]``, or log-probabilities; they are softened the same way.
        y: labels ``[n]``.
        temperature: ``T``; the factor ``T^2`` keeps the gradients' size (ibid.).
        hard_weight: 0 listens to the teacher only, 1 to the labels only.
    """
    soft = F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        log_target=True,
        reduction="batchmean",
    )
    return hard_weight * F.cross_entropy(student, y) + (1 - hard_weight) * temperature**2 * soft
