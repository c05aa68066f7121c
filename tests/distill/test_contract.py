"""What every distillation loss in the folder obeys."""

import typing
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from distill.cases import MODULES, SOFT_ONLY, drawn, gradients, learning, parts
from fedge.data.types import TargetKind
from fedge.distill import Answers, How, check_loss
from fedge.errors import ConfigError

KINDS: tuple[TargetKind, ...] = typing.get_args(TargetKind)
HARD = torch.tensor(0.7)

every_loss = pytest.mark.parametrize("module", list(MODULES.values()), ids=list(MODULES))


def soft(module: ModuleType, student: Answers, teacher: Answers) -> float:
    return float(module.loss(student, teacher, torch.tensor(0.0), SOFT_ONLY))


@every_loss
def test_a_loss_says_what_it_is_for(module: ModuleType) -> None:
    assert module.TARGETS
    assert set(KINDS) >= module.TARGETS
    assert isinstance(module.FEATURES, bool)


@pytest.mark.parametrize("target", KINDS)
def test_every_kind_of_task_has_a_loss_that_asks_a_teacher_for_its_answers_only(target: TargetKind) -> None:
    assert any(target in m.TARGETS and not m.FEATURES for m in MODULES.values())


@every_loss
def test_nothing_is_left_to_learn_from_a_teacher_that_the_student_equals(module: ModuleType) -> None:
    student, _ = drawn(module)
    value, slopes = gradients(module, student, student, SOFT_ONLY)
    assert abs(float(value)) < 1e-5
    assert all(float(s.abs().max()) < 1e-5 for s in slopes)


@every_loss
def test_a_student_that_follows_the_teacher_gets_better(module: ModuleType) -> None:
    student, teacher = drawn(module)
    teacher = Answers(teacher.outputs, torch.randn(6, 5, generator=torch.Generator().manual_seed(3)))
    between = [
        Answers(*(torch.lerp(a, b, w) for a, b in zip(parts(student), parts(teacher), strict=True)))
        for w in (0.0, 0.3, 0.6, 1.0)
    ]
    values = [soft(module, s, teacher) for s in between]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1]


@every_loss
def test_a_step_against_the_gradient_gets_nearer_to_the_teacher(module: ModuleType) -> None:
    """In value, and in direction: the way to the teacher's outputs is downhill."""
    student, teacher = drawn(module)
    value, slopes = gradients(module, student, teacher, SOFT_ONLY)
    moved = Answers(*(p - 1e-2 * s for p, s in zip(parts(student), slopes, strict=True)))
    assert soft(module, moved, teacher) < float(value)
    assert float((slopes[0] * (teacher.outputs - student.outputs)).sum()) < 0


@every_loss
def test_the_teacher_gets_no_gradient_and_stays_as_it_is(module: ModuleType) -> None:
    student, teacher = drawn(module)
    kept = [t.clone() for t in (*parts(student), *parts(teacher))]
    gradients(module, student, teacher, How())
    now = (*parts(student), *parts(teacher))
    assert all(torch.equal(a, b) for a, b in zip(now, kept, strict=True))


@every_loss
@pytest.mark.parametrize("entropy_weight", [0.0, 0.1])
def test_gradients_are_those_of_the_value(module: ModuleType, entropy_weight: float) -> None:
    student, teacher = drawn(module, dtype=torch.float64)
    how = How(entropy_weight=entropy_weight)

    def value(*student: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = module.loss(Answers(*student), teacher, HARD.double(), how)
        return found

    assert torch.autograd.gradcheck(value, tuple(parts(learning(student))))


@every_loss
@pytest.mark.parametrize("hard_weight", [0.0, 0.3, 1.0])
def test_extreme_answers_give_finite_losses_and_gradients(module: ModuleType, hard_weight: float) -> None:
    for size in (0.0, 1e-30, 1e4, 1e6):
        for signs in ((1, 1), (1, -1), (-1, 1)):
            student, teacher = (Answers(size * s * torch.eye(3), size * s * torch.eye(3)) for s in signs)
            for temperature in (0.1, 1.0, 100.0):
                how = How(temperature, hard_weight)
                value, slopes = gradients(module, student, teacher, how)
                assert bool(torch.isfinite(value))
                assert all(bool(torch.isfinite(s).all()) for s in slopes)


@every_loss
def test_the_order_of_the_batch_changes_nothing(module: ModuleType) -> None:
    student, teacher = drawn(module, n=16)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    ours, theirs = (Answers(*(p[order] for p in parts(a))) for a in (student, teacher))
    value, slopes = gradients(module, student, teacher, How())
    again, others = gradients(module, ours, theirs, How())
    torch.testing.assert_close(again, value)
    for a, b in zip(others, slopes, strict=True):
        torch.testing.assert_close(a, b[order])


@every_loss
def test_the_value_is_one_number_a_window_whatever_the_batch(module: ModuleType) -> None:
    """Relations are between windows, so what a loss with features says depends on the batch."""
    student, teacher = drawn(module)
    how = replace(How(), feature_weight=0.0)
    value = module.loss(student, teacher, HARD, how)
    assert value.shape == ()
    each = [
        module.loss(*(Answers(*(p[i : i + 1] for p in parts(a))) for a in (student, teacher)), HARD, how)
        for i in range(6)
    ]
    torch.testing.assert_close(value, torch.stack(each).mean())


@every_loss
def test_a_batch_of_one_window_can_be_learned_from(module: ModuleType) -> None:
    student, teacher = drawn(module, n=1)
    value, slopes = gradients(module, student, teacher, SOFT_ONLY)
    assert float(value) > 0
    assert bool(torch.isfinite(slopes[0]).all())


@every_loss
def test_the_weight_chooses_between_the_tasks_own_loss_and_the_teacher(module: ModuleType) -> None:
    student, teacher = drawn(module)
    hard = HARD.clone().requires_grad_()

    def value(hard_weight: float) -> torch.Tensor:
        found: torch.Tensor = module.loss(student, teacher, hard, How(hard_weight=hard_weight))
        return found

    assert float(value(1.0).detach()) == float(HARD)
    torch.testing.assert_close(value(0.3), 0.3 * HARD + 0.7 * value(0.0))
    (slope,) = torch.autograd.grad(value(0.3), hard)
    assert float(slope) == pytest.approx(0.3)


@every_loss
def test_answers_of_another_shape_are_refused_instead_of_broadcast(module: ModuleType) -> None:
    student, teacher = drawn(module)
    flat = Answers(teacher.outputs[:, 0], teacher.features)
    with pytest.raises(ConfigError, match=r"teacher answers in shape \[6\] and the student in \[6, \d+\]"):
        module.loss(student, flat, HARD, How())


@every_loss
@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("features", [True, False])
def test_a_loss_that_does_not_fit_is_refused_with_those_that_do(
    module: ModuleType, target: TargetKind, features: bool
) -> None:
    fitting = [n for n, m in MODULES.items() if target in m.TARGETS and (features or not m.FEATURES)]
    name = module.__name__.rpartition(".")[2]
    if name in fitting:
        check_loss(module, target, features)
        return
    with pytest.raises(ConfigError) as caught:
        check_loss(module, target, features)
    reason, _, named = str(caught.value).partition("; losses that fit: ")
    assert repr(name) in reason
    assert ("features" if target in module.TARGETS else target) in reason
    assert named.split(", ") == fitting
