"""The scores a task can choose from. Higher is better.

Every metric takes ``scores`` ``[n, k]`` and ``y`` ``[n]``, and raises ``DataError`` where they do not fit
each other. It is NaN where these windows do not define it: callers leave such a value out, and never take
it for a bad one. ``k`` is the number of classes, or 1 for an anomaly score (the higher, the more
anomalous; ``y`` is 0 for normal, 1 for anomalous) and for a number.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedge.errors import DataError

Scores = NDArray[np.floating[Any]]
Metric = Callable[[Scores, NDArray[Any]], float]


def accuracy(scores: Scores, y: NDArray[Any]) -> float:
    """The share of windows whose highest score is that of their own class; ties go to the first class."""
    return float(np.mean(_predicted(scores, y) == y))


def macro_f1(scores: Scores, y: NDArray[Any]) -> float:
    """The F1 score per class, ``2 TP / (2 TP + FP + FN)``, averaged over the classes that ``y`` has.

    A class that is absent from ``y`` is left out of the mean: a client that never saw it would
    otherwise be scored on it. A window wrongly given to such a class still counts, as a miss of its own.
    """
    predicted = _predicted(scores, y)
    classes = scores.shape[1]
    true = np.bincount(y, minlength=classes)
    hits = np.bincount(y[predicted == y], minlength=classes)
    f1 = 2 * hits / np.maximum(true + np.bincount(predicted, minlength=classes), 1)
    return float(f1[true > 0].mean())


def auroc(scores: Scores, y: NDArray[Any]) -> float:
    """The area under the ROC curve: how often an anomalous window scores above a normal one; a tie is half.

    Mann and Whitney's U by ranks (1947), in whole numbers: exact. NaN where all windows are of one kind.
    """
    flat = _single(scores, y)
    anomalous = _is_anomalous(y)
    positives = int(anomalous.sum())
    negatives = len(y) - positives
    if not (positives and negatives):
        return math.nan
    _, place, ties = np.unique(flat, return_inverse=True, return_counts=True)
    twice_rank = 2 * np.cumsum(ties) - ties + 1  # the mean rank of each value, doubled
    twice_u = int(twice_rank[place[anomalous]].sum()) - positives * (positives + 1)
    return twice_u / (2 * positives * negatives)


def auprc(scores: Scores, y: NDArray[Any]) -> float:
    """Average precision: the precision at each different score, weighted by the recall gained there.

    The area under the precision-recall curve by steps, without interpolation between its points. NaN where
    all windows are of one kind: without anomalous ones there is no recall, and with no others every model
    has 1.
    """
    flat = _single(scores, y)
    anomalous = _is_anomalous(y)
    if anomalous.all() or not anomalous.any():
        return math.nan
    order = np.argsort(-flat, kind="stable")
    falling = flat[order]
    last = np.append(np.flatnonzero(falling[1:] != falling[:-1]), len(y) - 1)  # of each lot of equals
    hits = np.cumsum(anomalous[order])[last]
    return float(np.sum(np.diff(hits, prepend=0) * (hits / (last + 1))) / hits[-1])


def negative_rmse(scores: Scores, y: NDArray[Any]) -> float:
    """Minus the root mean squared error of ``scores`` ``[n, 1]`` to the numbers ``y``, in their unit."""
    flat = _single(scores, y)
    if y.dtype.kind not in "fiu":
        raise DataError(f"y must be numbers, not {y.dtype}")
    if not np.isfinite(y).all():
        raise DataError("y holds NaN or infinity")
    return 0.0 - math.sqrt(float(np.mean((flat - y.astype(np.float64)) ** 2)))


METRICS: Mapping[str, Metric] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
    "auroc": auroc,
    "auprc": auprc,
    "negative_rmse": negative_rmse,
}

RANGES: Mapping[str, tuple[float, float]] = {
    "accuracy": (0.0, 1.0),
    "macro_f1": (0.0, 1.0),
    "auroc": (0.0, 1.0),
    "auprc": (0.0, 1.0),
    "negative_rmse": (-math.inf, 0.0),
}
"""The lowest and the highest value of each metric, to check what a client claims (NaN aside)."""

TARGETS: Mapping[str, Literal["class", "number", "anomaly"]] = {
    "accuracy": "class",
    "macro_f1": "class",
    "auroc": "anomaly",
    "auprc": "anomaly",
    "negative_rmse": "number",
}
"""What each metric judges (``fedge.data.types.TargetKind``)."""


NORMAL_SHARE = 0.99
"""Of normal windows, how many shall raise no alarm."""


def threshold(normal_scores: Scores, share: float) -> float:
    """The anomaly score that a device raises no alarm up to, from its own normal windows.

    Args:
        normal_scores: ``[n]``, the model's scores of windows known to be normal.
        share: how many of them shall raise no alarm, 0..1.

    Returns:
        The ``share`` quantile: the higher of the two neighbours where it falls between two scores. At most
        a share ``1 - share`` of the windows scores above it.

    Raises:
        DataError: no windows, a score that is not finite, or ``share`` outside 0..1.
    """
    if not 0 <= share <= 1:
        raise DataError(f"the share of normal windows without alarm must be in 0..1, not {share}")
    if normal_scores.ndim != 1 or normal_scores.size == 0:
        raise DataError(f"a threshold needs the scores [n] of some normal windows, not {normal_scores.shape}")
    if not np.isfinite(normal_scores).all():
        raise DataError("the scores hold NaN or infinity")
    return float(np.quantile(normal_scores.astype(np.float64), share, method="higher"))


def f1_at(scores: Scores, y: NDArray[Any], threshold: float) -> float:
    """F1, ``2 TP / (2 TP + FP + FN)``, of calling those windows anomalous that score above ``threshold``.

    Each window counts by itself: no point adjustment, which counts a whole stretch of anomalous windows
    as found once one of them is (Kim et al. 2022, "Towards a Rigorous Evaluation of Time-Series Anomaly
    Detection", show that random scores then look good).

    Args:
        scores: ``[n]``; the higher, the more anomalous.
        y: ``[n]``, 0 for normal, 1 for anomalous.
        threshold: a score, for example that of :func:`threshold`.

    Returns:
        0..1, or NaN where no window is anomalous.

    Raises:
        DataError: the arguments do not fit each other, or hold NaN or infinity.
    """
    if scores.ndim != 1:
        raise DataError(f"scores must be [n] here, not {scores.shape}")
    flat, anomalous = _single(scores[:, None], y), _is_anomalous(y)
    if not math.isfinite(threshold):
        raise DataError(f"the threshold must be finite, not {threshold}")
    if not anomalous.any():
        return math.nan
    alarm = flat > threshold
    return float(2 * np.sum(alarm & anomalous) / (alarm.sum() + anomalous.sum()))


def _predicted(scores: Scores, y: NDArray[Any]) -> NDArray[np.intp]:
    """The class of the highest score of each window, ``[n]``."""
    _check(scores, y)
    _check_index(y, scores.shape[1])
    predicted: NDArray[np.intp] = scores.argmax(axis=1)
    return predicted


def _single(scores: Scores, y: NDArray[Any]) -> NDArray[np.float64]:
    """The only score of each window, ``[n]``."""
    _check(scores, y)
    if scores.shape[1] != 1:
        raise DataError(f"there must be one score per window here, not {scores.shape[1]}")
    return scores[:, 0].astype(np.float64)


def _is_anomalous(y: NDArray[Any]) -> NDArray[np.bool_]:
    _check_index(y, 2)
    anomalous: NDArray[np.bool_] = y == 1
    return anomalous


def _check(scores: Scores, y: NDArray[Any]) -> None:
    if scores.ndim != 2 or y.ndim != 1 or len(scores) != len(y):
        raise DataError(f"scores must be [n, k] and y [n]; they are {scores.shape} and {y.shape}")
    if scores.size == 0:
        raise DataError("there is nothing to score: no windows, or no scores")
    if not np.isfinite(scores).all():
        raise DataError("the scores hold NaN or infinity")


def _check_index(y: NDArray[Any], classes: int) -> None:
    if y.dtype.kind not in "iu":
        raise DataError(f"y must be class indices (integers), not {y.dtype}")
    if int(y.min()) < 0 or int(y.max()) >= classes:
        raise DataError(f"y has class {y.min()}..{y.max()}; only 0..{classes - 1} are possible")
