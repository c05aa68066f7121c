"""How long a model takes for one window on this machine."""

import statistics
import time
from typing import Any

from numpy.typing import NDArray

from fedge.edge.runtime import Runtime


def median_us(runtime: Runtime, x: NDArray[Any], repeats: int = 200) -> float:
    """Median microseconds of one window in ONNX Runtime on one thread.

    Args:
        runtime: the model.
        x: one window ``[1, *size, channels]`` in the sensor's units.
        repeats: windows that are timed, after a tenth as many that are not.

    Raises:
        DataError: the window has another shape, or holds NaN or infinity.
        ReleaseError: the model fails on it.
    """
    times = []
    for repeat in range(repeats + repeats // 10):
        start = time.perf_counter_ns()
        runtime.predict(x)
        if repeat >= repeats // 10:
            times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1000
