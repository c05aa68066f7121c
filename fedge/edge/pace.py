"""How fast models answer on this device, next to each other: what else it does slows them down alike."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedge.edge.runtime import Runtime

_LEAST = 5


def medians_us(
    models: Sequence[Runtime], window: NDArray[np.floating[Any]], repeats: int = 100, seconds: float = 2.0
) -> list[float]:
    """Median microseconds of one window for each of ``models``, which take turns.

    Args:
        models: open models that take ``window``.
        window: ``[1, *shape]``.
        repeats: how often each answers, after a tenth as often untimed.
        seconds: after which it ends early, but not before each has answered five times.

    Raises:
        ReleaseError: a model fails.
        DataError: the window has another shape.
    """
    times: list[list[float]] = [[] for _ in models]
    end = time.perf_counter() + seconds
    for repeat in range(-max(1, repeats // 10), repeats):
        if repeat >= _LEAST and time.perf_counter() > end:
            break
        for model, taken in zip(models, times, strict=True):
            start = time.perf_counter_ns()
            model.predict(window)
            if repeat >= 0:
                taken.append((time.perf_counter_ns() - start) / 1000)
    return [statistics.median(taken) for taken in times]
