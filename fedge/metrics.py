"""The scores a task can choose from. All are between 0 and 1, and higher is better.

Every metric takes ``scores`` ``[n, classes]`` (the higher, the likelier; ties go to the first class) and
``y`` ``[n]`` (class indices), and raises ``DataError`` where they do not fit each other.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedge.errors import DataError

Metric = Callable[[NDArray[np.floating[Any]], NDArray[np.integer[Any]]], float]


def accuracy(scores: NDArray[np.floating[Any]], y: NDArray[np.integer[Any]]) -> float:
    """The share of windows whose highest score is that of their own class."""
    return float(np.mean(_predicted(scores, y) == y))


def macro_f1(scores: NDArray[np.floating[Any]], y: NDArray[np.integer[Any]]) -> float:
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


METRICS: Mapping[str, Metric] = {"accuracy": accuracy, "macro_f1": macro_f1}


def _predicted(scores: NDArray[np.floating[Any]], y: NDArray[np.integer[Any]]) -> NDArray[np.intp]:
    """The class of the highest score of each window, ``[n]``."""
    if scores.ndim != 2 or y.ndim != 1 or len(scores) != len(y):
        raise DataError(f"scores must be [n, classes] and y [n]; they are {scores.shape} and {y.shape}")
    if scores.size == 0:
        raise DataError("there is nothing to score: no windows, or no classes")
    if y.dtype.kind not in "iu":
        raise DataError(f"y must be class indices (integers), not {y.dtype}")
    if int(y.min()) < 0 or int(y.max()) >= scores.shape[1]:
        raise DataError(f"y has class {y.min()}..{y.max()}; the scores have classes 0..{scores.shape[1] - 1}")
    if not np.isfinite(scores).all():
        raise DataError("the scores hold NaN or infinity")
    predicted: NDArray[np.intp] = scores.argmax(axis=1)
    return predicted
