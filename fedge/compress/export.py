"""Export of a student to an int8 ONNX model in QDQ form, operator by operator, from its description.

The graph is written by hand rather than traced: every scale in it is the one that fake quantization used,
so what the clients trained is what ships. Weights are int8 per output channel, activations 8 bits per tensor,
biases int32; ONNX Runtime fuses the QuantizeLinear/DequantizeLinear pairs into integer kernels. How the same
numbers are best written down for those kernels is measured: see ``docs/decisions/onnx-for-speed.md``.

The preprocessing is the first part of the graph. Input ``window`` is float32 ``[batch, time, channels]``
(images ``[batch, height, width, channels]``) in the sensor's units, output ``scores`` float32
``[batch, classes]``, or ``[batch, 1]`` for a number or an anomaly score. The model says type and shape of
every tensor at which its main path may be cut in two, and of ``summary``, which goes around that path in a
student that reconstructs.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from fedge.compress._graph import Graph
from fedge.compress._layers import Layer, Stack, as_described, as_images, side_by_side
from fedge.compress.quantize import Scales, bounds, zero_point
from fedge.models.student import SPREAD_FLOOR, Reconstruction, StudentSpec
from fedge.preprocess import Preprocess

Arrays = Mapping[str, NDArray[np.float32]]

_SMALLEST = np.float32(1e-8)
_HEAD = "head"
_UNSIGNED = 128
"""From int8 to uint8. The numbers stay the same; x86 is quick only with activations that have no sign."""


def export_int8(spec: StudentSpec, arrays: Arrays, scales: Scales, preprocess: Preprocess) -> bytes:
    """The student with weights ``arrays`` as an int8 QDQ ONNX model (serialized).

    Args:
        spec: the student.
        arrays: its weights, by name.
        scales: of its activations, by name.
        preprocess: from the sensor's units to the student's input.
    """
    graph, stack = Graph(), side_by_side(as_described(spec, arrays))
    prepared = graph.preprocessed(spec.window, preprocess)
    x, before = _laid_out(graph, prepared, spec, stack), "input"
    x = _rounded(graph, x, before, scales, stack.input)
    for layer in stack.layers:
        w, b = _weights(graph, layer.name, layer.weight, layer.bias, scales[before])
        y = graph.node("Relu", [_convolution(graph, layer, x, w, b)], f"{layer.name}.relu")
        x, before = _rounded(graph, y, layer.name, scales, layer.shape), layer.name
    x = graph.node("GlobalAveragePool", [x], "pooled")
    x = _rounded(graph, x, "mean", scales, (spec.features, *[1] * len(spec.size)))
    head = _weights(graph, _HEAD, arrays["head.weight"], arrays["head.bias"], scales["mean"])
    return _finished(spec, graph, [x, *head], prepared)


def export_float(spec: StudentSpec, arrays: Arrays, scales: Scales, preprocess: Preprocess) -> bytes:
    """The same student in float32 with the same bounds on its activations."""
    graph, stack = Graph(), as_images(as_described(spec, arrays))
    prepared = graph.preprocessed(spec.window, preprocess)
    x = _clipped(graph, _laid_out(graph, prepared, spec, stack), "input", scales, stack.input)
    for layer in stack.layers:
        w = graph.constant(f"{layer.name}.weight", layer.weight)
        b = graph.constant(f"{layer.name}.bias", layer.bias)
        y = _convolution(graph, layer, x, w, b)
        x = _clipped(graph, y, layer.name, scales, layer.shape)  # from 0: the ReLU is in it
    x = graph.node("Flatten", [graph.node("GlobalAveragePool", [x], "pooled")], "flat", axis=1)
    x = _clipped(graph, x, "mean", scales, (spec.features,))
    head = [graph.constant(name, arrays[name]) for name in ("head.weight", "head.bias")]
    return _finished(spec, graph, [x, *head], prepared)


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


def _laid_out(graph: Graph, prepared: str, spec: StudentSpec, stack: Stack) -> str:
    """Preprocessed windows as the first convolution takes them, channels first."""
    x = prepared
    if stack.window != spec.window:
        shape = graph.constant("laid_out.shape", np.asarray((0, *stack.window), np.int64))
        x = graph.node("Reshape", [x, shape], "laid_out")
    return graph.channels_first(x, len(stack.window) - 1)


def _convolution(graph: Graph, layer: Layer, x: str, weight: str, bias: str) -> str:
    """One convolution, without its ReLU."""
    groups = {"group": layer.groups} if layer.groups > 1 else {}
    kernel = layer.weight.shape[2:]
    return graph.node(
        "Conv",
        [x, weight, bias],
        f"{layer.name}.sum",
        kernel_shape=kernel,
        strides=layer.strides,
        pads=layer.pads,
        **groups,
    )


def _rounded(graph: Graph, tensor: str, name: str, scales: Scales, shape: tuple[int, ...]) -> str:
    """Round a float tensor ``[batch, *shape]`` to 8 bits and back; a mean loses its axes of 1 in between."""
    step = graph.constant(f"{name}.step", np.asarray(scales[name], np.float32))
    zero = graph.constant(f"{name}.zero", np.asarray(zero_point(name) + _UNSIGNED, np.uint8))
    q = graph.node("QuantizeLinear", [tensor, step, zero], f"{name}.uint8")
    graph.declare(q, TensorProto.UINT8, shape)
    if name == "mean":  # here, for the mean to become an integer kernel with what is around it
        q = graph.node("Flatten", [q], "flat", axis=1)
    return graph.node("DequantizeLinear", [q, step, zero], f"{name}.rounded")


def _clipped(graph: Graph, tensor: str, name: str, scales: Scales, shape: tuple[int, ...]) -> str:
    """Hold a float tensor ``[batch, *shape]`` within what int8 could hold."""
    low, high = (np.asarray(b, np.float32) for b in bounds(name, scales[name]))
    edges = [graph.constant(f"{name}.low", low), graph.constant(f"{name}.high", high)]
    held = graph.node("Clip", [tensor, *edges], f"{name}.clipped")
    return graph.declare(held, TensorProto.FLOAT, shape)


def _weights(
    graph: Graph, layer: str, weight: NDArray[np.float32], bias: NDArray[np.float32], step_in: float
) -> tuple[str, str]:
    """One layer's weight and bias; in the file they are int8 and int32."""
    least = (np.abs(bias) / (step_in * 2.0**30)).astype(np.float32)
    ints, step = quantized_weight(weight, least)
    fine = step * np.float32(step_in)
    whole = np.rint(bias / fine).astype(np.int32)
    as_floats = _multiplied if layer == _HEAD else _dequantized
    return as_floats(graph, f"{layer}.weight", ints, step), as_floats(graph, f"{layer}.bias", whole, fine)


def _dequantized(graph: Graph, name: str, ints: NDArray[np.integer], step: NDArray[np.float32]) -> str:
    """Integers ``[outputs, ...]`` as floats, for an integer kernel to take as they are."""
    whole = graph.constant(f"{name}.{ints.dtype}", ints)
    steps = graph.constant(f"{name}.step", step)
    zeros = graph.constant(f"{name}.zero", np.zeros(len(step), ints.dtype))
    return graph.node("DequantizeLinear", [whole, steps, zeros], name, axis=0)


def _multiplied(graph: Graph, name: str, ints: NDArray[np.integer], step: NDArray[np.float32]) -> str:
    """The same floats, which ONNX Runtime makes when it opens the model, for a float kernel."""
    whole = graph.constant(f"{name}.{ints.dtype}", ints)
    steps = graph.constant(f"{name}.step", step.reshape(-1, *[1] * (ints.ndim - 1)))
    floats = graph.node("Cast", [whole], f"{name}.whole", to=TensorProto.FLOAT)
    return graph.node("Mul", [floats, steps], name)


def _finished(spec: StudentSpec, graph: Graph, inputs: list[str], prepared: str) -> bytes:
    """The dense layer, and for a reconstruction how far it is off; then the whole model."""
    if spec.reconstruction is None and spec.number is None:
        graph.node("Gemm", inputs, "scores", transB=1)
        return graph.serialized(spec.window, spec.scores)
    said = graph.node("Gemm", inputs, "said", transB=1)
    if (r := spec.reconstruction) is None:
        assert spec.number is not None  # noqa: S101 (for the type checker)
        scale, offset = (np.asarray(v, np.float32) for v in (spec.number.scale, spec.number.offset))
        scaled = graph.node("Mul", [said, graph.constant("number.scale", scale)], "number.scaled")
        graph.node("Add", [scaled, graph.constant("number.offset", offset)], "scores")
        return graph.serialized(spec.window, spec.scores)
    off = graph.node("Sub", [said, _summary(graph, r, prepared)], "off")
    graph.node("ReduceMean", [graph.node("Mul", [off, off], "off.squared")], "scores", axes=[1], keepdims=1)
    return graph.serialized(spec.window, spec.scores)


def _summary(graph: Graph, r: Reconstruction, prepared: str) -> str:
    """``fedge.models.student.summary``, in float, from preprocessed windows ``[batch, time, channels]``."""
    edges = [
        graph.constant(name, np.asarray([value], np.int64))
        for name, value in (("end.from", -r.recent), ("end.to", np.iinfo(np.int64).max), ("end.axis", 1))
    ]
    end = graph.node("Slice", [prepared, *edges], "end")
    level = graph.node("ReduceMean", [end], "level", axes=[1], keepdims=1)
    off = graph.node("Sub", [end, level], "end.off")
    squared = graph.node("Mul", [off, off], "end.squared")
    variance = graph.node("ReduceMean", [squared], "variance", axes=[1], keepdims=1)
    floor = graph.constant("floor", np.asarray(SPREAD_FLOOR, np.float32))
    spread = graph.node(
        "Log", [graph.node("Add", [graph.node("Sqrt", [variance], "sd"), floor], "sd.up")], "ls"
    )
    both = graph.node("Flatten", [graph.node("Concat", [level, spread], "both", axis=1)], "both.flat", axis=1)
    graph.node("Div", [both, graph.constant("scale", np.asarray(r.scale, np.float32))], "summary")
    return graph.declare("summary", TensorProto.FLOAT, (len(r.scale),))
