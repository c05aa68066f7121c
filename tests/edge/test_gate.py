from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from fedge.data.types import Windows
from fedge.edge.gate import DEFAULT_MARGIN, Decision, check_not_worse, run_gate
from fedge.edge.runtime import Runtime
from fedge.errors import DataError, ReleaseError
from fedge.preprocess import Preprocess
from fedge.release.manifest import Input, ModelFile, SelfTest

from .build import (
    CHANNELS,
    CLASSES,
    FITTED,
    TIME,
    WEIGHTS,
    manifest,
    mean_times_weights,
    model,
    naive,
    windows,
)

GOOD = model().SerializeToString()
CURRENT = Runtime(GOOD, FITTED)


def labelled(n: int = 60, right: int | None = None) -> Windows:
    """Windows labelled as the good model answers them; all but the first ``right`` mislabelled."""
    x = windows(n, seed=5)
    y = naive(x, FITTED).argmax(axis=1)
    y[n if right is None else right :] += 1
    return Windows(x, y % CLASSES, np.zeros(n, np.int64))


def shuffled(order: list[int]) -> tuple[bytes, NDArray[np.float64]]:
    """A model that mixes up its classes, and its true answers to the self-test."""
    weights = WEIGHTS[:, order].copy()
    return model(weights=weights).SerializeToString(), naive(windows(3, seed=9), FITTED)[:, order]


def with_self_test(content: bytes, scores: Any, tolerance: float = 1e-3, **changes: Any) -> Any:
    test = SelfTest.of(windows(3, seed=9), np.asarray(scores, np.float32), tolerance)
    return manifest(content, self_test=test, **changes)


def test_equal_model_is_taken() -> None:
    decision = run_gate(manifest(GOOD), GOOD, CURRENT, labelled())
    assert (decision.taken, decision.code) == (True, "not_worse")
    assert (decision.current_score, decision.candidate_score, decision.windows) == (1.0, 1.0, 60)


def test_worse_model_is_refused() -> None:
    content, answers = shuffled([1, 2, 0])
    decision = run_gate(with_self_test(content, answers), content, CURRENT, labelled())
    assert (decision.taken, decision.code) == (False, "worse")
    assert decision.current_score == 1.0
    assert decision.candidate_score is not None
    assert decision.candidate_score < 0.5


def test_better_model_is_taken() -> None:
    content, _ = shuffled([1, 2, 0])
    decision = run_gate(manifest(GOOD), GOOD, Runtime(content, FITTED), labelled())
    assert decision.taken
    assert decision.candidate_score == 1.0


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_margin_is_the_largest_loss_that_is_allowed(new: int, old: int) -> None:
    allowed = old - new <= 20
    try:
        check_not_worse(new / 1000, old / 1000, DEFAULT_MARGIN)
    except ReleaseError:
        assert not allowed
    else:
        assert allowed


@pytest.mark.parametrize("values", [(np.nan, 0.5, 0.02), (0.5, np.nan, 0.02), (0.5, 0.5, np.nan)])
def test_nan_never_passes_for_not_worse(values: tuple[float, float, float]) -> None:
    with pytest.raises(ReleaseError):
        check_not_worse(*values)


def test_no_windows_means_integrity_and_self_test_alone_and_is_said() -> None:
    decision = run_gate(manifest(GOOD), GOOD, CURRENT, labelled(0))
    assert (decision.taken, decision.code, decision.windows) == (True, "no_windows", 0)
    assert "no labelled windows" in decision.reason
    assert decision.candidate_score is None


def test_self_test_counts_without_windows_too() -> None:
    wrong = with_self_test(GOOD, np.zeros((3, 3)))
    decision = run_gate(wrong, GOOD, CURRENT, labelled(0))
    assert (decision.taken, decision.code) == (False, "self_test")


def test_first_model_of_a_device_is_taken_without_a_comparison() -> None:
    decision = run_gate(manifest(GOOD), GOOD, None, labelled(right=0))
    assert (decision.taken, decision.code, decision.candidate_score) == (True, "no_current", 0.0)


@pytest.mark.parametrize("off", [0.0011, -0.0011, 1.0, 1e6])
def test_self_test_off_by_more_than_the_tolerance_is_refused(off: float) -> None:
    answers = naive(windows(3, seed=9), FITTED)
    answers[2, 1] += off
    decision = run_gate(with_self_test(GOOD, answers), GOOD, CURRENT, labelled())
    assert (decision.taken, decision.code) == (False, "self_test")


@pytest.mark.parametrize("off", [0.0009, -0.0009])
def test_self_test_within_the_tolerance_is_taken(off: float) -> None:
    answers = naive(windows(3, seed=9), FITTED) + off
    assert run_gate(with_self_test(GOOD, answers), GOOD, CURRENT, labelled()).taken


def test_self_test_goes_through_the_preprocessing() -> None:
    other = Preprocess(FITTED.mean + 1, FITTED.scale, FITTED.clip)
    decision = run_gate(replace(manifest(GOOD), preprocess=other.to_dict()), GOOD, CURRENT, labelled())
    assert (decision.taken, decision.code) == (False, "self_test")


def test_nan_answering_model_is_refused() -> None:
    content = model(weights=np.full_like(WEIGHTS, np.nan)).SerializeToString()
    decision = run_gate(manifest(content), content, CURRENT, labelled())
    assert (decision.taken, decision.code) == (False, "self_test")
    assert "NaN" in decision.reason


def test_model_that_answers_nan_only_on_this_devices_windows_is_refused() -> None:
    """It passes its self-test, with small values; the logarithm of a negative sum is NaN."""
    first, second = mean_times_weights("flat")
    nodes = [first, second, helper.make_node("Log", ["flat"], ["scores"])]
    content = model(nodes, weights=np.ones_like(WEIGHTS)).SerializeToString()
    x = np.abs(windows(3, seed=9)) + 2
    answers = Runtime(content, FITTED).predict(x)
    assert np.isfinite(answers).all()
    m = manifest(content, self_test=SelfTest.of(x, answers, 1e-3))
    later = labelled()
    later.x[0] = -50
    decision = run_gate(m, content, CURRENT, later)
    assert (decision.taken, decision.code) == (False, "not_scored")
    assert decision.candidate_score is None


def test_release_for_windows_of_another_shape_is_refused() -> None:
    later = labelled()
    for x in (later.x[:, :-1], later.x[:, :, :1], later.x.transpose(0, 2, 1)):
        decision = run_gate(manifest(GOOD), GOOD, None, replace(later, x=x))
        assert (decision.taken, decision.code) == (False, "does_not_fit")


def test_release_that_lacks_a_class_of_this_device_is_refused() -> None:
    later = labelled()
    later.y[7] = CLASSES
    decision = run_gate(manifest(GOOD), GOOD, CURRENT, later)
    assert (decision.taken, decision.code) == (False, "does_not_fit")


@pytest.mark.parametrize("content", [b"", b"garbage", GOOD[:-9]])
def test_model_that_does_not_open_is_refused(content: bytes) -> None:
    decision = run_gate(replace(manifest(GOOD), model=ModelFile.of(content)), content, CURRENT, labelled())
    assert (decision.taken, decision.code) == (False, "does_not_open")


def test_model_that_contradicts_its_manifest_is_refused() -> None:
    x = np.zeros((3, TIME + 1, CHANNELS), np.float32)
    longer = manifest(
        GOOD,
        input=Input(TIME + 1, CHANNELS, ("a", "b")),
        self_test=SelfTest.of(x, np.zeros((3, CLASSES), np.float32), 1.0),
    )
    decision = run_gate(longer, GOOD, CURRENT, labelled())
    assert (decision.taken, decision.code) == (False, "does_not_open")
    assert "manifest says" in decision.reason


def test_unknown_metric_is_refused() -> None:
    decision = run_gate(manifest(GOOD, metric="vibes"), GOOD, CURRENT, labelled())
    assert (decision.taken, decision.code) == (False, "not_scored")


def test_current_model_that_cannot_answer_does_not_keep_a_working_one_out() -> None:
    broken = Runtime(model(weights=np.full_like(WEIGHTS, np.nan)).SerializeToString(), FITTED)
    decision = run_gate(manifest(GOOD), GOOD, broken, labelled())
    assert (decision.taken, decision.code) == (True, "no_current")


def test_other_metric_can_decide_otherwise() -> None:
    """Accuracy forgives a rare class that is never found, macro F1 does not."""
    x = windows(200, seed=5)
    y = naive(x, FITTED).argmax(axis=1)
    rare = int(np.bincount(y, minlength=CLASSES).argmin())
    keep = np.concatenate([np.flatnonzero(y != rare), np.flatnonzero(y == rare)[:1]])
    later = Windows(x[keep], y[keep], np.zeros(len(keep), np.int64))
    never = np.where(np.arange(CLASSES) == rare, np.float32(-1e6), np.float32(0))
    nodes = [*mean_times_weights("flat"), helper.make_node("Add", ["flat", "never"], ["scores"])]
    blind = model(nodes, more=(numpy_helper.from_array(never, "never"),))
    content = blind.SerializeToString()
    answers = Runtime(content, FITTED).predict(windows(3, seed=9))
    by_accuracy = run_gate(with_self_test(content, answers), content, CURRENT, later)
    by_f1 = run_gate(with_self_test(content, answers, metric="macro_f1"), content, CURRENT, later)
    assert by_accuracy.taken
    assert by_f1.code == "worse"


def test_devices_own_broken_windows_are_not_blamed_on_the_release() -> None:
    later = labelled()
    later.x[3, 2, 1] = np.nan
    with pytest.raises(DataError):
        run_gate(manifest(GOOD), GOOD, CURRENT, later)


def test_same_input_same_decision() -> None:
    def decide() -> Decision:
        return run_gate(manifest(GOOD), GOOD, CURRENT, labelled(right=30))

    assert decide() == decide()
