"""ONNX files of quantized models, as a release has them, made without the exporter."""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CHANNELS = (6, 24, 32)
CLASSES = 5
STEP_IN = np.float32(0.0271)


@dataclass(frozen=True)
class Weights:
    """Float weights of a small model by layer, and which of them were cut."""

    layers: dict[str, NDArray[np.float64]]
    alive: dict[str, NDArray[np.bool_]]

    @staticmethod
    def random(seed: int, cut: float = 0.4) -> "Weights":
        rng = np.random.default_rng(seed)
        shapes = {f"conv{i}": (b, a, 5) for i, (a, b) in enumerate(itertools.pairwise(CHANNELS))}
        shapes["head"] = (CLASSES, CHANNELS[-1])
        layers = {name: rng.normal(size=shape) for name, shape in shapes.items()}
        return Weights(layers, {name: rng.random(shape) >= cut for name, shape in shapes.items()})

    def tuned(self, seed: int, share: float = 0.01) -> "Weights":
        """After some rounds: all a little other; those that were cut stay so."""
        rng = np.random.default_rng(seed)
        return Weights({n: w + share * rng.normal(size=w.shape) for n, w in self.layers.items()}, self.alive)


def int8_model(weights: Weights) -> bytes:
    """Int8 weights with a float32 step per output, int32 biases whose steps are those times the input's."""
    nodes: list[Any] = []
    constants: list[Any] = [numpy_helper.from_array(np.asarray(STEP_IN, np.float32), "input.step")]
    for name, whole in weights.layers.items():
        w = whole * weights.alive[name]
        flat = np.abs(w.reshape(len(w), -1)).max(axis=1)
        step = (np.maximum(flat, 1e-8) / 127).astype(np.float32)
        ints = np.rint(w / step.reshape(-1, *[1] * (w.ndim - 1))).clip(-127, 127).astype(np.int8)
        fine = step * STEP_IN
        bias = np.rint(w.reshape(len(w), -1).sum(axis=1) / fine).astype(np.int32)
        parts = {
            "weight.zero": np.zeros(len(w), np.int8),
            "weight.int8": ints,
            "weight.step": step,
            "bias.int32": bias,
            "bias.step": fine,
        }
        constants += [numpy_helper.from_array(value, f"{name}.{part}") for part, value in parts.items()]
        inputs = [f"{name}.weight.int8", f"{name}.weight.step", f"{name}.weight.zero"]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}.weight"], axis=0))
        inputs = [f"{name}.bias.int32", f"{name}.bias.step"]
        nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}.bias"], axis=0))
    return _file(nodes, constants)


def float_model(weights: Weights) -> bytes:
    """The same weights in float32."""
    constants = [numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.layers.items()]
    return _file([], constants)


def _file(nodes: list[Any], constants: list[Any]) -> bytes:
    window = helper.make_tensor_value_info("window", TensorProto.FLOAT, ["batch", 128, CHANNELS[0]])
    graph = helper.make_graph(nodes, "student", [window], [], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="fedge")
    return bytes(model.SerializeToString(deterministic=True))


def raw_tensors(model: bytes) -> dict[str, bytes]:
    """The content of every constant, as the onnx package reads it."""
    return {t.name: bytes(t.raw_data) for t in onnx.load_from_string(model).graph.initializer}
