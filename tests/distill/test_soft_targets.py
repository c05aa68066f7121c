import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from fedge.distill import Answers, How
from fedge.distill.soft_targets import loss

Floats = NDArray[np.float64]


def log_softmax(z: Floats) -> Floats:
    z = z - z.max(axis=1, keepdims=True)
    out: Floats = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return out


def formula(student: Floats, teacher: Floats, hard: float, how: How) -> float:
    """Hinton et al. 2015, section 2, in float64."""
    q, p = log_softmax(student / how.temperature), log_softmax(teacher / how.temperature)
    soft = np.mean(np.sum(np.exp(p) * (p - q), axis=1))
    return float(how.hard_weight * hard + (1 - how.hard_weight) * how.temperature**2 * soft)


def case(seed: int, n: int, classes: int, scale: float = 3) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    student, teacher = (torch.from_numpy(rng.normal(size=(n, classes)) * scale) for _ in range(2))
    return student, teacher


def value(
    student: Tensor, teacher: Tensor, temperature: float, hard_weight: float, hard: float = 0.4
) -> Tensor:
    how = How(temperature, hard_weight)
    return loss(Answers(student), Answers(teacher), torch.tensor(hard, dtype=student.dtype), how)


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.integers(2, 9), st.floats(0.1, 100), st.floats(0, 1))
def test_the_loss_is_the_papers_formula(
    seed: int, n: int, classes: int, temperature: float, hard_weight: float
) -> None:
    student, teacher = case(seed, n, classes)
    expected = formula(student.numpy(), teacher.numpy(), 0.4, How(temperature, hard_weight))
    assert float(value(student, teacher, temperature, hard_weight)) == pytest.approx(
        expected, rel=1e-9, abs=1e-9
    )
    single = float(value(student.float(), teacher.float(), temperature, hard_weight))
    assert single == pytest.approx(expected, rel=1e-3, abs=1e-4 * temperature**2)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("hard_weight", [0.0, 0.3, 0.9, 1.0])
def test_with_cross_entropy_it_has_the_bits_that_measured_results_were_made_with(
    temperature: float, hard_weight: float
) -> None:
    """The order of the operations: weights first, then temperature squared, then the divergence."""
    student, teacher = (z.float().requires_grad_() for z in case(5, 64, 6))
    hard = F.cross_entropy(student, torch.arange(64) % 6)
    soft = F.kl_div(
        F.log_softmax(student / temperature, dim=1),
        F.log_softmax(teacher.detach() / temperature, dim=1),
        log_target=True,
        reduction="batchmean",
    )
    before = hard_weight * hard + (1 - hard_weight) * temperature**2 * soft
    now = loss(Answers(student), Answers(teacher.detach()), hard, How(temperature, hard_weight))
    assert torch.equal(now, before)
    slopes = [torch.autograd.grad(v, student, retain_graph=True)[0] for v in (now, before)]
    assert torch.equal(*slopes)


def _slope(temperature: float) -> Tensor:
    student, teacher = case(1, 6, 5)
    student.requires_grad_()
    return torch.autograd.grad(value(student, teacher, temperature, 0.0), student)[0]


def test_gradients_keep_their_size_when_the_temperature_rises() -> None:
    """In the limit: the differences of the centred logits over the number of classes (ibid., eq. 4)."""
    student, teacher = case(1, 6, 5)
    centred = [z - z.mean(dim=1, keepdim=True) for z in (student, teacher)]
    limit = (centred[0] - centred[1]) / 5 / len(student)
    torch.testing.assert_close(_slope(1e4), limit, rtol=1e-3, atol=1e-4)
    assert 0.3 < float(_slope(4).norm() / limit.norm()) < 1.5


def test_log_probabilities_teach_as_logits_do() -> None:
    """An ensemble's mean is given as log-probabilities."""
    student, teacher = case(2, 8, 4)
    for temperature in (0.5, 1.0, 3.0):
        by_logits = value(student, teacher, temperature, 0.3)
        by_log_p = value(student, torch.log_softmax(teacher, dim=1), temperature, 0.3)
        torch.testing.assert_close(by_logits, by_log_p)
