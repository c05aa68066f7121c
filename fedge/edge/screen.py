"""What a model file may hold, checked before ONNX Runtime sees it.

A release's model stands alone and uses standard operators only. ONNX Runtime would also open models
that name other files of this machine, carry sparse or training parts, or use operators of other
domains; its Python API cannot say so beforehand. This reads just the skeleton of the protobuf message
(onnx.proto, IR version 13; the tensors' content is skipped, nothing is copied) and refuses those. It also
refuses loops: without them a model does each of its operators once, so it comes to an end.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fedge.errors import ReleaseError

MAX_FIELDS = 500_000
MAX_DEPTH = 8
_STANDARD = (b"", b"ai.onnx")
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}

# Field numbers of onnx.proto: which field of a message holds which message.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph"},
    "graph": {1: "node", 5: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"},
    "tensor": {},
}
_REFUSED: dict[tuple[str, int], str] = {
    ("model", 20): "training information",
    ("model", 25): "functions of its own",
    ("graph", 15): "sparse weights",
    ("attribute", 22): "sparse weights",
    ("attribute", 23): "sparse weights",
    ("tensor", 13): "weights in another file",
}
_NODE_DOMAIN, _NODE_KIND = ("node", 7), ("node", 4)
_LOOPS = (b"Loop", b"Scan", b"SequenceMap")
_TENSOR_LOCATION = ("tensor", 14)


@dataclass
class _Budget:
    """How many protobuf fields may still be looked at."""

    fields: int = MAX_FIELDS


def screen(model: bytes) -> None:
    """Check that ``model`` is one self-contained ONNX file with standard operators only.

    Raises:
        ReleaseError: it is no protobuf message, has too many parts, nests too deeply, keeps weights in
            another file, or has functions, sparse weights, loops or operators of another domain.
    """
    seen = _walk("model", memoryview(model), 0, _Budget())
    if 7 not in seen:
        raise ReleaseError("the model file has no graph")


def _walk(kind: str, message: memoryview, depth: int, budget: _Budget) -> set[int]:
    """Check one message and those within it; gives the numbers of its fields."""
    if depth > MAX_DEPTH * 3:  # graph, node and attribute take turns
        raise ReleaseError(f"the model's graphs nest more than {MAX_DEPTH} deep")
    seen = set()
    for number, value in _fields(message, budget):
        seen.add(number)
        _check(kind, number, value)
        child = _CHILDREN[kind].get(number)
        if child and isinstance(value, memoryview):
            _walk(child, value, depth + 1, budget)
    return seen


def _check(kind: str, number: int, value: memoryview | int) -> None:
    where = (kind, number)
    if where in _REFUSED:
        raise ReleaseError(f"the model has {_REFUSED[where]}; a release's model must not")
    if where == _TENSOR_LOCATION and value != 0:
        raise ReleaseError("the model has weights in another file; a release's model must not")
    if where == _NODE_DOMAIN and isinstance(value, memoryview) and value not in _STANDARD:
        domain = bytes(value[:64]).decode("utf-8", "replace")
        raise ReleaseError(f"the model has an operator of domain {domain!r}; only standard ones are allowed")
    if where == _NODE_KIND and isinstance(value, memoryview) and value in _LOOPS:
        raise ReleaseError(f"the model has a loop ({bytes(value).decode()}), which may never end")


def _fields(message: memoryview, budget: _Budget) -> Iterator[tuple[int, memoryview | int]]:
    """The fields of a protobuf message: number, and content or number held."""
    at = 0
    while at < len(message):
        budget.fields -= 1
        if budget.fields < 0:
            raise ReleaseError(f"the model file has more than {MAX_FIELDS} parts")
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if not 1 <= number < 1 << 29:
            raise ReleaseError("the model file is not an ONNX model: no such field number")
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(message, at)
        elif wire in _FIXED:
            size = _FIXED[wire]
        else:
            raise ReleaseError("the model file is not an ONNX model: no such wire type")
        if size > len(message) - at:
            raise ReleaseError("the model file is not an ONNX model, or was cut off")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A protobuf variable-length number (10 bytes at most) and where it ends."""
    value = 0
    for index, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise ReleaseError("the model file is not an ONNX model, or was cut off")
