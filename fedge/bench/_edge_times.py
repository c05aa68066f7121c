"""Microseconds of models in ONNX Runtime on one thread: called bare, with bound memory, and by a device."""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from fedge.edge.runtime import INPUT, OUTPUT, Runtime

Job = Callable[[], object]
Times = dict[str, list[float]]
"""Median microseconds of a call, by name, for each repeat."""

_WARM = 20  # calls that do not count, of each job
_TURN = 20  # calls of a job, until it is another's turn


def p50(
    jobs: Mapping[str, Job], repeats: int, calls: int, clock: Callable[[], int] = time.perf_counter_ns
) -> Times:
    """Median microseconds of a call, for each job and repeat.

    The jobs take turns after a few calls each, so whatever else the machine does falls on all alike.
    """
    taken: Times = {name: [] for name in jobs}
    for job in jobs.values():
        for _ in range(_WARM):
            job()
    collects = gc.isenabled()
    gc.disable()
    try:
        for _ in range(repeats):
            for name, nanoseconds in _one_repeat(jobs, calls, clock).items():
                taken[name].append(median(nanoseconds) / 1000)
    finally:
        if collects:
            gc.enable()
    return taken


def batches(models: Mapping[str, bytes], x: NDArray[np.float32], repeats: int, calls: int) -> Times:
    """The same for batches ``x`` in bound memory, by the CPU time of this thread.

    A batch takes long enough for the machine to do something else meanwhile, which would count by the clock.
    """
    jobs = {name: bound(model, x) for name, model in models.items()}
    return p50(jobs, repeats, calls, time.thread_time_ns)


def singles(models: Mapping[str, bytes], x: NDArray[np.float32], repeats: int, calls: int) -> Times:
    """The same for a window ``x`` as a device answers it."""
    return p50({name: device(model, x) for name, model in models.items()}, repeats, calls)


def _one_repeat(jobs: Mapping[str, Job], calls: int, clock: Callable[[], int]) -> dict[str, list[int]]:
    taken: dict[str, list[int]] = {name: [] for name in jobs}
    left = calls
    while left > 0:
        for name, job in jobs.items():
            for _ in range(min(_TURN, left)):
                start = clock()
                job()
                taken[name].append(clock() - start)
        left -= _TURN
    return taken


def session(model: bytes) -> onnxruntime.InferenceSession:
    """ONNX Runtime with the settings of a device: one thread, which does not spin."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def bound(model: bytes, x: NDArray[np.float32]) -> Job:
    """``run_with_iobinding`` on memory that holds ``x`` already and takes the scores."""
    opened = session(model)
    outputs = opened.get_outputs()[0].shape[1]
    window, scores = x.copy(), np.empty((len(x), outputs), np.float32)
    binding = opened.io_binding()
    for bind, name, array in (
        (binding.bind_input, INPUT, window),
        (binding.bind_output, OUTPUT, scores),
    ):
        bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)

    def job() -> object:
        opened.run_with_iobinding(binding)
        return window, scores  # which live as long as this function

    return job


def bare(model: bytes, x: NDArray[np.float32]) -> Job:
    """``InferenceSession.run``."""
    opened = session(model)
    return lambda: opened.run([OUTPUT], {INPUT: x})


def device(model: bytes, x: NDArray[np.float32]) -> Job:
    """``Runtime.predict``: windows in, scores out, checked."""
    runtime = Runtime(model)
    return lambda: runtime.predict(x)


def middle(values: Sequence[float]) -> float:
    """The median, to a hundredth of a microsecond."""
    return round(median(values), 2)
