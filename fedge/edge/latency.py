"""How long a model takes for one window on this machine."""

import statistics
import time

import numpy as np
from numpy.typing import NDArray

from fedge.edge.runtime import Runtime
from fedge.preprocess import Preprocess


def median_us(model: bytes, window: NDArray[np.float32], repeats: int = 200) -> float:
    """Median microseconds of one window in ONNX Runtime on one thread.

    Args:
        model: an ONNX file.
        window: ``[1, channels, *size]``, as the model takes it.
        repeats: windows that are timed, after a tenth as many that are not.

    Raises:
        ReleaseError: the model does not open or does not take such a window.
    """
    channels = window.shape[1]
    as_it_is = Preprocess(np.zeros(channels, np.float32), np.ones(channels, np.float32), 1e30)
    runtime, x = Runtime(model, as_it_is), np.moveaxis(window, 1, -1)
    return runtime_median_us(runtime, x, repeats)


def runtime_median_us(runtime: Runtime, x: NDArray[np.float32], repeats: int = 200) -> float:
    """The same for an open model and a window ``[1, *size, channels]`` in the sensor's units."""
    times = []
    for repeat in range(repeats + repeats // 10):
        start = time.perf_counter_ns()
        runtime.predict(x)
        if repeat >= repeats // 10:
            times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1000
