"""What every distillation loss in the folder obeys."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fedge import plugins

Loss = Callable[[Tensor, Tensor, Tensor, float, float], Tensor]

every_loss = pytest.mark.parametrize(
    "loss",
    [plugins.load("distillation loss", n).loss for n in plugins.names("distillation loss")],
    ids=plugins.names("distillation loss"),
)


def _case(n: int = 6, classes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (3 * torch.randn(n, classes, generator=generator) for _ in range(2))
    return student, teacher, torch.randint(0, classes, (n,), generator=generator)


@every_loss
def test_nothing_is_left_to_learn_from_a_teacher_that_the_student_equals(loss: Loss) -> None:
    student, _, y = _case()
    student.requires_grad_()
    value = loss(student, student.detach().clone(), y, 2.0, 0.0)
    value.backward()  # type: ignore[no-untyped-call]
    assert abs(float(value.detach())) < 1e-5
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-5


@every_loss
def test_a_student_that_follows_the_teacher_gets_better(loss: Loss) -> None:
    student, teacher, y = _case()
    values = [float(loss(student + s * (teacher - student), teacher, y, 2.0, 0.0)) for s in (0, 0.3, 0.6, 1)]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1]


@every_loss
@pytest.mark.parametrize("hard_weight", [0.0, 0.3, 1.0])
def test_extreme_logits_give_finite_losses_and_gradients(loss: Loss, hard_weight: float) -> None:
    for size in (0.0, 1e-30, 1e4, 1e6):
        for signs in ((1, 1), (1, -1), (-1, 1)):
            student, teacher = (size * s * torch.tensor([[1.0, -1, 0], [-1, 1, 0]]) for s in signs)
            for temperature in (0.1, 1.0, 100.0):
                logits = student.clone().requires_grad_()
                value = loss(logits, teacher, torch.tensor([0, 2]), temperature, hard_weight)
                value.backward()  # type: ignore[no-untyped-call]
                assert logits.grad is not None
                assert bool(torch.isfinite(value))
                assert bool(torch.isfinite(logits.grad).all())


@every_loss
def test_the_value_is_one_number_a_window_whatever_the_batch(loss: Loss) -> None:
    student, teacher, y = _case()
    value = loss(student, teacher, y, 2.0, 0.3)
    assert value.shape == ()
    twice = loss(torch.cat([student] * 2), torch.cat([teacher] * 2), torch.cat([y] * 2), 2.0, 0.3)
    torch.testing.assert_close(value, twice)
    each = torch.stack(
        [loss(s[None], t[None], c[None], 2.0, 0.3) for s, t, c in zip(student, teacher, y, strict=True)]
    )
    torch.testing.assert_close(value, each.mean())


@every_loss
def test_the_arguments_are_left_alone(loss: Loss) -> None:
    student, teacher, y = _case()
    kept = [t.clone() for t in (student, teacher, y)]
    loss(student, teacher, y, 2.0, 0.3)
    assert all(torch.equal(a, b) for a, b in zip((student, teacher, y), kept, strict=True))
