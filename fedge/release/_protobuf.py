"""Where the tensors of an ONNX file lie, found without the onnx package.

Only what makes a delta reads this, from models that it made itself; what a device is handed is screened by
``fedge.edge.screen``, and rebuilding a model from a delta looks at bytes only.
"""

from collections.abc import Iterator
from dataclasses import dataclass

FLOAT, INT8, INT32 = 1, 3, 6
"""Numbers of element types in onnx.proto."""

_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}
_GRAPH, _NODE, _TENSOR = 7, 1, 5
_INPUT, _OPERATOR = 1, 4
_TYPE, _NAME, _RAW = 2, 8, 9
_DEQUANTIZE = b"DequantizeLinear"


@dataclass(frozen=True)
class Tensor:
    """A constant of a model.

    Attributes:
        name: its name.
        kind: number of its element type.
        offset: where its content starts in the file.
        size: of its content, in bytes.
        step: name of the constant that its integers are multiplied by, where there is one.
    """

    name: bytes
    kind: int
    offset: int
    size: int
    step: bytes | None


def tensors(model: bytes) -> list[Tensor]:
    """The constants of ``model`` whose content is raw bytes, in the order of the file.

    Raises:
        ValueError: it is no ONNX file.
    """
    view = memoryview(model)
    graph = [where for number, where in _fields(view, 0, len(view)) if number == _GRAPH]
    parts = [part for where in graph for part in _fields(view, *where)]
    steps = dict(pair for number, where in parts if number == _NODE for pair in _step_of(view, *where))
    found = [_tensor(view, *where, steps) for number, where in parts if number == _TENSOR]
    return sorted((t for t in found if t is not None), key=lambda t: t.offset)


def _step_of(view: memoryview, start: int, end: int) -> list[tuple[bytes, bytes]]:
    """Names of the integers and of their step, if this node is what multiplies them."""
    inputs, operator = [], b""
    for number, where in _fields(view, start, end):
        if number == _INPUT:
            inputs.append(bytes(view[slice(*where)]))
        elif number == _OPERATOR:
            operator = bytes(view[slice(*where)])
    return [(inputs[0], inputs[1])] if operator == _DEQUANTIZE and len(inputs) > 1 else []


def _tensor(view: memoryview, start: int, end: int, steps: dict[bytes, bytes]) -> Tensor | None:
    name, kind, raw = b"", 0, None
    for number, where in _fields(view, start, end):
        if number == _NAME:
            name = bytes(view[slice(*where)])
        elif number == _TYPE:
            kind, _ = _varint(view, where[0])
        elif number == _RAW:
            raw = where
    return None if raw is None else Tensor(name, kind, raw[0], raw[1] - raw[0], steps.get(name))


def _fields(view: memoryview, at: int, end: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """The fields of the message in ``view[at:end]``: number, and from where to where the content lies."""
    while at < end:
        key, at = _varint(view, at)
        number, wire = key >> 3, key & 7
        start = at
        if not number:
            raise ValueError("no ONNX file: no such field number")
        if wire == _VARINT:
            _, at = _varint(view, at)
        elif wire == _BYTES:
            size, start = _varint(view, at)
            at = start + size
        elif wire in _FIXED:
            at += _FIXED[wire]
        else:
            raise ValueError("no ONNX file: no such wire type")
        if at > end:
            raise ValueError("no ONNX file, or one that was cut off")
        yield number, (start, at)


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(view[at : at + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError("no ONNX file, or one that was cut off")
