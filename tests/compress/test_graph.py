"""Preprocessing inside a model: the same bits as outside of it."""

import numpy as np
import onnxruntime
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from fedge.compress._graph import Graph
from fedge.preprocess import Preprocess

any_float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
shapes = st.tuples(st.integers(1, 9), st.integers(1, 4)) | st.tuples(*[st.integers(1, 4)] * 3)


def only_preprocessing(window: tuple[int, ...], how: Preprocess) -> bytes:
    graph = Graph()
    first = graph.channels_first(graph.preprocessed(window, how), len(window) - 1)
    graph.node("Flatten", [first], "scores", axis=1)
    return graph.serialized(window, int(np.prod(window)))


@settings(deadline=None)
@given(st.data(), shapes, st.integers(0, 3), st.floats(2.0**-20, 2.0**100, width=32))
def test_a_model_preprocesses_as_training_does_bit_for_bit(
    data: st.DataObject, window: tuple[int, ...], n: int, clip: float
) -> None:
    """Overflows, infinities on the way, and numbers below the normal range included."""
    channels = window[-1]
    mean = data.draw(arrays(np.float32, channels, elements=any_float32))
    scale = data.draw(arrays(np.float32, channels, elements=st.floats(2.0**-126, 2.0**100, width=32)))
    x: NDArray[np.float32] = data.draw(arrays(np.float32, (n, *window), elements=any_float32))
    how = Preprocess(mean, scale, clip)
    session = onnxruntime.InferenceSession(
        only_preprocessing(window, how), providers=["CPUExecutionProvider"]
    )
    (got,) = session.run(None, {"window": x})
    assert got.tobytes() == how.apply(x).tobytes()
