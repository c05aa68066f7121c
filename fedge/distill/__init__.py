"""Distillation losses, one a file, and the training loop that teacher and student share.

A loss is a module without a leading underscore that offers

* ``TARGETS``: the kinds of task whose answers it can compare;
* ``FEATURES``: whether it needs the features of student and teacher, not only their answers;
* ``loss(student, teacher, hard, how) -> scalar tensor``, differentiable in the student and in ``hard``.

``hard`` is the task's own loss on the same batch (cross-entropy, squared error, ...), a scalar that is
computed already, so that a distillation loss knows nothing of labels. Every loss is

    hard_weight * hard + (1 - hard_weight) * soft

where ``soft`` is what the module adds: how far the student's answers are from the teacher's.
"""

from dataclasses import dataclass
from types import ModuleType

from torch import Tensor

from fedge import plugins
from fedge.data.types import TargetKind
from fedge.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Answers:
    """What a student or a teacher says of one batch.

    Attributes:
        outputs: ``[n, k]``: logits (a teacher's may be log-probabilities), a number (k = 1), or a
            reconstruction.
        features: ``[n, d]``, what the head sees; d may differ between student and teacher. None where it is
            not known (an ONNX teacher).
    """

    outputs: Tensor
    features: Tensor | None = None


@dataclass(frozen=True)
class How:
    """The settings of all losses; a loss ignores those that it does not use.

    Attributes:
        temperature: divides the logits before the softmax; above 1 softens the answers.
        hard_weight: 0 listens to the teacher only, 1 to the labels only.
        entropy_weight: weight of the entropy of the student's answers, per nat.
        feature_weight: weight of what the features say beside the answers.
    """

    temperature: float = 2.0
    hard_weight: float = 0.3
    entropy_weight: float = 0.1
    feature_weight: float = 0.5


def check_loss(module: ModuleType, target: TargetKind, teacher_has_features: bool) -> None:
    """Refuse a distillation loss that does not fit the task or the teacher.

    Raises:
        ConfigError: with the reason, and the losses that fit.
    """
    reason = _misfit(module, target, teacher_has_features)
    if reason is not None:
        kind = "distillation loss"
        fit = [
            n for n in plugins.names(kind) if not _misfit(plugins.load(kind, n), target, teacher_has_features)
        ]
        name = module.__name__.rpartition(".")[2]
        raise ConfigError(f"{kind} {name!r} {reason}; losses that fit: {', '.join(fit) or 'none'}")


def _misfit(module: ModuleType, target: TargetKind, teacher_has_features: bool) -> str | None:
    if target not in module.TARGETS:
        return f"is for targets of kind {' or '.join(sorted(module.TARGETS))}, and this task's is {target}"
    if module.FEATURES and not teacher_has_features:
        return "needs the features of the teacher, and this teacher gives only its answers"
    return None
