"""A torch module as an ONNX model behind the preprocessing: to measure a teacher where its student runs."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import onnx
import torch
from onnx.helper import make_tensor_value_info
from torch.onnx.errors import OnnxExporterError

from fedge.compress._graph import BATCH, OPSET, SCORES, WINDOW, Graph
from fedge.preprocess import Preprocess


def export_module(module: torch.nn.Module, window: tuple[int, ...], preprocess: Preprocess) -> bytes | None:
    """``module`` in float32 with the ports of a student's model, written by torch's own exporter.

    Args:
        module: takes ``[batch, channels, *size]``, preprocessed; answers ``[batch, outputs]``.
        window: shape of a window in the sensor's units, ``(*size, channels)``.
        preprocess: what goes before the module.

    Returns:
        The ONNX model; ``None`` for a module that the exporter cannot write.
    """
    *size, channels = window
    buffer = BytesIO()
    with warnings.catch_warnings(), _without_its_log():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                module,
                (torch.zeros(1, channels, *size),),
                buffer,  # type: ignore[arg-type] # the older exporter writes to any file object
                dynamo=False,  # the newer exporter needs another package
                input_names=["channels_first"],
                output_names=[SCORES],
                dynamic_axes={"channels_first": {0: BATCH}, SCORES: {0: BATCH}},
                opset_version=OPSET,
            )
        except OnnxExporterError:
            return None
    return _behind(preprocess, window, onnx.load_from_string(buffer.getvalue()))


@contextmanager
def _without_its_log() -> Iterator[None]:
    """The exporter prints graphs that it cannot write from C++, and switches its own log on to do so."""
    log = getattr(torch._C, "_jit_onnx_log", None)  # not public: where it is gone, nothing is done
    if log is None:
        yield
        return
    setattr(torch._C, "_jit_onnx_log", lambda *_: None)  # noqa: B010 (mypy knows its type)
    try:
        yield
    finally:
        setattr(torch._C, "_jit_onnx_log", log)  # noqa: B010


def _behind(preprocess: Preprocess, window: tuple[int, ...], model: onnx.ModelProto) -> bytes:
    """``model``, whose input is called ``channels_first``, with the preprocessing before it."""
    front, body = Graph(), model.graph
    front.channels_first(front.preprocessed(window, preprocess), len(window) - 1)
    nodes = [*front.nodes, *body.node]
    del body.node[:]
    body.node.extend(nodes)
    body.initializer.extend(front.constants)
    body.input[0].CopyFrom(make_tensor_value_info(WINDOW, onnx.TensorProto.FLOAT, [BATCH, *window]))
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))
