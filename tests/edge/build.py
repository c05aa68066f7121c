"""Small models for the device's tests, and a manifest that fits them."""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fedge.preprocess import Preprocess
from fedge.release.manifest import Input, Manifest, ModelFile, SelfTest

TIME, CHANNELS, CLASSES = 8, 2, 3
FITTED = Preprocess(np.array([1, -2], np.float32), np.array([0.5, 3], np.float32), 4.0)
WEIGHTS = np.random.default_rng(0).normal(size=(CHANNELS, CLASSES)).astype(np.float32)
HEIGHT, WIDTH, COLOURS = 4, 6, 3
PIXELS = Preprocess(np.array([120, 90, 60], np.float32), np.array([60, 50, 40], np.float32), 4.0)
Nodes = list[onnx.NodeProto]


def model(
    nodes: Nodes | None = None,
    weights: NDArray[np.float32] = WEIGHTS,
    *,
    input_: tuple[str, int, Any] = ("window", TensorProto.FLOAT, ("batch", TIME, CHANNELS)),
    output: tuple[str, int, Any] = ("scores", TensorProto.FLOAT, ("batch", CLASSES)),
    more: tuple[onnx.TensorProto, ...] = (),
) -> onnx.ModelProto:
    """By default: ``FITTED``, the mean over time, times ``weights`` ``[channels, classes]``."""
    if nodes is None:
        front, constants = preprocessing(FITTED)
        nodes, more = [*front, *mean_times_weights(window="clipped")], (*constants, *more)
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*input_)],
        [helper.make_tensor_value_info(*output)],
        [numpy_helper.from_array(weights, "weights"), *more],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def preprocessing(how: Preprocess) -> tuple[Nodes, tuple[onnx.TensorProto, ...]]:
    """From ``window`` to ``clipped``, channels last, and the constants that it needs."""
    nodes = [
        helper.make_node("Sub", ["window", "pre.mean"], ["centred"]),
        helper.make_node("Div", ["centred", "pre.scale"], ["scaled"]),
        helper.make_node("Clip", ["scaled", "pre.low", "pre.high"], ["clipped"]),
    ]
    values = {
        "mean": how.mean,
        "scale": how.scale,
        "low": np.float32(-how.clip),
        "high": np.float32(how.clip),
    }
    return nodes, tuple(numpy_helper.from_array(np.asarray(v), f"pre.{k}") for k, v in values.items())


def mean_times_weights(name: str = "scores", window: str = "window") -> Nodes:
    return [
        helper.make_node("ReduceMean", [window], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], [name]),
    ]


def naive(x: NDArray[Any], preprocess: Preprocess | None = FITTED) -> NDArray[np.float64]:
    """What that model answers, in float64."""
    z = x
    if preprocess is not None:
        z = np.clip((x - preprocess.mean) / preprocess.scale, -preprocess.clip, preprocess.clip)
    result: NDArray[np.float64] = z.astype(np.float64).mean(axis=1) @ WEIGHTS.astype(np.float64)
    return result


def image_model(outputs: int = 2, seed: int = 1) -> onnx.ModelProto:
    """Preprocessing as ``PIXELS``, a convolution, a ReLU, the mean over all pixels, and a dense layer."""
    front, constants = preprocessing(PIXELS)
    return model(
        [
            *front,
            helper.make_node("Transpose", ["clipped"], ["first"], perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["first", "kernel"], ["sum"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["sum"], ["relu"]),
            helper.make_node("GlobalAveragePool", ["relu"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("Gemm", ["flat", "head"], ["scores"], transB=1),
        ],
        input_=("window", TensorProto.FLOAT, ("batch", HEIGHT, WIDTH, COLOURS)),
        output=("scores", TensorProto.FLOAT, ("batch", outputs)),
        more=(
            *constants,
            *(numpy_helper.from_array(v, k) for k, v in _image_weights(outputs, seed).items()),
        ),
    )


def _image_weights(outputs: int, seed: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    kernel, head = rng.normal(size=(5, COLOURS, 3, 3)), rng.normal(size=(outputs, 5))
    return {"kernel": kernel.astype(np.float32), "head": head.astype(np.float32)}


def naive_image(x: NDArray[Any], outputs: int = 2, seed: int = 1) -> NDArray[np.float64]:
    """What that model answers, in float64, one pixel after the other."""
    weights = _image_weights(outputs, seed)
    z = np.clip((x - PIXELS.mean.astype(np.float64)) / PIXELS.scale, -PIXELS.clip, PIXELS.clip)
    z = np.pad(z, ((0, 0), (1, 1), (1, 1), (0, 0)))
    total = np.zeros((len(x), 5))
    for i, j in np.ndindex(HEIGHT, WIDTH):
        patch = z[:, i : i + 3, j : j + 3]
        total += np.maximum(np.einsum("nabc,ocab->no", patch, weights["kernel"]), 0)
    result: NDArray[np.float64] = total / (HEIGHT * WIDTH) @ weights["head"].T
    return result


def images(n: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (n, HEIGHT, WIDTH, COLOURS), np.uint8)


def windows(n: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(1, 3, (n, TIME, CHANNELS)).astype(np.float32)


def manifest(content: bytes, **changes: Any) -> Manifest:
    x = windows(3, seed=9)
    values: dict[str, Any] = {
        "federation": "0123456789abcdef",
        "version": 1,
        "round": 1,
        "created": 1,
        "task": "test",
        "model": ModelFile.of(content),
        "input": Input((TIME, CHANNELS), ("a", "b")),
        "classes": ("x", "y", "z"),
        "metric": "accuracy",
        "scores": {},
        "sizes": {},
        "parent": None,
        "expires": 2,
        "self_test": SelfTest.of(x, naive(x).astype(np.float32), 1e-3),
    }
    whole = Manifest(**(values | changes))
    whole.to_bytes()  # checks it
    return whole


def image_manifest(content: bytes, outputs: int = 2, **changes: Any) -> Manifest:
    x = images(3, seed=9)
    values: dict[str, Any] = {
        "input": Input((HEIGHT, WIDTH, COLOURS), ("red", "green", "blue")),
        "classes": ("x", "y"),
        "self_test": SelfTest.of(x, naive_image(x, outputs).astype(np.float32), 1e-3),
    }
    whole = replace(manifest(content), **(values | changes))
    whole.to_bytes()  # checks it
    return whole
