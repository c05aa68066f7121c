"""The Open Inference Protocol (KServe V2, REST): a request to infer, read. No IO.

Source: https://github.com/kserve/open-inference-protocol and, for tensors that follow the JSON as bytes,
Triton's extensions "binary tensor data" (with its "raw binary request") and "classification", as
``tritonclient`` speaks them. A model takes one tensor and answers with one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedge.serving._json import RequestError, as_flag, as_list, as_object, as_size, as_text, loads
from fedge.serving.limits import Limits
from fedge.serving.oip_tensor import DATATYPES, Tensor, converted, from_bytes, from_json

_REMEMBERED = 1024  # bytes of JSON worth remembering: that of a client which sends the same again


@dataclass(frozen=True, eq=False)
class Face:
    """What the protocol says of a model.

    Attributes:
        name: in its URL.
        version: of the release.
        input: what it takes.
        output: what it answers with.
        model: SHA-256 of the whole model file, lower-case hex.
        classes: names of the classes, where each score stands for one.
        details: anything else worth knowing, as JSON.
    """

    name: str
    version: int
    input: Tensor
    output: Tensor
    model: str
    classes: tuple[str, ...] = ()
    details: Mapping[str, object] = field(default_factory=dict)

    def most(self, limits: Limits) -> int:
        """How many windows one request may have."""
        return max(1, min(limits.windows, limits.values // self.input.size))


@dataclass(frozen=True, eq=False)
class Inference:
    """A request, read.

    Attributes:
        id: what the client calls it; None if it does not.
        x: ``[n, *shape]``, of the dtype that the model takes; may be a view of the body.
        binary: whether the scores go back as bytes after the JSON.
        classification: how many classes, best first, go back in place of the scores; 0 for none.
        model: SHA-256 of the model that the client insists on, if it does.
    """

    id: str | None
    x: NDArray[Any]
    binary: bool
    classification: int
    model: str | None


@dataclass(frozen=True, eq=False)
class _Head:
    """The JSON of a request. ``size``: bytes of the tensor after it; None if ``data`` holds it."""

    id: str | None
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: object
    size: int | None
    outputs: tuple[str, ...]
    binary: bool
    classification: int
    model: str | None


def parse_inference(body: bytes, json_size: int | None, face: Face, limits: Limits) -> Inference:
    """Read the body of a request to infer.

    Args:
        body: JSON, and perhaps the tensor's bytes after it.
        json_size: ``Inference-Header-Content-Length``: where the JSON ends; None if it is all. 0 stands for
            the bytes of the input and nothing else ("raw binary request").
        face: of the model that is asked.
        limits: for one request.

    Raises:
        RequestError: the request is malformed, too large, or does not suit the model. Whether the numbers are
            finite is not looked at here.
    """
    if json_size == 0:
        return Inference(None, _raw(body, face, limits), True, 0, None)
    size = len(body) if json_size is None else json_size
    if size > len(body):
        raise RequestError(400, f"Inference-Header-Content-Length is {size}; the body has {len(body)} bytes")
    most = limits.json_bytes if size == len(body) else limits.json_head_bytes
    if size > most:
        raise RequestError(413, f"the JSON may have {most} bytes, not {size}: send the data in binary")
    head = _remembered(body[:size]) if size <= _REMEMBERED else _head(body[:size])
    _check_fits(head, face, limits)
    x = converted(_tensor(head, body, json_size), face.input)
    return Inference(head.id, x, head.binary, head.classification, head.model)


def _tensor(head: _Head, body: bytes, json_size: int | None) -> NDArray[Any]:
    if head.size is None:
        if json_size not in (None, len(body)):
            raise RequestError(400, "bytes follow the JSON, and its input has no binary_data_size")
        return from_json(head.data, head.datatype, head.shape)
    if json_size is None:
        raise RequestError(400, "binary_data_size needs the header Inference-Header-Content-Length")
    return from_bytes(body, json_size, head.size, head.datatype, head.shape)


def _raw(body: bytes, face: Face, limits: Limits) -> NDArray[Any]:
    """The windows of a request that is nothing but their bytes."""
    each = face.input.dtype.itemsize * face.input.size
    count, rest = divmod(len(body), each)
    if rest or not count:
        raise RequestError(
            400, f"{len(body)} bytes are no windows: each has {each} bytes ({face.input.datatype})"
        )
    _check_count(count, face, limits)
    return np.frombuffer(body, face.input.dtype).reshape(count, *face.input.shape)


def _head(text: bytes) -> _Head:
    raw = loads(text)
    inputs, parameters = as_list(raw.get("inputs"), "inputs"), as_object(raw.get("parameters"), "parameters")
    if len(inputs) != 1:
        raise RequestError(400, f"the model takes one input; the request has {len(inputs)}")
    tensor = as_object(inputs[0], "the input")
    more = as_object(tensor.get("parameters"), "the input's parameters")
    if any(key.startswith("shared_memory") for key in more):
        raise RequestError(400, "shared memory is not supported: send data or binary data")
    sizes = as_list(tensor.get("shape"), "the input's shape")[:16]
    outputs, binary, classification = _wanted(raw, as_flag(parameters, "binary_data_output", False))
    return _Head(
        id=as_text(raw["id"], "id") if "id" in raw else None,
        name=as_text(tensor.get("name"), "the input's name"),
        datatype=as_text(tensor.get("datatype"), "the input's datatype"),
        shape=tuple(as_size(size, "each size of the shape") for size in sizes),
        data=tensor.get("data"),
        size=as_size(more["binary_data_size"], "binary_data_size") if "binary_data_size" in more else None,
        outputs=outputs,
        binary=binary,
        classification=classification,
        model=as_text(parameters["model_sha256"], "model_sha256") if "model_sha256" in parameters else None,
    )


def _wanted(raw: Mapping[str, Any], binary: bool) -> tuple[tuple[str, ...], bool, int]:
    """The names under ``outputs``, whether they go back as bytes, and how many classes are asked for."""
    names, classification = [], 0
    for item in as_list(raw.get("outputs", []), "outputs")[:2]:
        output = as_object(item, "an output")
        options = as_object(output.get("parameters"), "an output's parameters")
        names.append(as_text(output.get("name"), "an output's name"))
        binary = as_flag(options, "binary_data", binary)
        classification = as_size(options.get("classification", 0), "classification")
    return tuple(names), binary, classification


_remembered = lru_cache(maxsize=256)(_head)


def other_model(face: Face, wanted: str | None) -> RequestError:
    """Why a request that insists on the model ``wanted`` is not answered by another."""
    here = face.model[:12]
    return RequestError(409, f"the model here is {here} (SHA-256), not {wanted:.12}: another release?")


def _check_fits(head: _Head, face: Face, limits: Limits) -> None:
    port = face.input
    if head.model not in (None, face.model):
        raise other_model(face, head.model)
    if head.name != port.name:
        raise RequestError(400, f"the model's input is {port.name!r}, not {head.name!r:.80}")
    if head.datatype not in DATATYPES or (port.datatype != "FP32" and head.datatype != port.datatype):
        wanted = f"one of {', '.join(DATATYPES)}" if port.datatype == "FP32" else port.datatype
        raise RequestError(400, f"{port.name!r} has datatype {head.datatype!r:.40}; it must be {wanted}")
    if head.shape[1:] != port.shape:
        wanted = ", ".join(map(str, port.shape))
        raise RequestError(400, f"{port.name!r} has shape {list(head.shape)}; it must be [n, {wanted}]")
    _check_count(head.shape[0], face, limits)
    if (head.data is None) == (head.size is None):
        raise RequestError(400, f"{port.name!r} must have data, or binary_data_size, and not both")
    if len(head.outputs) > 1 or any(name != face.output.name for name in head.outputs):
        raise RequestError(400, f"the one output is {face.output.name!r}, not {', '.join(head.outputs):.80}")
    if head.classification and not face.classes:
        raise RequestError(400, "classification is for models that tell classes")


def _check_count(count: int, face: Face, limits: Limits) -> None:
    most = face.most(limits)
    if not 1 <= count <= most:
        raise RequestError(400 if count < 1 else 413, f"a request may have 1 to {most} windows, not {count}")
