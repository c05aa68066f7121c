from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedge.errors import DataError
from fedge.metrics import METRICS, accuracy, macro_f1


def naive_accuracy(scores: NDArray[Any], y: NDArray[Any]) -> float:
    right = 0
    for row, label in zip(scores.tolist(), y.tolist(), strict=True):
        right += int(row.index(max(row)) == label)
    return float(right / len(y))


def naive_macro_f1(scores: NDArray[Any], y: NDArray[Any]) -> float:
    predicted = [row.index(max(row)) for row in scores.tolist()]
    f1 = []
    for c in sorted(set(y.tolist())):
        tp = sum(p == c and t == c for p, t in zip(predicted, y, strict=True))
        fp = sum(p == c and t != c for p, t in zip(predicted, y, strict=True))
        fn = sum(p != c and t == c for p, t in zip(predicted, y, strict=True))
        f1.append(2 * tp / (2 * tp + fp + fn))
    return float(sum(f1) / len(f1))


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 6))
def test_metrics_agree_with_naive_loops(seed: int, n: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (n, classes)).astype(np.float32)  # few values: many ties
    y = rng.integers(0, classes, n)
    assert accuracy(scores, y) == pytest.approx(naive_accuracy(scores, y), abs=1e-12)
    assert macro_f1(scores, y) == pytest.approx(naive_macro_f1(scores, y), abs=1e-12)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_perfect_scores_are_one_and_wrong_ones_zero(name: str) -> None:
    y = np.array([0, 2, 2, 0])
    right = np.eye(3, dtype=np.float32)[y]
    wrong = np.eye(3, dtype=np.float32)[(y + 1) % 3]
    assert METRICS[name](right, y) == 1.0
    assert METRICS[name](wrong, y) == 0.0
    assert isinstance(METRICS[name](right, y), float)


def test_absent_class_does_not_pull_macro_f1_down() -> None:
    y = np.array([0, 1, 0, 1])
    assert macro_f1(np.eye(5)[y], y) == 1.0


def test_macro_f1_does_not_hide_a_rare_class_that_is_missed() -> None:
    y = np.array([0] * 99 + [1])
    scores = np.eye(2)[np.zeros(100, int)]
    assert accuracy(scores, y) == 0.99
    assert macro_f1(scores, y) == pytest.approx((2 * 99 / 199) / 2)


@pytest.mark.parametrize("name", sorted(METRICS))
@pytest.mark.parametrize(
    ("scores", "y"),
    [
        (np.zeros((0, 3)), np.zeros(0, int)),
        (np.zeros((3, 0)), np.zeros(3, int)),
        (np.zeros(3), np.zeros(3, int)),
        (np.zeros((3, 2)), np.zeros(2, int)),
        (np.zeros((3, 2)), np.zeros((3, 1), int)),
        (np.zeros((3, 2)), np.array([0, 1, 2])),
        (np.zeros((3, 2)), np.array([0, 1, -1])),
        (np.zeros((3, 2)), np.zeros(3)),
        (np.array([[0, np.nan], [1, 0]]), np.array([0, 1])),
        (np.array([[0, np.inf], [1, 0]]), np.array([0, 1])),
    ],
)
def test_inputs_that_do_not_fit_are_refused_not_scored(name: str, scores: Any, y: Any) -> None:
    with pytest.raises(DataError):
        METRICS[name](scores, y)
