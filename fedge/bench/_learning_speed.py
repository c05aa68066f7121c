"""How much faster a cut student is: two int8 models in ONNX Runtime, in turns, on one thread."""

from collections.abc import Callable

import numpy as np
import onnxruntime

from fedge.bench._timing import race
from fedge.edge.runtime import INPUT, OUTPUT

BATCH = 32
_REPEATS = 31


def speedup(full: bytes, cut: bytes) -> float:
    """Median time of ``full`` over that of ``cut`` for a batch of 32 windows, by this process's CPU."""
    taken = race({"full": _job(full), "cut": _job(cut)}, _REPEATS)
    return taken["full"].cpu / taken["cut"].cpu


def _job(model: bytes) -> Callable[[], object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    _, *shape = session.get_inputs()[0].shape
    x = np.random.default_rng(0).normal(0, 1, (BATCH, *shape)).astype(np.float32)
    return lambda: session.run([OUTPUT], {INPUT: x})
