"""Export of a student to an int8 ONNX model in QDQ form, operator by operator, from its description.

The graph is written by hand rather than traced: every scale in it is the one that fake quantization used,
so what the clients trained is what ships. Weights are int8 per output channel, activations int8 per tensor
(S8S8), biases int32; ONNX Runtime fuses the QuantizeLinear/DequantizeLinear pairs into integer kernels.
Input ``window`` is float32 ``[batch, channels, time]`` (images ``[batch, channels, height, width]``), output
``scores`` float32 ``[batch, classes]``, or ``[batch, 1]`` for a number or an anomaly score.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fedge.compress.quantize import Scales, bounds, zero_point
from fedge.models.student import SPREAD_FLOOR, Conv, Reconstruction, StudentSpec

Arrays = Mapping[str, NDArray[np.float32]]

OPSET = 17  # old enough for the ONNX Runtime of a device that is updated rarely
_SMALLEST = np.float32(1e-8)


class _Graph:
    """Nodes and constants on their way into a model."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def convolution(self, spec: StudentSpec, c: Conv, inputs: list[str]) -> str:
        """One convolution of the description, without its ReLU."""
        flat = len(spec.size)
        return self.node(
            "Conv",
            inputs,
            f"{c.name}.sum",
            kernel_shape=[c.kernel] * flat,
            strides=[c.stride] * flat,
            pads=[c.kernel // 2] * 2 * flat,
            **({"group": c.groups} if c.groups > 1 else {}),
        )

    def rounded(self, tensor: str, name: str, scale: float) -> str:
        """Round a float tensor to int8 and back."""
        step = self.constant(f"{name}.step", np.asarray(scale, np.float32))
        zero = self.constant(f"{name}.zero", np.asarray(zero_point(name), np.int8))
        q = self.node("QuantizeLinear", [tensor, step, zero], f"{name}.int8")
        return self.node("DequantizeLinear", [q, step, zero], f"{name}.rounded")

    def clipped(self, tensor: str, name: str, scale: float) -> str:
        """Hold a float tensor within what int8 could hold."""
        low, high = (np.asarray(b, np.float32) for b in bounds(name, scale))
        edges = [self.constant(f"{name}.low", low), self.constant(f"{name}.high", high)]
        return self.node("Clip", [tensor, *edges], f"{name}.clipped")

    def weights(self, layer: str, arrays: Arrays, step_in: float) -> tuple[str, str]:
        """Constants of one layer's weight (int8) and bias (int32), dequantized."""
        weight, bias = arrays[f"{layer}.weight"], arrays[f"{layer}.bias"]
        least = (np.abs(bias) / (step_in * 2.0**30)).astype(np.float32)
        ints, step = quantized_weight(weight, least)
        zero = self.constant(f"{layer}.weight.zero", np.zeros(len(step), np.int8))
        w = self.constant(f"{layer}.weight.int8", ints)
        s = self.constant(f"{layer}.weight.step", step)
        w = self.node("DequantizeLinear", [w, s, zero], f"{layer}.weight", axis=0)
        fine = step * np.float32(step_in)
        b = self.constant(f"{layer}.bias.int32", np.rint(bias / fine).astype(np.int32))
        bs = self.constant(f"{layer}.bias.step", fine)
        bz = self.constant(f"{layer}.bias.zero", np.zeros(len(fine), np.int32))
        return w, self.node("DequantizeLinear", [b, bs, bz], f"{layer}.bias", axis=0)


def quantized_weight(
    weight: NDArray[np.float32], least: NDArray[np.float32]
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Int8 values and per-channel steps of a weight ``[outputs, ...]``, as the exported model holds them.

    No step is below ``least [outputs]``: with less, the bias of a channel whose weights are (nearly) all zero
    would not fit int32. What such weights lose is below the resolution of the sum.
    """
    flat = np.abs(weight.reshape(len(weight), -1))
    step = np.maximum(np.maximum(flat.max(axis=1) / np.float32(127), least), _SMALLEST).astype(np.float32)
    shaped = step.reshape(-1, *([1] * (weight.ndim - 1)))
    return np.clip(np.rint(weight / shaped), -127, 127).astype(np.int8), step


def export_int8(spec: StudentSpec, arrays: Arrays, scales: Scales) -> bytes:
    """The student with weights ``arrays`` as an int8 QDQ ONNX model (serialized)."""
    graph = _Graph()
    x = graph.rounded("window", "input", scales["input"])
    before = "input"
    for c in spec.convs:
        w, b = graph.weights(c.name, arrays, scales[before])
        y = graph.node("Relu", [graph.convolution(spec, c, [x, w, b])], f"{c.name}.relu")
        x, before = graph.rounded(y, c.name, scales[c.name]), c.name
    x = graph.node("Flatten", [graph.node("GlobalAveragePool", [x], "pooled")], "flat", axis=1)
    x = graph.rounded(x, "mean", scales["mean"])
    w, b = graph.weights("head", arrays, scales["mean"])
    return _finished(spec, graph, [x, w, b])


def export_float(spec: StudentSpec, arrays: Arrays, scales: Scales) -> bytes:
    """The same student in float32 with the same bounds on its activations, for comparison."""
    graph = _Graph()
    for name, value in arrays.items():
        graph.constant(name, value)
    x = graph.clipped("window", "input", scales["input"])
    for c in spec.convs:
        y = graph.convolution(spec, c, [x, f"{c.name}.weight", f"{c.name}.bias"])
        x = graph.clipped(y, c.name, scales[c.name])  # from 0: the ReLU is in it
    x = graph.node("Flatten", [graph.node("GlobalAveragePool", [x], "pooled")], "flat", axis=1)
    x = graph.clipped(x, "mean", scales["mean"])
    return _finished(spec, graph, [x, "head.weight", "head.bias"])


def _finished(spec: StudentSpec, graph: _Graph, inputs: list[str]) -> bytes:
    """The dense layer, and for a reconstruction how far it is off; then the whole model."""
    if spec.reconstruction is None and spec.number is None:
        graph.node("Gemm", inputs, "scores", transB=1)
        return _serialized(spec, graph)
    said = graph.node("Gemm", inputs, "said", transB=1)
    if (r := spec.reconstruction) is None:
        assert spec.number is not None  # noqa: S101 (for the type checker)
        scale, offset = (np.asarray(v, np.float32) for v in (spec.number.scale, spec.number.offset))
        scaled = graph.node("Mul", [said, graph.constant("number.scale", scale)], "number.scaled")
        graph.node("Add", [scaled, graph.constant("number.offset", offset)], "scores")
        return _serialized(spec, graph)
    off = graph.node("Sub", [said, _summary(graph, r)], "off")
    graph.node("ReduceMean", [graph.node("Mul", [off, off], "off.squared")], "scores", axes=[1], keepdims=1)
    return _serialized(spec, graph)


def _summary(graph: _Graph, r: Reconstruction) -> str:
    """``fedge.models.student.summary``, in float, from the window as it comes."""
    edges = [
        graph.constant(name, np.asarray([value], np.int64))
        for name, value in (("end.from", -r.recent), ("end.to", np.iinfo(np.int64).max), ("end.axis", 2))
    ]
    end = graph.node("Slice", ["window", *edges], "end")
    level = graph.node("ReduceMean", [end], "level", axes=[2], keepdims=1)
    off = graph.node("Sub", [end, level], "end.off")
    variance = graph.node("ReduceMean", [graph.node("Mul", [off, off], "end.squared")], "variance", axes=[2])
    floor = graph.constant("floor", np.asarray(SPREAD_FLOOR, np.float32))
    spread = graph.node(
        "Log", [graph.node("Add", [graph.node("Sqrt", [variance], "sd"), floor], "sd.up")], "ls"
    )
    both = graph.node("Flatten", [graph.node("Concat", [level, spread], "both", axis=1)], "both.flat", axis=1)
    return graph.node("Div", [both, graph.constant("scale", np.asarray(r.scale, np.float32))], "summary")


def _serialized(spec: StudentSpec, graph: _Graph) -> bytes:
    window = helper.make_tensor_value_info("window", TensorProto.FLOAT, ["batch", *spec.input])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", spec.scores])
    body = helper.make_graph(graph.nodes, "student", [window], [scores], graph.constants)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="fedge")
    model.ir_version = 8
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))
