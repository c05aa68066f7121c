import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from distill.cases import gradients
from fedge.distill import Answers, How, relational, soft_targets
from fedge.distill.relational import loss, relations
from fedge.errors import ConfigError

NO_HARD = torch.tensor(0.0, dtype=torch.float64)
FEATURES_ONLY = How(hard_weight=0, feature_weight=1)


def pairs(features: NDArray[np.float64]) -> list[float]:
    """Distances of all pairs over their mean."""
    n = len(features)
    found = [float(np.linalg.norm(features[i] - features[j])) for i in range(n) for j in range(i + 1, n)]
    return [d / (sum(found) / len(found)) for d in found]


def huber(error: float) -> float:
    return 0.5 * error**2 if abs(error) <= 1 else abs(error) - 0.5


def of(features: torch.Tensor) -> Answers:
    return Answers(torch.zeros(len(features), 3, dtype=features.dtype), features)


@given(st.integers(0, 2**32 - 1), st.integers(2, 8), st.integers(1, 5), st.integers(1, 5), st.floats(0, 1))
def test_the_loss_is_the_papers_formula_and_soft_targets(
    seed: int, n: int, ours: int, theirs: int, hard_weight: float
) -> None:
    """Park et al. 2019, equations 5 to 7, as loops; the mean of the pairs instead of their sum."""
    rng = np.random.default_rng(seed)
    logits = [torch.from_numpy(3 * rng.normal(size=(n, 4))) for _ in range(2)]
    features = [rng.standard_exponential((n, d)) ** 2 for d in (ours, theirs)]
    student, teacher = (Answers(z, torch.from_numpy(f)) for z, f in zip(logits, features, strict=True))
    both = zip(pairs(features[0]), pairs(features[1]), strict=True)
    apart = np.mean([huber(a - b) for a, b in both])
    how = How(temperature=3, hard_weight=hard_weight, feature_weight=0.5)
    hard = torch.tensor(0.4, dtype=torch.float64)
    expected = float(soft_targets.loss(student, teacher, hard, how)) + (1 - hard_weight) * 0.5 * apart
    assert float(loss(student, teacher, hard, how)) == pytest.approx(expected, rel=1e-9)


def test_the_students_space_may_be_turned_moved_and_scaled() -> None:
    """Only relations count: that is what makes a projection unnecessary."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(9, 6, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64)).Q
    assert float(loss(of(7 * features @ turn + 3), of(features), NO_HARD, FEATURES_ONLY)) < 1e-20
    # A wider space with nothing in the further dimensions.
    wide = torch.nn.functional.pad(features, (0, 5))
    assert float(loss(of(features), of(wide), NO_HARD, FEATURES_ONLY)) < 1e-20
    assert float(loss(of(features.square()), of(features), NO_HARD, FEATURES_ONLY)) > 1e-3


@pytest.mark.parametrize("alike", [2, 6])
def test_windows_with_the_same_features_give_finite_gradients(alike: int) -> None:
    """The root of a distance of 0 has no slope."""
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(6, 4, generator=generator) for _ in range(2))
    ours[:alike] = ours[0]
    value, slopes = gradients(relational, of(ours), of(theirs), FEATURES_ONLY)
    assert float(value) > 0
    assert all(bool(torch.isfinite(s).all()) for s in slopes)
    assert bool((relations(torch.ones(4, 3)) == 0).all())


def test_windows_that_the_teacher_holds_apart_are_pushed_apart() -> None:
    theirs = torch.tensor([[0.0], [1.0], [5.0]])
    ours = torch.tensor([[0.0], [1.0], [2.0]])
    _, (_, slope) = gradients(relational, of(ours), of(theirs), FEATURES_ONLY)
    moved = relations(ours - 0.1 * slope)
    assert float(moved[0]) < float(relations(ours)[0])  # first and second: nearer
    assert float(moved[2]) > float(relations(ours)[2])  # second and third: further


@pytest.mark.parametrize("missing", [0, 1])
def test_answers_without_features_are_refused(missing: int) -> None:
    answers = [of(torch.ones(4, 2)), of(torch.ones(4, 2))]
    answers[missing] = Answers(answers[missing].outputs)
    with pytest.raises(ConfigError, match="needs the features of student and teacher"):
        loss(answers[0], answers[1], NO_HARD, How())
