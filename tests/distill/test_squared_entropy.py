import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedge.distill import Answers, How
from fedge.distill.squared_entropy import loss

NO_HARD = torch.tensor(0.0)


def softmax(z: list[float]) -> list[float]:
    terms = [math.exp(v - max(z)) for v in z]
    return [t / sum(terms) for t in terms]


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(2, 6), st.floats(0, 1), st.floats(0, 2))
def test_the_loss_is_its_formula_written_as_loops(
    seed: int, n: int, classes: int, hard_weight: float, entropy_weight: float
) -> None:
    rng = np.random.default_rng(seed)
    student, teacher = (3 * rng.normal(size=(n, classes)) for _ in range(2))
    squares, entropies = [], []
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p, wanted = softmax(s), softmax(t)
        squares += [(a - b) ** 2 for a, b in zip(wanted, p, strict=True)]
        entropies.append(-sum(q * math.log(q) for q in p))
    soft = sum(squares) / (n * classes) + entropy_weight * sum(entropies) / n
    how = How(hard_weight=hard_weight, entropy_weight=entropy_weight)
    answers = [Answers(torch.from_numpy(z)) for z in (student, teacher)]
    found = float(loss(answers[0], answers[1], torch.tensor(0.4, dtype=torch.float64), how))
    assert found == pytest.approx(hard_weight * 0.4 + (1 - hard_weight) * soft, rel=1e-9)


def test_a_student_that_equals_its_teacher_pays_the_entropy_and_nothing_else() -> None:
    """Uniform over four classes: log 4 nats."""
    same = Answers(torch.zeros(5, 4))
    paid = float(loss(same, same, NO_HARD, How(hard_weight=0, entropy_weight=0.1)))
    assert paid == pytest.approx(0.1 * math.log(4))


def test_the_entropy_draws_towards_the_likelier_class() -> None:
    logits = torch.tensor([[0.2, 0.0]], requires_grad=True)
    teacher = Answers(logits.detach().clone())
    value = loss(Answers(logits), teacher, NO_HARD, How(hard_weight=0, entropy_weight=0.1))
    (slope,) = torch.autograd.grad(value, logits)
    assert float(slope[0, 0]) < 0 < float(slope[0, 1])


def test_log_probabilities_teach_as_logits_do() -> None:
    teacher = 3 * torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    student = Answers(torch.zeros(8, 4))
    values = [loss(student, Answers(t), NO_HARD, How()) for t in (teacher, torch.log_softmax(teacher, dim=1))]
    torch.testing.assert_close(*values)
