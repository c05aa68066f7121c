"""The device's own test of a release, before it uses it.

That the release is genuine and whole was checked before (``fedge.edge.updater``). What is asked here is
whether it works on *this* device, is fast enough, and is no worse: by its score on the device's own later
windows, or, where nobody labelled any, by how much its answers are like the current model's. The rules raise;
:func:`judge` is the outermost place, which turns what they raise into a decision to report.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedge.config import Release
from fedge.data.types import Windows
from fedge.edge.agreement import Likeness, likeness
from fedge.edge.checks import (
    check_at_least,
    check_at_most,
    check_finite,
    check_fits,
    check_metric,
    check_not_worse,
    check_self_test,
    open_candidate,
    score,
)
from fedge.edge.pace import medians_us
from fedge.edge.runtime import Runtime, SlowError, try_out
from fedge.errors import DataError, RefusedError, ReleaseError
from fedge.release.manifest import Manifest

DEFAULT_MARGIN = Release.margin
MAX_RECENT = 512
"""So many of the recent windows are looked at, the last ones."""
_ALONE = "taken on its integrity and its self-test alone"

Timer = Callable[[Sequence[Runtime], NDArray[Any]], list[float]]
"""Microseconds that each model takes for one window ``[1, *shape]``."""


@dataclass(frozen=True, eq=False)
class GateInputs:
    """What a release is tested on, and how strictly: all of it is the device's own.

    Attributes:
        labelled: the device's own later labelled windows; where it has none, none of them (``x`` still
            ``[0, *shape]``) or, if it does not even know their shape, None.
        recent: windows ``[n, *shape]`` that it saw lately, without labels; None for none.
        margin: how much lower than the current model's score the release's may be: see
            :func:`check_not_worse`.
        least_agreement: without labels, how much its answers must be like the current model's, 0..1
            (``fedge.edge.agreement``).
        most_drift: without labels, how far they may be from these on the whole.
        least_recent: fewer recent windows than that say nothing.
        latency_factor: so many times as slow as the current model is too slow; None to allow any.
        latency_slack_us: microseconds above that which do not matter.
        latency_budget_us: more microseconds for one window are too many; None for no such limit. With neither
            factor nor budget no time is measured.
        patience_s: a model that has not answered its first window after so many seconds is stopped.
        timer: how time is measured; a simulation has none of its own.
    """

    labelled: Windows | None = None
    recent: NDArray[Any] | None = None
    margin: float = DEFAULT_MARGIN
    least_agreement: float = 0.7
    most_drift: float = 0.25
    least_recent: int = 20
    latency_factor: float | None = 2.0
    latency_slack_us: float = 50.0
    latency_budget_us: float | None = None
    patience_s: float = 10.0
    timer: Timer = medians_us


@dataclass(frozen=True, eq=False)
class OpenRelease:
    """A release whose model is open."""

    manifest: Manifest
    runtime: Runtime


@dataclass(frozen=True)
class Decision:
    """What the device decided about a release, and why.

    Attributes:
        taken: whether the device uses the release from now on.
        code: the reason for machines. Taken: ``not_worse``; ``alike`` (judged without labels);
            ``no_windows`` (there were none to compare on), ``not_comparable`` (they do not define the metric:
            AUROC needs normal and anomalous ones), ``no_current`` (no model that answers to compare with).
            Refused: ``does_not_open``, ``does_not_fit``, ``self_test``, ``slow``, ``not_scored``, ``worse``,
            ``disagrees``, ``drifts``.
        reason: the same for people.
        current_score: score of the model in use, where both were scored; higher is better.
        candidate_score: score of the release, where it got that far and the metric is defined.
        windows: how many labelled windows there were to compare on.
        latency_us: median microseconds that the release takes for one window, if that was measured.
        likeness: how like the current model's its answers are, where that was asked.
    """

    taken: bool
    code: str
    reason: str
    current_score: float | None
    candidate_score: float | None
    windows: int
    latency_us: float | None = None
    likeness: Likeness | None = None


@dataclass
class _Progress:
    """How far a release has come: the code of the step it is in, and what was measured."""

    code: str = "does_not_open"
    current_score: float | None = None
    candidate_score: float | None = None
    latency_us: float | None = None
    likeness: Likeness | None = None


def judge(manifest: Manifest, model: bytes, current: OpenRelease | None, inputs: GateInputs) -> Decision:
    """Test a release whose signature and hash were checked already.

    Args:
        manifest: what the release says about itself.
        model: its ONNX file.
        current: the release in use; None on a device that has none yet.
        inputs: what it is tested on.

    Raises:
        DataError: the device's own windows cannot be used, which says nothing about the release.
    """
    so_far = _Progress()
    labelled = _no_windows(manifest) if inputs.labelled is None else inputs.labelled
    try:
        code, reason = _steps(manifest, model, current, labelled, inputs, so_far)
        taken = True
    except RefusedError as error:
        taken, code, reason = False, so_far.code, str(error)
    return Decision(
        taken,
        code,
        reason,
        so_far.current_score,
        so_far.candidate_score,
        len(labelled),
        so_far.latency_us,
        so_far.likeness,
    )


def _steps(
    manifest: Manifest,
    model: bytes,
    current: OpenRelease | None,
    labelled: Windows,
    inputs: GateInputs,
    so_far: _Progress,
) -> tuple[str, str]:
    """One step after the other; gives the code and the reason of a release that is taken."""
    _check_ends(manifest, model, inputs.patience_s, so_far)
    candidate = OpenRelease(manifest, open_candidate(manifest, model))
    so_far.code = "does_not_fit"
    check_fits(manifest, labelled)
    recent = _recent(manifest, inputs)
    so_far.code = "self_test"
    check_self_test(manifest, candidate.runtime)
    so_far.code = "slow"
    if (times := _timed(candidate, current, inputs)) is not None:
        so_far.latency_us = times[0]
        _check_latency(*times, inputs)
    so_far.code = "not_scored"
    answers = candidate.runtime.predict(recent)
    check_finite(answers)
    if len(labelled):
        check_metric(manifest)
        new = score(candidate.runtime, manifest.metric, labelled)
        if not math.isnan(new):
            so_far.candidate_score = new
            return _compare_scores(manifest.metric, new, current, labelled, inputs.margin, so_far)
    if len(recent) >= max(1, inputs.least_recent):
        return _compare_answers(manifest, answers, current, recent, inputs, so_far)
    if len(labelled):
        text = f"{_ALONE}: this device's labelled windows do not define {manifest.metric}"
        return "not_comparable", text
    return "no_windows", f"{_ALONE}: this device has no labelled windows, and {len(recent)} recent ones"


def _compare_scores(
    metric: str,
    new: float,
    current: OpenRelease | None,
    labelled: Windows,
    margin: float,
    so_far: _Progress,
) -> tuple[str, str]:
    old = so_far.current_score = _current_score(current, metric, labelled)
    if old is None:
        return "no_current", f"taken with {metric} {new:.4f}: no current model to compare with"
    so_far.code = "worse"
    check_not_worse(metric, new, old, margin)
    return "not_worse", f"taken with {metric} {new:.4f}; the current model has {old:.4f}"


def _compare_answers(
    manifest: Manifest,
    answers: NDArray[np.float32],
    current: OpenRelease | None,
    recent: NDArray[Any],
    inputs: GateInputs,
    so_far: _Progress,
) -> tuple[str, str]:
    """Without labels: by how like the current model's the answers are."""
    before = _current_answers(current, recent)
    if current is None or before is None:
        return "no_current", f"{_ALONE}: no current model to compare with"
    like = so_far.likeness = likeness(current.manifest, manifest, before, answers)
    so_far.code = "disagrees"
    check_at_least("agreement with the current model", like.agreement, inputs.least_agreement)
    so_far.code = "drifts"
    check_at_most("drift from the current model's answers", like.drift, inputs.most_drift)
    said = (
        f"agreement of {like.agreement:.4f} and a drift of {like.drift:.4f} on {len(recent)} recent windows"
    )
    return "alike", f"taken with an {said}"


def _no_windows(manifest: Manifest) -> Windows:
    return Windows(
        np.empty((0, *manifest.input.shape), np.float32), np.empty(0, np.int64), np.empty(0, np.int64)
    )


def _recent(manifest: Manifest, inputs: GateInputs) -> NDArray[Any]:
    """The last of the recent windows; ``[0, *shape]`` where there are none."""
    recent, shape = inputs.recent, manifest.input.shape
    if recent is None or not len(recent):
        return np.empty((0, *shape), np.float32)
    if recent.shape[1:] != shape:
        found = recent.shape[1:]
        raise ReleaseError(
            f"the release takes windows of shape {shape}; this device's recent ones have {found}"
        )
    return recent[-MAX_RECENT:]


def _check_ends(manifest: Manifest, model: bytes, seconds: float, so_far: _Progress) -> None:
    """Check that one window is answered in time: opening it, or a test of many, could take for ever."""
    try:
        try_out(model, manifest.self_test_windows()[:1], seconds)
    except SlowError:
        so_far.code = "slow"
        raise


def _timed(
    candidate: OpenRelease, current: OpenRelease | None, inputs: GateInputs
) -> tuple[float, float | None] | None:
    """Microseconds that the release takes for one window, and the current model if it takes such windows.

    None where nothing is asked of them.
    """
    if inputs.latency_factor is None and inputs.latency_budget_us is None:
        return None
    models, window = [candidate.runtime], candidate.manifest.self_test_windows()[:1]
    if current is not None and current.runtime.window == candidate.runtime.window:
        models.append(current.runtime)
    try:
        new, *old = inputs.timer(models, window)
    except ReleaseError:  # the current model's fault: the candidate has answered this window
        new, *old = inputs.timer(models[:1], window)
    return new, old[0] if old else None


def _check_latency(new: float, old: float | None, inputs: GateInputs) -> None:
    if inputs.latency_budget_us is not None:
        check_at_most("time for one window, in us,", new, inputs.latency_budget_us)
    if old is not None and inputs.latency_factor is not None:
        limit = inputs.latency_factor * old + inputs.latency_slack_us
        check_at_most(f"time for one window, in us, where the current model takes {old:.4g},", new, limit)


def _current_answers(current: OpenRelease | None, recent: NDArray[Any]) -> NDArray[np.float32] | None:
    """What the model in use answers; None where there is none, or none that answers these windows."""
    if current is None:
        return None
    try:
        answers = current.runtime.predict(recent)
        check_finite(answers)
    except (DataError, ReleaseError):  # the candidate answered these very windows
        return None
    return answers


def _current_score(current: OpenRelease | None, metric: str, later: Windows) -> float | None:
    """The score of the model in use; None where there is none, or none that answers these windows."""
    if current is None:
        return None
    try:
        return score(current.runtime, metric, later)
    except (DataError, ReleaseError):  # the candidate answered these very windows
        return None
