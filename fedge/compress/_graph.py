"""An ONNX graph on its way into a model: nodes, constants, and the shapes of what lies between."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fedge.preprocess import Preprocess

OPSET = 17  # old enough for the ONNX Runtime of a device that is updated rarely
_IR_VERSION = 8
WINDOW, SCORES, BATCH = "window", "scores", "batch"


class Graph:
    """Nodes and constants of a model with input ``window`` and output ``scores``."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.between: list[onnx.ValueInfoProto] = []

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """A tensor with a fixed value; gives its name."""
        self.constants.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """An operator with one result; gives the result's name."""
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def declare(self, name: str, kind: int, shape: Sequence[int]) -> str:
        """Write type and shape ``[batch, *shape]`` of a tensor into the model: it may be cut there."""
        self.between.append(helper.make_tensor_value_info(name, kind, [BATCH, *shape]))
        return name

    def preprocessed(self, window: tuple[int, ...], how: Preprocess) -> str:
        """``how.apply``, the same operations in the same order; gives ``[batch, *size, channels]`` float32.

        Mean and scale are spread over a whole window, which ONNX Runtime does once when it opens the model:
        operators that spread a few channels over each sample take several times as long.
        """
        shape = self.constant("preprocess.shape", np.asarray(window, np.int64))
        mean, scale = (
            self.node("Expand", [self.constant(f"preprocess.{name}", value), shape], f"preprocess.{name}.all")
            for name, value in (("mean", how.mean), ("scale", how.scale))
        )
        edges = [
            self.constant(f"preprocess.{name}", np.asarray(value, np.float32))
            for name, value in (("low", -how.clip), ("high", how.clip))
        ]
        x = self.node("Sub", [WINDOW, mean], "preprocess.centred")
        x = self.node("Div", [x, scale], "preprocess.scaled")
        return self.node("Clip", [x, *edges], "preprocessed")

    def channels_first(self, x: str, flat: int) -> str:
        """``x [batch, *size, channels]`` with ``flat`` sizes as ``[batch, channels, *size]``."""
        return self.node("Transpose", [x], "channels_first", perm=[0, flat + 1, *range(1, flat + 1)])

    def serialized(self, window: tuple[int, ...], outputs: int) -> bytes:
        """The whole model, checked, the same bytes for the same content."""
        ports = ((WINDOW, window), (SCORES, (outputs,)))
        first, last = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, *shape]) for name, shape in ports
        )
        body = helper.make_graph(
            self.nodes, "student", [first], [last], self.constants, value_info=self.between
        )
        model = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="fedge")
        model.ir_version = _IR_VERSION
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString(deterministic=True))
