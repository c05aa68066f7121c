"""The steps of the gate, one by one: each raises where a release fails it."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedge.data.types import Windows
from fedge.edge.runtime import Runtime
from fedge.errors import ReleaseError
from fedge.metrics import METRICS, RANGES, TARGETS
from fedge.release.manifest import Manifest

_ROUNDING = 1e-9  # a loss of exactly the margin is allowed


def open_candidate(manifest: Manifest, model: bytes) -> Runtime:
    """Open the release's model.

    Raises:
        RefusedError: it does not open, or its sizes are not those that its manifest says.
    """
    candidate = Runtime(model)
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
        check_finite(answer)
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
    check_finite(answer)
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
            f"the release has {metric} {candidate:.4f} on this device's own windows, the current model "
            f"{current:.4f}: worse by more than {margin * whole:.4g}"
        )


def check_at_least(what: str, found: float, least: float) -> None:
    """Check that ``found`` is not below ``least``.

    Raises:
        ReleaseError: it is, or is NaN; the message says that the release's ``what`` is.
    """
    if not found >= least - _ROUNDING:
        raise ReleaseError(f"the release's {what} is {found:.4g}; at least {least:.4g} is asked for")


def check_at_most(what: str, found: float, most: float) -> None:
    """Check that ``found`` is not above ``most``.

    Raises:
        ReleaseError: it is, or is NaN; the message says that the release's ``what`` is.
    """
    if not found <= most + _ROUNDING:
        raise ReleaseError(f"the release's {what} is {found:.4g}; at most {most:.4g} is allowed")


def check_finite(answer: NDArray[np.floating[Any]]) -> None:
    """Check that an answer is made of numbers.

    Raises:
        ReleaseError: it holds NaN or infinity.
    """
    if not np.isfinite(answer).all():
        raise ReleaseError("the model answers with NaN or infinity")
