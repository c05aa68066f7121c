"""The device's own test of a release, before it uses it.

That the release is genuine and whole was checked before (``fedge.release.rules``). What is asked here is
whether it works on *this* device and is no worse on its own later data. The rules raise;
:func:`run_gate` is the outermost place, which turns what they raise into a decision to report.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedge.data.types import Windows
from fedge.edge.runtime import Runtime
from fedge.errors import DataError, RefusedError, ReleaseError
from fedge.metrics import METRICS, RANGES, TARGETS
from fedge.preprocess import from_dict
from fedge.release.manifest import Manifest

DEFAULT_MARGIN = 0.02
_ROUNDING = 1e-9  # a loss of exactly the margin is allowed
_ALONE = "taken on its integrity and its self-test alone"


@dataclass(frozen=True)
class Decision:
    """What the device decided about a release, and why.

    Attributes:
        taken: whether the device uses the release from now on.
        code: the reason for machines. Taken: ``not_worse``; ``no_windows`` (there were none to compare
            on), ``not_comparable`` (they do not define the metric: AUROC needs normal and anomalous ones),
            ``no_current`` (no model that answers to compare with). Refused: ``does_not_open``,
            ``does_not_fit``, ``self_test``, ``not_scored``, ``worse``.
        reason: the same for people.
        current_score: score of the model in use, where both were scored; higher is better.
        candidate_score: score of the release, where it got that far and the metric is defined.
        windows: how many labelled windows there were to compare on.
    """

    taken: bool
    code: str
    reason: str
    current_score: float | None
    candidate_score: float | None
    windows: int


def run_gate(
    manifest: Manifest,
    model: bytes,
    current: Runtime | None,
    later: Windows,
    margin: float = DEFAULT_MARGIN,
) -> Decision:
    """Test a release whose signature and hash were checked already.

    Args:
        manifest: what the release says about itself.
        model: its ONNX file.
        current: the model in use; None on a device that has none yet.
        later: the device's own later labelled windows; may be empty (``x`` still ``[0, time, channels]``),
            and then integrity and the self-test decide alone.
        margin: how much lower than the current model's score the release's may be: see
            :func:`check_not_worse`.

    Raises:
        DataError: the device's own windows cannot be used, which says nothing about the release.
    """
    old = new = None
    code = "does_not_open"
    try:
        candidate = open_candidate(manifest, model)
        code = "does_not_fit"
        check_fits(manifest, later)
        code = "self_test"
        check_self_test(manifest, candidate)
        if len(later) == 0:
            text = f"{_ALONE}: this device has no labelled windows"
            return Decision(True, "no_windows", text, None, None, 0)
        code = "not_scored"
        check_metric(manifest)
        new = score(candidate, manifest.metric, later)
        if math.isnan(new):
            text = f"{_ALONE}: this device's labelled windows do not define {manifest.metric}"
            return Decision(True, "not_comparable", text, None, None, len(later))
        old = _current_score(current, manifest.metric, later)
        if old is None:
            text = f"taken with a {manifest.metric} of {new:.4f}: no current model to compare with"
            return Decision(True, "no_current", text, None, new, len(later))
        code = "worse"
        check_not_worse(manifest.metric, new, old, margin)
    except RefusedError as error:
        return Decision(False, code, str(error), old, new, len(later))
    text = f"taken with a {manifest.metric} of {new:.4f}; the current model has {old:.4f}"
    return Decision(True, "not_worse", text, old, new, len(later))


def open_candidate(manifest: Manifest, model: bytes) -> Runtime:
    """Open the release's model with its preprocessing.

    Raises:
        RefusedError: it does not open, or its sizes are not those that its manifest says.
    """
    candidate = Runtime(model, from_dict(manifest.preprocess))
    for what, said, found in (
        ("windows of shape", manifest.input.shape, candidate.window),
        ("outputs:", manifest.outputs, candidate.outputs),
    ):
        if said != found:
            raise ReleaseError(f"the model has {what} {found}; its manifest says {said}")
    return candidate


def check_fits(manifest: Manifest, later: Windows) -> None:
    """Check that the model takes windows of this device's shape and knows its classes.

    Raises:
        ReleaseError: it does not.
    """
    wants, has = manifest.input.shape, later.x.shape[1:]
    if wants != has:
        raise ReleaseError(f"the release takes windows of shape {wants}; this device has {has}")
    if len(later) == 0 or manifest.target == "number":
        return
    if later.y.dtype.kind not in "iu":
        raise ReleaseError("the release tells classes; the targets of this device's windows are numbers")
    known = len(manifest.classes)
    if int(later.y.max()) >= known:
        raise ReleaseError(f"the release knows classes 0..{known - 1}; this device has class {later.y.max()}")


def check_metric(manifest: Manifest) -> None:
    """Check that the release is judged by a metric that this device knows, and that suits its answers.

    Raises:
        ReleaseError: it is not.
    """
    metric, target = manifest.metric, manifest.target
    if metric not in METRICS:
        raise ReleaseError(f"the release is judged by {metric!r}; this device knows {', '.join(METRICS)}")
    if TARGETS[metric] != target:
        found = f"but answers with {manifest.outputs} scores for {len(manifest.classes)} classes"
        raise ReleaseError(f"the release is judged by {metric!r}, {found}")


def check_self_test(manifest: Manifest, candidate: Runtime) -> None:
    """Check that the model answers the release's own test windows as it did on the server.

    They go through both ways of the runtime: one by one, and together.

    Raises:
        ReleaseError: an answer is not finite, or further off than the tolerance.
    """
    x, expected = manifest.self_test_windows(), manifest.self_test_scores()
    tolerance = manifest.self_test.tolerance
    one_by_one = np.concatenate([candidate.predict(x[i : i + 1]) for i in range(len(x))])
    for answer in (one_by_one, candidate.predict(x)):
        _check_finite(answer)
        off = float(np.abs(answer.astype(np.float64) - expected).max())
        if not off <= tolerance:
            raise ReleaseError(f"the self-test is off by {off:.3g}; up to {tolerance:.3g} is allowed")


def score(runtime: Runtime, metric: str, later: Windows) -> float:
    """The model's score on ``later``; higher is better, NaN where these windows do not define it.

    Raises:
        ReleaseError: the model fails, or an answer is not finite.
        DataError: the windows cannot be used, or the metric does not suit the model's answers.
    """
    answer = runtime.predict(later.x)
    _check_finite(answer)
    return METRICS[metric](answer, later.y)


def check_not_worse(metric: str, candidate: float, current: float, margin: float) -> None:
    """Check that the release's score is not too far below the current model's.

    A metric within 0..1 may be ``margin`` lower. One without such bounds has the unit of what it measures,
    so the margin is a share of the current score: with ``negative_rmse`` and 0.02, the release's error may
    be 2 % above the current model's.

    Raises:
        ReleaseError: it is further below, or one of the numbers is NaN.
    """
    whole = 1.0 if math.isfinite(RANGES[metric][0]) else abs(current)
    if not current - candidate <= (margin + _ROUNDING) * whole:
        raise ReleaseError(
            f"the release has a {metric} of {candidate:.4f} on this device's own windows, the current model "
            f"{current:.4f}: worse by more than {margin * whole:.4g}"
        )


def _current_score(current: Runtime | None, metric: str, later: Windows) -> float | None:
    """The score of the model in use; None where there is none, or none that answers these windows."""
    if current is None:
        return None
    try:
        return score(current, metric, later)
    except (DataError, ReleaseError):  # the candidate answered these very windows
        return None


def _check_finite(answer: NDArray[np.floating[Any]]) -> None:
    if not np.isfinite(answer).all():
        raise ReleaseError("the model answers with NaN or infinity")
