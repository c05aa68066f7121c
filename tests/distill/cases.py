"""Answers of a student and a teacher, drawn from a seed, for any kind of target."""

from types import ModuleType

import torch
from torch import Tensor

from fedge import plugins
from fedge.distill import Answers, How

MODULES: dict[str, ModuleType] = {
    n: plugins.load("distillation loss", n) for n in plugins.names("distillation loss")
}
SOFT_ONLY = How(hard_weight=0.0, entropy_weight=0.0)
OUTPUTS = {"class": 4, "number": 1, "anomaly": 12}


def drawn(module: ModuleType, n: int = 6, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Answers]:
    """Student, teacher: ``[n, k]`` as the module's target wants, features of 5 and 9 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    k = OUTPUTS[min(module.TARGETS)]
    outputs = [3 * torch.randn(n, k, generator=generator, dtype=dtype) for _ in range(2)]
    features = [torch.randn(n, d, generator=generator, dtype=dtype) for d in (5, 9)]
    return [Answers(o, f) for o, f in zip(outputs, features, strict=True)]


def learning(answers: Answers) -> Answers:
    """A copy of a student's answers that gathers gradients."""
    assert answers.features is not None
    return Answers(answers.outputs.clone().requires_grad_(), answers.features.clone().requires_grad_())


def parts(answers: Answers) -> list[Tensor]:
    assert answers.features is not None
    return [answers.outputs, answers.features]


def gradients(
    module: ModuleType, student: Answers, teacher: Answers, how: How
) -> tuple[Tensor, list[Tensor]]:
    """The loss (with a hard loss of 0) and its gradients by the student's outputs and features."""
    student = learning(student)
    value = module.loss(student, teacher, torch.tensor(0.0), how)
    found = torch.autograd.grad(value, parts(student), allow_unused=True, materialize_grads=True)
    return value.detach(), list(found)
