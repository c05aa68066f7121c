"""Every codec in several settings, and arrays to give them. New codecs are found in their folder."""

from collections.abc import Mapping

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fedge import plugins
from fedge.codec import Codec, Limits, Shapes

Named = dict[str, NDArray[np.float32]]

# Settings beside the defaults that are worth the same laws.
_MORE: Mapping[str, list[dict[str, object]]] = {
    "quantized": [
        {"bits": 2, "dead_zone": 0.2},
        {"bits": 8},
        {"bits": 3, "stochastic": True, "seed": 7},
        {"budget_bytes": 60},
        {"error_feedback": False},
    ],
    "subspace": [{"error_feedback": True}, {"dimensions": 3, "gain": 2.0}],
    "ternary": [{"share": 0.3}, {"share": 1.0}, {"budget_bytes": 40}, {"error_feedback": False}],
    "float16": [{"error_feedback": False}],
}


def make(name: str, **settings: object) -> Codec:
    module = plugins.load("codec", name)
    codec: Codec = module.build(module.Settings(**settings))
    return codec


CODECS = {
    f"{name}-{'-'.join(f'{k}={v}' for k, v in settings.items()) or 'default'}": make(name, **settings)
    for name in plugins.names("codec")
    for settings in [{}, *_MORE.get(name, [])]
}

SHAPES: Shapes = {"conv.weight": (16, 3, 5), "conv.bias": (16,), "gain": (), "none": (0, 4), "head": (40, 16)}


def heavy(shapes: Shapes, seed: int = 0, size: float = 1e-2) -> Named:
    """Heavy-tailed values, at sizes that differ from array to array by up to ten times."""
    rng = np.random.default_rng(seed)
    return {
        name: np.asarray(size * 10 ** rng.uniform(-0.5, 0.5) * rng.standard_t(3, shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


def limits(
    arrays: Mapping[str, NDArray[np.float32]], max_abs: float = float(np.finfo(np.float32).max)
) -> Limits:
    return Limits({k: v.shape for k, v in arrays.items()}, 1 << 24, max_abs)


def flat(arrays: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    return np.concatenate([np.zeros(0, np.float32), *(a.reshape(-1) for a in arrays.values())])


def any_arrays(largest: float = 1e6) -> st.SearchStrategy[Named]:
    """Some arrays of any shape, with zeros of both signs, subnormals, ties and large values among theirs."""
    bound = float(np.float32(largest))
    values = st.floats(-bound, bound, width=32) | st.sampled_from([0.0, -0.0, 1e-40, 0.5, -0.5, bound])
    shape = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=6)
    one = shape.flatmap(lambda s: hnp.arrays(np.float32, s, elements=values))
    return st.dictionaries(st.text("abc.", min_size=1, max_size=3), one, max_size=4)
