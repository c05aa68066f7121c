"""Without labels, a release is judged by how like the current model's its answers are."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.stats import spearmanr

from fedge.data.types import Windows
from fedge.edge.agreement import likeness
from fedge.edge.gate import MAX_RECENT, GateInputs, OpenRelease, judge
from fedge.edge.pace import medians_us
from fedge.edge.runtime import Runtime
from fedge.errors import DataError, ReleaseError
from fedge.release.manifest import Manifest, SelfTest

from .build import WEIGHTS, image_manifest, image_model, images, manifest, model, windows
from .lab import content_of, facts, shuffled, weights_of

NONE = Windows(windows(0), np.zeros(0, np.int64), np.zeros(0, np.int64))
RECENT = GateInputs(NONE, windows(200, seed=2), latency_factor=None)
CLASSES = manifest(b"-")
NUMBER = image_manifest(b"-", 1, classes=(), metric="negative_rmse")
ANOMALY = image_manifest(b"-", 1, classes=("normal", "anomalous"), metric="auroc", threshold=0.5)
scores = arrays(np.float32, st.tuples(st.integers(1, 30), st.just(1)), elements=st.integers(-20, 20))


def opened(
    version: int, weights: NDArray[np.float32] | None = None, **changes: Any
) -> tuple[Manifest, bytes]:
    weights = weights_of(version) if weights is None else weights
    content = model(weights=weights).SerializeToString()
    return manifest(content, version=version, **{**facts(weights), **changes}), content


def current() -> OpenRelease:
    made, content = opened(1)
    return OpenRelease(made, Runtime(content))


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_classes_agree_and_drift_as_a_loop_counts_it(pairs: list[tuple[int, int]]) -> None:
    before, after = (np.eye(3, dtype=np.float32)[[p[i] for p in pairs]] for i in (0, 1))
    found = likeness(CLASSES, CLASSES, before, after)
    same = sum(a == b for a, b in pairs) / len(pairs)
    shares = [[sum(p[i] == c for p in pairs) / len(pairs) for c in range(3)] for i in (0, 1)]
    distance = sum(abs(a - b) for a, b in zip(*shares, strict=True)) / 2
    assert math.isclose(found.agreement, same)
    assert math.isclose(found.drift, distance, abs_tol=1e-12)


def test_classes_are_compared_by_name() -> None:
    """A release may order them otherwise, and cannot slip through by calling them otherwise."""
    before = np.eye(3, dtype=np.float32)[[0, 1, 2, 2]]
    turned = replace(CLASSES, classes=("z", "x", "y"))
    assert likeness(CLASSES, turned, before, before[:, [2, 0, 1]]).agreement == 1.0
    renamed = replace(CLASSES, classes=("p", "q", "r"))
    assert likeness(CLASSES, renamed, before, before) == likeness(CLASSES, NUMBER, before, before[:, :1])


@given(scores, st.integers(0, 2**32 - 1))
def test_anomaly_scores_agree_as_spearmans_correlation_says(before: NDArray[np.float32], seed: int) -> None:
    after = np.random.default_rng(seed).permutation(before) + before
    found = likeness(ANOMALY, ANOMALY, before, after)
    if len(np.unique(before)) > 1 and len(np.unique(after)) > 1:
        expected = max(0.0, float(spearmanr(before[:, 0], after[:, 0]).statistic))
        assert math.isclose(found.agreement, expected, abs_tol=1e-9)
    else:
        assert found.agreement == 0.0
    assert math.isclose(found.drift, abs(float((before > 0.5).mean() - (after > 0.5).mean())), abs_tol=1e-12)


def test_model_that_never_raises_an_alarm_does_not_agree_with_one_that_hardly_does() -> None:
    before = np.random.default_rng(0).uniform(0, 0.5, (100, 1)).astype(np.float32)
    assert likeness(ANOMALY, ANOMALY, before, np.zeros_like(before)).agreement == 0.0


@given(scores, st.floats(0.001, 1000), st.integers(0, 100))
def test_numbers_agree_in_any_unit(before: NDArray[np.float32], unit: float, seed: int) -> None:
    after = before + np.random.default_rng(seed).normal(size=before.shape).astype(np.float32)
    wide = before.astype(np.float64), after.astype(np.float64)
    plain = likeness(NUMBER, NUMBER, *wide)
    scaled = likeness(NUMBER, NUMBER, *(w * unit for w in wide))
    assert math.isclose(plain.agreement, scaled.agreement, abs_tol=1.01 / len(before))
    assert math.isclose(plain.drift, scaled.drift, rel_tol=1e-6, abs_tol=1e-9)


@pytest.mark.parametrize("value", [0.0, 3.0, -7.5])
def test_same_numbers_agree_whatever_they_are(value: float) -> None:
    same = np.full((10, 1), value, np.float32)
    found = likeness(NUMBER, NUMBER, same, same)
    assert (found.agreement, found.drift) == (1.0, 0.0)
    assert likeness(NUMBER, NUMBER, same, same + 100).agreement == 0.0


def test_release_that_answers_alike_is_taken_without_labels() -> None:
    decision = judge(*opened(2), current(), RECENT)
    assert (decision.taken, decision.code) == (True, "alike")
    assert decision.likeness is not None
    assert (decision.likeness.agreement, decision.likeness.drift) == (1.0, 0.0)
    assert decision.current_score is decision.candidate_score is None


def test_release_that_mixes_up_the_classes_is_refused_without_labels() -> None:
    decision = judge(*opened(2, shuffled(2)), current(), RECENT)
    assert (decision.taken, decision.code) == (False, "disagrees")
    assert decision.likeness is not None
    assert decision.likeness.agreement < 0.1


@pytest.mark.parametrize(("least", "code"), [(0.0, "drifts"), (0.99, "disagrees")])
def test_release_that_answers_always_the_same_is_refused_without_labels(least: float, code: str) -> None:
    """It agrees where that is the answer; but then it has drifted."""
    zeros = opened(2, np.zeros_like(WEIGHTS))
    assert judge(*zeros, current(), replace(RECENT, least_agreement=least)).code == code


def test_labels_count_more_than_likeness() -> None:
    x = windows(40, seed=5)
    y = Runtime(opened(2, shuffled(2))[1]).predict(x).argmax(axis=1)
    own = replace(RECENT, labelled=Windows(x, y, np.zeros(40, np.int64)))
    decision = judge(*opened(2, shuffled(2)), current(), own)
    assert (decision.code, decision.likeness) == ("not_worse", None)


def test_labels_that_do_not_define_the_metric_leave_it_to_likeness() -> None:
    content = image_model(1).SerializeToString()
    x = images(3, seed=9)
    made = image_manifest(
        content,
        1,
        classes=("normal", "anomalous"),
        metric="auroc",
        threshold=0.0,
        self_test=SelfTest.of(x, Runtime(content).predict(x), 1e-3),
    )
    normal = Windows(images(30).astype(np.float32), np.zeros(30, np.int64), np.zeros(30, np.int64))
    inputs = GateInputs(normal, images(30, seed=4), latency_factor=None)
    running = OpenRelease(made, Runtime(content))
    assert judge(made, content, running, inputs).code == "alike"
    assert judge(made, content, running, replace(inputs, recent=None)).code == "not_comparable"


@pytest.mark.parametrize("count", [0, 1, 19])
def test_few_windows_say_nothing(count: int) -> None:
    few = replace(RECENT, recent=windows(count))
    assert judge(*opened(2, shuffled(2)), current(), few).code == "no_windows"


def test_device_that_knows_the_shape_of_its_windows_takes_no_other() -> None:
    empty = replace(NONE, x=NONE.x[:, :5])
    assert judge(*opened(2), None, GateInputs(empty, latency_factor=None)).code == "does_not_fit"


def test_device_that_knows_nothing_of_its_windows_goes_by_the_self_test() -> None:
    bare = GateInputs(latency_factor=None)
    assert judge(*opened(2), None, bare).code == "no_windows"
    made, _ = opened(2)
    decision = judge(made, content_of(300), None, bare)
    assert (decision.taken, decision.code, decision.windows) == (False, "self_test", 0)


def test_first_model_has_nothing_to_agree_with() -> None:
    assert judge(*opened(2), None, RECENT).code == "no_current"
    broken = OpenRelease(
        opened(1)[0], Runtime(model(weights=np.full_like(WEIGHTS, np.nan)).SerializeToString())
    )
    assert judge(*opened(2), broken, RECENT).code == "no_current"


def test_recent_windows_of_another_shape_are_not_answered() -> None:
    decision = judge(*opened(2), current(), replace(RECENT, recent=windows(30)[:, :5]))
    assert (decision.taken, decision.code) == (False, "does_not_fit")


def test_only_the_last_of_many_windows_are_looked_at() -> None:
    x = windows(MAX_RECENT + 100)
    x[:100] = np.nan
    decision = judge(*opened(2), current(), replace(RECENT, recent=x))
    assert decision.code == "alike"
    assert f"on {MAX_RECENT} recent windows" in decision.reason


def test_devices_own_broken_windows_are_not_blamed_on_the_release() -> None:
    x = windows(30)
    x[3, 2, 1] = np.nan
    with pytest.raises(DataError):
        judge(*opened(2), current(), replace(RECENT, recent=x))


def timer(*times: float) -> Any:
    def measured(models: Sequence[Runtime], window: NDArray[Any]) -> list[float]:
        assert window.shape == (1, 8, 2)
        return list(times[: len(models)])

    return measured


@pytest.mark.parametrize(
    ("new", "old", "factor", "budget", "code"),
    [
        (250.0, 100.0, 2.0, None, "alike"),
        (250.1, 100.0, 2.0, None, "slow"),
        (1e9, 100.0, None, 1e9, "alike"),
        (301.0, 1000.0, 2.0, 300.0, "slow"),
        (300.0, 1000.0, 2.0, 300.0, "alike"),
        (math.nan, 100.0, 2.0, None, "slow"),
    ],
)
def test_time_is_held_against_the_current_model_and_the_budget(
    new: float, old: float, factor: float | None, budget: float | None, code: str
) -> None:
    inputs = replace(
        RECENT, latency_factor=factor, latency_budget_us=budget, latency_slack_us=50.0, timer=timer(new, old)
    )
    decision = judge(*opened(2), current(), inputs)
    assert decision.code == code
    assert decision.latency_us == new or math.isnan(new)


def test_first_model_is_held_to_the_budget_alone() -> None:
    inputs = replace(RECENT, latency_factor=2.0, latency_budget_us=300.0, timer=timer(301.0))
    assert judge(*opened(2), None, inputs).code == "slow"
    assert judge(*opened(2), None, replace(inputs, latency_budget_us=301.0)).code == "no_current"


def test_no_time_is_measured_where_nothing_is_asked() -> None:
    def never(*_: object) -> list[float]:
        raise AssertionError

    decision = judge(*opened(2), current(), replace(RECENT, timer=never))
    assert (decision.taken, decision.latency_us) == (True, None)


def test_current_model_that_fails_is_left_out_of_the_timing() -> None:
    def picky(models: Sequence[Runtime], _: NDArray[Any]) -> list[float]:
        if len(models) > 1:
            raise ReleaseError("the current one fails")
        return [10.0]

    assert judge(*opened(2), current(), replace(RECENT, latency_factor=2.0, timer=picky)).latency_us == 10.0


def test_model_that_takes_for_ever_is_not_asked_twice() -> None:
    def never(*_: object) -> list[float]:
        raise AssertionError

    decision = judge(*opened(2), current(), replace(RECENT, patience_s=0.0, latency_factor=2.0, timer=never))
    assert (decision.taken, decision.code) == (False, "slow")


def test_models_take_turns_when_they_are_timed() -> None:
    runtimes = [current().runtime, current().runtime]
    times = medians_us(runtimes, windows(1), repeats=20)
    assert len(times) == 2
    assert min(times) > 0


def test_timing_ends_early_where_it_would_take_long() -> None:
    class Slow(Runtime):
        calls = 0

        def predict(self, x: NDArray[Any]) -> NDArray[np.float32]:
            Slow.calls += 1
            return super().predict(x)

    medians_us([Slow(content_of(1))], windows(1), repeats=100_000, seconds=0.0)
    assert Slow.calls == 10_000 + 5
