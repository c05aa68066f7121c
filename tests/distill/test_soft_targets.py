import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from fedge.distill.soft_targets import loss

Floats = NDArray[np.float64]


def log_softmax(z: Floats) -> Floats:
    z = z - z.max(axis=1, keepdims=True)
    out: Floats = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return out


def formula(student: Floats, teacher: Floats, y: NDArray[np.int64], temperature: float, hard: float) -> float:
    """Hinton et al. 2015, section 2, in float64."""
    q, p = log_softmax(student / temperature), log_softmax(teacher / temperature)
    soft = np.mean(np.sum(np.exp(p) * (p - q), axis=1))
    labels = -np.mean(log_softmax(student)[np.arange(len(y)), y])
    return float(hard * labels + (1 - hard) * temperature**2 * soft)


def case(seed: int, n: int, classes: int, scale: float = 3) -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    student, teacher = (torch.from_numpy(rng.normal(size=(n, classes)) * scale) for _ in range(2))
    return student, teacher, torch.from_numpy(rng.integers(0, classes, n))


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(2, 9), st.floats(0.1, 100), st.floats(0, 1))
def test_the_loss_is_the_papers_formula(
    seed: int, n: int, classes: int, temperature: float, hard: float
) -> None:
    student, teacher, y = case(seed, n, classes)
    expected = formula(student.numpy(), teacher.numpy(), y.numpy(), temperature, hard)
    assert float(loss(student, teacher, y, temperature, hard)) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    single = float(loss(student.float(), teacher.float(), y, temperature, hard))
    assert single == pytest.approx(expected, rel=1e-3, abs=1e-4 * temperature**2)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("hard", [0.0, 0.3, 1.0])
def test_gradients_are_those_of_the_formula(temperature: float, hard: float) -> None:
    student, teacher, y = case(0, 4, 5)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, y, temperature, hard), (student,))


def _slope(temperature: float) -> Tensor:
    student, teacher, y = case(1, 6, 5)
    student.requires_grad_()
    loss(student, teacher, y, temperature, 0.0).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    return student.grad


def test_gradients_keep_their_size_when_the_temperature_rises() -> None:
    """In the limit: the differences of the centred logits over the number of classes (ibid., eq. 4)."""
    student, teacher, _ = case(1, 6, 5)
    centred = [z - z.mean(dim=1, keepdim=True) for z in (student, teacher)]
    limit = (centred[0] - centred[1]) / 5 / len(student)
    torch.testing.assert_close(_slope(1e4), limit, rtol=1e-3, atol=1e-4)
    assert 0.3 < float(_slope(4).norm() / limit.norm()) < 1.5


def test_log_probabilities_teach_as_logits_do() -> None:
    """An ensemble's mean is given as log-probabilities."""
    student, teacher, y = case(2, 8, 4)
    for temperature in (0.5, 1.0, 3.0):
        by_logits = loss(student, teacher, y, temperature, 0.3)
        by_log_p = loss(student, torch.log_softmax(teacher, dim=1), y, temperature, 0.3)
        torch.testing.assert_close(by_logits, by_log_p)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 100))
def test_the_weight_chooses_between_labels_and_teacher(seed: int, temperature: float) -> None:
    student, teacher, y = case(seed, 6, 4)
    _, other, labels = case(seed + 1, 6, 4)
    assert torch.equal(loss(student, teacher, y, temperature, 1.0), loss(student, other, y, temperature, 1.0))
    assert torch.equal(
        loss(student, teacher, y, temperature, 0.0), loss(student, teacher, labels, temperature, 0.0)
    )
