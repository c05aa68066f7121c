"""What the Open Inference Protocol answers: scores, and what a model takes and gives. No IO."""

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedge.serving._json import to_json
from fedge.serving.oip import Face, Inference
from fedge.serving.oip_tensor import Tensor

EXTENSIONS = ("binary_tensor_data", "classification")


def response(request: Inference, face: Face, scores: NDArray[np.float32]) -> tuple[bytes, int | None]:
    """The body that answers ``request`` with ``scores [n, outputs]``, and where its JSON ends.

    The second is for ``Inference-Header-Content-Length``; None if the JSON is all of the body.
    """
    if request.classification:
        return _classified(request, face, scores)
    if not request.binary:
        return _document(face, request.id, scores.shape, data=scores.ravel().tolist()), None
    if request.id is None:
        head = _same_document(face.name, face.version, face.output, len(scores))
    else:
        head = _document(face, request.id, scores.shape, size=scores.nbytes)
    return head + scores.astype("<f4", copy=False).tobytes(), len(head)


def _classified(request: Inference, face: Face, scores: NDArray[np.float32]) -> tuple[bytes, int | None]:
    """``score:index:class`` of the best classes, best first."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, : request.classification]
    texts = [
        f"{row[i]:f}:{i}:{face.classes[i]}" for row, order in zip(scores, best, strict=True) for i in order
    ]
    if not request.binary:
        return _document(face, request.id, best.shape, data=texts, datatype="BYTES"), None
    coded = [text.encode() for text in texts]
    data = b"".join(len(text).to_bytes(4, "little") + text for text in coded)
    head = _document(face, request.id, best.shape, size=len(data), datatype="BYTES")
    return head + data, len(head)


@lru_cache(maxsize=256)
def _same_document(name: str, version: int, output: Tensor, count: int) -> bytes:
    """The JSON before the scores of a request without an id: always the same."""
    shape = (count, *output.shape)
    return _document(Face(name, version, output, output, ""), None, shape, size=4 * math.prod(shape))


def _document(
    face: Face,
    id_: str | None,
    shape: tuple[int, ...],
    *,
    data: list[Any] | None = None,
    size: int | None = None,
    datatype: str = "FP32",
) -> bytes:
    output: dict[str, object] = {"name": face.output.name, "datatype": datatype, "shape": list(shape)}
    if size is None:
        output["data"] = data
    else:
        output["parameters"] = {"binary_data_size": size}
    raw = {"model_name": face.name, "model_version": str(face.version), "outputs": [output]}
    return to_json(raw if id_ is None else raw | {"id": id_})


def server_metadata(name: str, version: str) -> bytes:
    """What ``GET /v2`` answers."""
    return to_json({"name": name, "version": version, "extensions": EXTENSIONS})


def model_metadata(face: Face, most: int) -> bytes:
    """What ``GET /v2/models/NAME`` answers; ``most`` windows may be in one request."""
    ports = {
        kind: [{"name": port.name, "datatype": port.datatype, "shape": [-1, *port.shape]}]
        for kind, port in (("inputs", face.input), ("outputs", face.output))
    }
    raw = {"name": face.name, "versions": [str(face.version)], "platform": "onnxruntime_onnx"}
    more = {"model_sha256": face.model, "max_batch_size": most, "classes": face.classes, **face.details}
    return to_json(raw | ports | {"parameters": more})
