from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from fedge.data.types import Windows
from fedge.edge.gate import (
    DEFAULT_MARGIN,
    Decision,
    GateInputs,
    OpenRelease,
    check_not_worse,
    judge,
)
from fedge.edge.runtime import Runtime
from fedge.errors import DataError, ReleaseError
from fedge.metrics import METRICS, TARGETS
from fedge.release.manifest import Input, Manifest, ModelFile, SelfTest

from .build import (
    CHANNELS,
    CLASSES,
    FITTED,
    TIME,
    WEIGHTS,
    image_manifest,
    image_model,
    images,
    manifest,
    mean_times_weights,
    model,
    naive,
    naive_image,
    preprocessing,
    windows,
)

GOOD = model().SerializeToString()
CURRENT = Runtime(GOOD)


def run_gate(
    release: Manifest, content: bytes, current: Runtime | None, later: Windows, margin: float = DEFAULT_MARGIN
) -> Decision:
    """The gate with labelled windows alone; no time is measured."""
    before = None if current is None else OpenRelease(release, current)
    return judge(release, content, before, GateInputs(later, margin=margin, latency_factor=None))


def labelled(n: int = 60, right: int | None = None) -> Windows:
    """Windows labelled as the good model answers them; all but the first ``right`` mislabelled."""
    x = windows(n, seed=5)
    y = naive(x).argmax(axis=1)
    y[n if right is None else right :] += 1
    return Windows(x, y % CLASSES, np.zeros(n, np.int64))


def shuffled(order: list[int]) -> tuple[bytes, NDArray[np.float64]]:
    """A model that mixes up its classes, and its true answers to the self-test."""
    weights = WEIGHTS[:, order].copy()
    return model(weights=weights).SerializeToString(), naive(windows(3, seed=9))[:, order]


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
    decision = run_gate(manifest(GOOD), GOOD, Runtime(content), labelled())
    assert decision.taken
    assert decision.candidate_score == 1.0


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_margin_is_the_largest_loss_that_is_allowed(new: int, old: int) -> None:
    allowed = old - new <= 20
    try:
        check_not_worse("accuracy", new / 1000, old / 1000, DEFAULT_MARGIN)
    except ReleaseError:
        assert not allowed
    else:
        assert allowed


@pytest.mark.parametrize("values", [(np.nan, 0.5, 0.02), (0.5, np.nan, 0.02), (0.5, 0.5, np.nan)])
def test_nan_never_passes_for_not_worse(values: tuple[float, float, float]) -> None:
    for metric in METRICS:
        with pytest.raises(ReleaseError):
            check_not_worse(metric, *values)


@given(st.integers(1, 2000), st.integers(0, 2000), st.sampled_from([1e-6, 1.0, 1e9]))
def test_margin_of_an_error_is_a_share_of_it_whatever_its_unit(old: int, new: int, unit: float) -> None:
    """5 % off is as bad in seconds as in hours."""
    allowed = 100 * (new - old) <= 5 * old
    try:
        check_not_worse("negative_rmse", -new * unit, -old * unit, 0.05)
    except ReleaseError:
        assert not allowed
    else:
        assert allowed


def test_error_of_zero_leaves_no_margin() -> None:
    check_not_worse("negative_rmse", 0.0, 0.0, 0.02)
    with pytest.raises(ReleaseError):
        check_not_worse("negative_rmse", -1e-6, 0.0, 0.02)


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
    answers = naive(windows(3, seed=9))
    answers[2, 1] += off
    decision = run_gate(with_self_test(GOOD, answers), GOOD, CURRENT, labelled())
    assert (decision.taken, decision.code) == (False, "self_test")


@pytest.mark.parametrize("off", [0.0009, -0.0009])
def test_self_test_within_the_tolerance_is_taken(off: float) -> None:
    answers = naive(windows(3, seed=9)) + off
    assert run_gate(with_self_test(GOOD, answers), GOOD, CURRENT, labelled()).taken


def test_nan_answering_model_is_refused() -> None:
    content = model(weights=np.full_like(WEIGHTS, np.nan)).SerializeToString()
    decision = run_gate(manifest(content), content, CURRENT, labelled())
    assert (decision.taken, decision.code) == (False, "self_test")
    assert "NaN" in decision.reason


def test_model_that_answers_nan_only_on_this_devices_windows_is_refused() -> None:
    """It passes its self-test, with small values; the logarithm of a negative sum is NaN."""
    nodes = [*mean_times_weights("flat"), helper.make_node("Log", ["flat"], ["scores"])]
    content = model(nodes, weights=np.ones_like(WEIGHTS)).SerializeToString()
    x = np.abs(windows(3, seed=9)) + 2
    answers = Runtime(content).predict(x)
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
        input=Input((TIME + 1, CHANNELS), ("a", "b")),
        self_test=SelfTest.of(x, np.zeros((3, CLASSES), np.float32), 1.0),
    )
    decision = run_gate(longer, GOOD, CURRENT, labelled())
    assert (decision.taken, decision.code) == (False, "does_not_open")
    assert "manifest says" in decision.reason


def test_unknown_metric_is_refused() -> None:
    decision = run_gate(manifest(GOOD, metric="vibes"), GOOD, CURRENT, labelled())
    assert (decision.taken, decision.code) == (False, "not_scored")


def test_current_model_that_cannot_answer_does_not_keep_a_working_one_out() -> None:
    broken = Runtime(model(weights=np.full_like(WEIGHTS, np.nan)).SerializeToString())
    decision = run_gate(manifest(GOOD), GOOD, broken, labelled())
    assert (decision.taken, decision.code) == (True, "no_current")


def test_other_metric_can_decide_otherwise() -> None:
    """Accuracy forgives a rare class that is never found, macro F1 does not."""
    x = windows(200, seed=5)
    y = naive(x).argmax(axis=1)
    rare = int(np.bincount(y, minlength=CLASSES).argmin())
    keep = np.concatenate([np.flatnonzero(y != rare), np.flatnonzero(y == rare)[:1]])
    later = Windows(x[keep], y[keep], np.zeros(len(keep), np.int64))
    never = np.where(np.arange(CLASSES) == rare, np.float32(-1e6), np.float32(0))
    front, constants = preprocessing(FITTED)
    adding = helper.make_node("Add", ["flat", "never"], ["scores"])
    nodes = [*front, *mean_times_weights("flat", "clipped"), adding]
    blind = model(nodes, more=(*constants, numpy_helper.from_array(never, "never")))
    content = blind.SerializeToString()
    answers = Runtime(content).predict(windows(3, seed=9))
    by_accuracy = run_gate(with_self_test(content, answers), content, CURRENT, later)
    by_f1 = run_gate(with_self_test(content, answers, metric="macro_f1"), content, CURRENT, later)
    assert by_accuracy.taken
    assert by_f1.code == "worse"


def test_devices_own_broken_windows_are_not_blamed_on_the_release() -> None:
    later = labelled()
    later.x[3, 2, 1] = np.nan
    with pytest.raises(DataError):
        run_gate(manifest(GOOD), GOOD, CURRENT, later)


SCORING = image_model(outputs=1).SerializeToString()
WORSE = image_model(outputs=1, seed=2).SerializeToString()


def seen(n: int, y: NDArray[Any] | None = None) -> Windows:
    """Images with what the one-score model answers to them, or with ``y``."""
    x = images(n, seed=5)
    answers = naive_image(x, 1)[:, 0].astype(np.float32)
    return Windows(x.astype(np.float32), answers if y is None else y, np.zeros(n, np.int64))


def other_image_model(content: bytes, **changes: Any) -> Any:
    x = images(3, seed=9)
    answers = naive_image(x, 1, seed=2).astype(np.float32)
    return image_manifest(content, 1, self_test=SelfTest.of(x, answers, 1e-3), **changes)


def shifted(by: float, *then: str) -> bytes:
    """The one-score model with a constant added to its answers, and some operators after that."""
    built = image_model(outputs=1)
    built.graph.node[-1].output[0] = "a0"
    built.graph.initializer.append(numpy_helper.from_array(np.array(by, np.float32), "by"))
    built.graph.node.append(helper.make_node("Add", ["a0", "by"], ["a1"]))
    for i, op in enumerate(then, start=1):
        built.graph.node.append(helper.make_node(op, [f"a{i}"], [f"a{i + 1}"]))
    built.graph.node[-1].output[0] = "scores"
    return bytes(built.SerializeToString())


def anomalous() -> NDArray[np.int64]:
    """Those of 30 images that the one-score model scores highest."""
    scores = naive_image(images(30, seed=5), 1)[:, 0]
    return (scores > np.quantile(scores, 0.7)).astype(np.int64)


def test_image_classes_are_compared_as_those_of_windows() -> None:
    content = image_model().SerializeToString()
    y = naive_image(images(30, seed=5)).argmax(axis=1)
    current = Runtime(content)
    decision = run_gate(image_manifest(content), content, current, seen(30, y))
    assert (decision.taken, decision.code, decision.candidate_score) == (True, "not_worse", 1.0)
    wrong = run_gate(image_manifest(content), content, current, seen(30, y + 1))
    assert (wrong.taken, wrong.code) == (False, "does_not_fit")


def test_number_is_judged_by_its_error() -> None:
    number = {"classes": (), "metric": "negative_rmse"}
    good, current = image_manifest(SCORING, 1, **number), Runtime(SCORING)
    decision = run_gate(good, SCORING, current, seen(30))
    assert (decision.taken, decision.code) == (True, "not_worse")
    assert decision.candidate_score == pytest.approx(0, abs=1e-3)
    decision = run_gate(other_image_model(WORSE, **number), WORSE, current, seen(30))
    assert (decision.taken, decision.code) == (False, "worse")
    assert run_gate(good, SCORING, Runtime(WORSE), seen(30)).taken


def test_margin_of_a_number_is_relative() -> None:
    """The current model is off by 985, the release by 1000: within 2 %, and not within 1 %."""
    good = image_manifest(SCORING, 1, classes=(), metric="negative_rmse")
    later = seen(30)
    far = Windows(later.x, (later.y + 1000).astype(np.float32), later.group)
    current = Runtime(shifted(15))
    assert run_gate(good, SCORING, current, far, margin=0.02).code == "not_worse"
    assert run_gate(good, SCORING, current, far, margin=0.01).code == "worse"


@pytest.mark.parametrize("metric", ["auroc", "auprc"])
def test_anomaly_scores_are_judged_by_their_order(metric: str) -> None:
    names = {"classes": ("normal", "anomalous"), "metric": metric, "threshold": 0.5}
    current, later = Runtime(SCORING), seen(30, anomalous())
    decision = run_gate(image_manifest(SCORING, 1, **names), SCORING, current, later)
    assert (decision.taken, decision.code, decision.candidate_score) == (True, "not_worse", 1.0)
    decision = run_gate(other_image_model(WORSE, **names), WORSE, current, later)
    assert (decision.taken, decision.code, decision.current_score) == (False, "worse", 1.0)


@pytest.mark.parametrize("current", [None, Runtime(SCORING)])
@pytest.mark.parametrize("kind", [0, 1])
def test_windows_that_do_not_define_the_metric_are_not_held_against_the_release(
    current: Runtime | None, kind: int
) -> None:
    """A healthy device has normal windows only, for which there is no AUROC."""
    good = image_manifest(SCORING, 1, classes=("normal", "anomalous"), metric="auroc")
    decision = run_gate(good, SCORING, current, seen(30, np.full(30, kind)))
    assert (decision.taken, decision.code, decision.windows) == (True, "not_comparable", 30)
    assert decision.candidate_score is None
    assert decision.current_score is None
    assert "auroc" in decision.reason


def test_model_that_answers_nan_is_refused_though_nothing_is_comparable() -> None:
    """What the metric says of one kind of windows must not hide what the model says."""
    x = images(40, seed=7)
    content = shifted(-float(np.median(naive_image(x, 1))), "Log")
    answers = Runtime(content).predict(x)
    fine = np.isfinite(answers[:, 0])
    assert fine.sum() == 20
    test = SelfTest.of(x[fine][:3], answers[fine][:3], 1e-3)
    good = image_manifest(content, 1, classes=("normal", "anomalous"), metric="auroc", self_test=test)
    later = Windows(x.astype(np.float32), np.zeros(40, np.int64), np.zeros(40, np.int64))
    decision = run_gate(good, content, None, later)
    assert (decision.taken, decision.code) == (False, "not_scored")


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_metric_that_does_not_suit_the_models_answers_is_the_releases_fault(metric: str) -> None:
    """Not the device's data's, which would end its round with an error."""
    for classes, target in (((), "number"), (("normal", "anomalous"), "anomaly")):
        made = image_manifest(SCORING, 1, classes=classes, metric=metric)
        assert made.target == target
        later = seen(30, None if target == "number" else anomalous())
        decision = run_gate(made, SCORING, None, later)
        expected = "no_current" if TARGETS[metric] == target else "not_scored"
        assert decision.code == expected


def test_release_of_classes_does_not_fit_targets_that_are_numbers() -> None:
    later = labelled()
    decision = run_gate(manifest(GOOD), GOOD, CURRENT, replace(later, y=later.y.astype(np.float32)))
    assert (decision.taken, decision.code) == (False, "does_not_fit")


def test_label_beyond_normal_and_anomalous_does_not_fit() -> None:
    good = image_manifest(SCORING, 1, classes=("normal", "anomalous"), metric="auroc")
    decision = run_gate(good, SCORING, None, seen(30, np.arange(30) % 3))
    assert (decision.taken, decision.code) == (False, "does_not_fit")


def test_devices_own_broken_target_is_not_blamed_on_the_release() -> None:
    later = seen(30)
    later.y[4] = np.nan
    with pytest.raises(DataError):
        run_gate(image_manifest(SCORING, 1, classes=(), metric="negative_rmse"), SCORING, None, later)


def test_model_with_other_outputs_than_its_manifest_says_is_refused() -> None:
    content = image_model(outputs=2).SerializeToString()
    made = image_manifest(content, 1, classes=(), metric="negative_rmse")
    decision = run_gate(made, content, None, seen(30))
    assert (decision.taken, decision.code) == (False, "does_not_open")
    assert "outputs: 2" in decision.reason


def test_same_input_same_decision() -> None:
    def decide() -> Decision:
        return run_gate(manifest(GOOD), GOOD, CURRENT, labelled(right=30))

    assert decide() == decide()


def toilsome(start: str) -> bytes:
    """A model of hours: a long chain of products of large matrices, made of ``start``."""
    size = numpy_helper.from_array(np.array([1024, 1024]), "size")
    zero = numpy_helper.from_array(np.zeros((1, 1), np.float32), "zero")
    chain = [helper.make_node("MatMul", [f"m{i}", f"m{i}"], [f"m{i + 1}"]) for i in range(20_000)]
    nodes = [
        *mean_times_weights("first"),
        helper.make_node("ReduceSum", ["first"], ["of_window"], keepdims=0),
        helper.make_node("Expand", [start, "size"], ["m0"]),
        *chain,
        helper.make_node("ReduceSum", ["m20000"], ["sum"], keepdims=0),
        helper.make_node("Add", ["first", "sum"], ["scores"]),
    ]
    return bytes(model(nodes, more=(size, zero)).SerializeToString())


@pytest.mark.parametrize("start", ["of_window", "zero"])
def test_model_that_takes_hours_for_a_window_or_to_open_is_stopped(start: str) -> None:
    """Made of a constant, ONNX Runtime would compute the chain while it opens the model."""
    content = toilsome(start)
    inputs = GateInputs(labelled(), patience_s=0.5)
    decision = judge(with_self_test(content, naive(windows(3, seed=9))), content, None, inputs)
    assert (decision.taken, decision.code) == (False, "slow")
    assert "0.5 s" in decision.reason
