import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sklearn_metrics

from fedge.data.types import TargetKind
from fedge.errors import DataError
from fedge.metrics import (
    METRICS,
    RANGES,
    TARGETS,
    accuracy,
    auprc,
    auroc,
    f1_at,
    macro_f1,
    negative_rmse,
    threshold,
)

OF_CLASSES = ["accuracy", "macro_f1"]
OF_ONE_SCORE = ["auroc", "auprc", "negative_rmse"]


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


@pytest.mark.parametrize("name", OF_CLASSES)
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


@pytest.mark.parametrize("name", OF_CLASSES)
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


def naive_auroc(scores: NDArray[Any], y: NDArray[Any]) -> float:
    """Every anomalous window against every normal one."""
    won = pairs = 0.0
    for high, a in zip(scores.tolist(), y.tolist(), strict=True):
        for low, b in zip(scores.tolist(), y.tolist(), strict=True):
            if a == 1 and b == 0:
                won, pairs = won + (high > low) + (high == low) / 2, pairs + 1
    return won / pairs


def naive_auprc(scores: NDArray[Any], y: NDArray[Any]) -> float:
    """Precision and recall at each score in turn, the highest first."""
    area = before = 0.0
    for limit in sorted(set(scores.tolist()), reverse=True):
        hits = sum(int(t) for s, t in zip(scores.tolist(), y.tolist(), strict=True) if s >= limit)
        recall, precision = hits / y.sum(), hits / (scores >= limit).sum()
        area, before = area + (recall - before) * precision, recall
    return float(area)


def one_score_each(seed: int, n: int, ties: bool) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scores ``[n]`` and labels with both kinds among them."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.append([0, 1], rng.integers(0, 2, n - 2)))
    scores = rng.integers(-2, 3, n) if ties else rng.normal(size=n) + y
    return scores.astype(np.float32), y


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.booleans())
def test_areas_agree_with_naive_loops_and_scikit_learn(seed: int, n: int, ties: bool) -> None:
    scores, y = one_score_each(seed, n, ties)
    roc, pr = auroc(scores[:, None], y), auprc(scores[:, None], y)
    assert roc == pytest.approx(naive_auroc(scores, y), abs=1e-12)
    assert roc == pytest.approx(sklearn_metrics.roc_auc_score(y, scores), abs=1e-12)
    assert pr == pytest.approx(naive_auprc(scores, y), abs=1e-12)
    assert pr == pytest.approx(sklearn_metrics.average_precision_score(y, scores), abs=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.booleans())
def test_areas_depend_on_the_order_of_scores_and_not_of_windows(seed: int, n: int, ties: bool) -> None:
    scores, y = one_score_each(seed, n, ties)
    mixed = np.random.default_rng(seed).permutation(n)
    for area in (auroc, auprc):
        expected = area(scores[:, None], y)
        assert area(np.exp(scores.astype(np.float64))[:, None] * 1e30, y) == expected
        assert area(scores[mixed, None], y[mixed]) == expected
    assert auroc(-scores[:, None], y) == pytest.approx(1 - auroc(scores[:, None], y), abs=1e-12)


def test_areas_of_perfect_reversed_and_constant_scores() -> None:
    y = np.array([0, 0, 0, 1])
    right = np.array([[0.0], [1.0], [2.0], [3.0]])
    assert (auroc(right, y), auprc(right, y)) == (1.0, 1.0)
    assert (auroc(-right, y), auprc(-right, y)) == (0.0, 0.25)
    assert (auroc(0 * right, y), auprc(0 * right, y)) == (0.5, 0.25)  # auprc: the share of anomalies


def test_auroc_of_many_windows_is_exact() -> None:
    n = 200_000
    y = np.arange(n) % 2
    assert auroc(np.arange(n, dtype=np.float64)[:, None], y) == 0.5 + 1 / n


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("name", ["auroc", "auprc"])
def test_areas_are_not_defined_for_one_kind_of_windows(name: str, kind: int) -> None:
    assert math.isnan(METRICS[name](np.arange(5.0)[:, None], np.full(5, kind)))


@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_error_agrees_with_a_naive_loop_and_scikit_learn(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    scores, y = (rng.normal(100, 30, n).astype(np.float32) for _ in range(2))
    naive = sum((float(s) - float(t)) ** 2 for s, t in zip(scores, y, strict=True)) / n
    found = negative_rmse(scores[:, None], y)
    assert found == pytest.approx(-math.sqrt(naive), rel=1e-12)
    theirs = sklearn_metrics.root_mean_squared_error(y.astype(np.float64), scores.astype(np.float64))
    assert found == pytest.approx(-theirs, rel=1e-12)


def test_error_of_right_numbers_is_zero_and_targets_may_be_whole_numbers() -> None:
    y = np.array([3, 125, 0])
    assert str(negative_rmse(y.astype(np.float32)[:, None], y)) == "0.0"  # and not -0.0
    assert negative_rmse(y.astype(np.float32)[:, None] - 2, y) == -2.0


@pytest.mark.parametrize("name", OF_ONE_SCORE)
@pytest.mark.parametrize(
    ("scores", "y"),
    [
        (np.zeros((0, 1)), np.zeros(0, int)),
        (np.zeros((2, 0)), np.array([0, 1])),
        (np.zeros((2, 2)), np.array([0, 1])),
        (np.zeros(2), np.array([0, 1])),
        (np.zeros((3, 1)), np.array([0, 1])),
        (np.zeros((2, 1)), np.array([[0], [1]])),
        (np.zeros((2, 1)), np.array(["0", "1"])),
        (np.zeros((2, 1)), np.array([0, 1], object)),
        (np.array([[0.0], [np.nan]]), np.array([0, 1])),
        (np.array([[0.0], [np.inf]]), np.array([0, 1])),
    ],
)
def test_inputs_that_do_not_fit_one_score_are_refused(name: str, scores: Any, y: Any) -> None:
    with pytest.raises(DataError):
        METRICS[name](scores, y)


@pytest.mark.parametrize("name", ["auroc", "auprc"])
@pytest.mark.parametrize("y", [np.array([0, 2]), np.array([-1, 1]), np.array([0.0, 1.0])])
def test_labels_other_than_normal_and_anomalous_are_refused(name: str, y: NDArray[Any]) -> None:
    with pytest.raises(DataError):
        METRICS[name](np.zeros((2, 1)), y)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_target_that_is_no_finite_number_is_refused(bad: float) -> None:
    with pytest.raises(DataError, match="NaN"):
        negative_rmse(np.zeros((2, 1)), np.array([0.0, bad]))


@given(st.integers(0, 2**32 - 1), st.integers(2, 30))
def test_every_metric_stays_within_its_range(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    scores, y = one_score_each(seed, n, ties=True)
    given_: dict[TargetKind, tuple[Any, Any]] = {
        "class": (rng.normal(size=(n, 2)), y),
        "anomaly": (scores[:, None], y),
        "number": (scores[:, None], rng.normal(size=n)),
    }
    assert set(METRICS) == set(RANGES) == set(TARGETS)
    for name, metric in METRICS.items():
        low, high = RANGES[name]
        assert low <= metric(*given_[TARGETS[name]]) <= high


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.floats(0, 1))
def test_threshold_lets_at_most_the_rest_of_the_normal_windows_alarm(seed: int, n: int, share: float) -> None:
    scores = np.random.default_rng(seed).integers(0, 20, n).astype(np.float32)
    limit = threshold(scores, share)
    place = math.ceil((n - 1) * share - 1e-9)
    assert sorted(scores.tolist())[place] <= limit
    assert limit in scores
    assert np.sum(scores > limit) <= (1 - share) * n + 1e-6
    below = scores[scores < limit]
    if len(below):  # the next lower score would be below the quantile
        assert len(below) - 1 < (n - 1) * share + 1e-6


def test_threshold_takes_the_higher_neighbour() -> None:
    scores = np.array([4, 1, 3, 2], np.float32)
    assert [threshold(scores, s) for s in (0.0, 0.3, 0.4, 0.99, 1.0)] == [1.0, 2.0, 3.0, 4.0, 4.0]
    assert threshold(np.array([0.1], np.float32), 0.5) == float(np.float32(0.1))


@pytest.mark.parametrize(
    ("scores", "share"),
    [
        (np.zeros(0), 0.9),
        (np.zeros((3, 1)), 0.9),
        (np.array([1.0, np.nan]), 0.9),
        (np.array([1.0, np.inf]), 0.9),
        (np.zeros(3), -0.1),
        (np.zeros(3), 1.1),
        (np.zeros(3), math.nan),
    ],
)
def test_threshold_of_nothing_or_of_broken_scores_is_refused(scores: NDArray[Any], share: float) -> None:
    with pytest.raises(DataError):
        threshold(scores, share)


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0]))
def test_f1_agrees_with_scikit_learn_at_any_threshold(seed: int, n: int, limit: float) -> None:
    scores, y = one_score_each(seed, n, ties=True)
    expected = sklearn_metrics.f1_score(y, scores > limit, zero_division=0)
    assert f1_at(scores, y, limit) == pytest.approx(expected, abs=1e-12)


def test_f1_counts_each_window_by_itself() -> None:
    """With point adjustment, one alarm within the stretch of anomalies would make this 1."""
    y = np.array([0, 0, 1, 1, 1, 1, 0, 0])
    scores = np.where(np.arange(8) == 3, 1.0, 0.0)
    assert f1_at(scores, y, 0.5) == pytest.approx(2 * 1 / (1 + 4))


def test_window_at_the_threshold_raises_no_alarm() -> None:
    assert f1_at(np.array([0.5, 0.5]), np.array([0, 1]), 0.5) == 0.0
    assert f1_at(np.array([0.5, 0.6]), np.array([0, 1]), 0.5) == 1.0
    limit = threshold(np.array([0.1], np.float32), 1.0)
    assert f1_at(np.array([0.1, 0.2], np.float32), np.array([0, 1]), limit) == 1.0


def test_f1_is_not_defined_without_an_anomaly() -> None:
    assert math.isnan(f1_at(np.array([0.0, 1.0]), np.array([0, 0]), 0.5))


@pytest.mark.parametrize(
    ("scores", "y", "limit"),
    [
        (np.zeros((2, 1)), np.array([0, 1]), 0.5),
        (np.zeros(3), np.array([0, 1]), 0.5),
        (np.zeros(0), np.zeros(0, int), 0.5),
        (np.array([0, np.nan]), np.array([0, 1]), 0.5),
        (np.zeros(2), np.array([0, 2]), 0.5),
        (np.zeros(2), np.array([0.0, 1.0]), 0.5),
        (np.zeros(2), np.array([0, 1]), math.nan),
        (np.zeros(2), np.array([0, 1]), math.inf),
    ],
)
def test_f1_of_inputs_that_do_not_fit_is_refused(scores: Any, y: Any, limit: float) -> None:
    with pytest.raises(DataError):
        f1_at(scores, y, limit)
