"""What one ``fedge serve`` tells another ``fedge`` of itself, beside the protocol: ``GET /fedge``."""

import re
from dataclasses import asdict, dataclass

from fedge.errors import PayloadError
from fedge.serving._json import RequestError, as_flag, as_list, as_object, as_size, as_text, loads, to_json
from fedge.serving.oip_tensor import DATATYPES, Tensor

PATH, MANIFEST_PATH = "/fedge", "/fedge/manifest"
MAX_BYTES = 1 << 16
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_WINDOW, _MAX_OUTPUTS, _MAX_BATCH = 1 << 24, 1024, 1 << 16


@dataclass(frozen=True)
class About:
    """A server.

    Attributes:
        name: what its model is called in URLs.
        version: of the release.
        model: SHA-256 of the whole model file.
        stage: ``I/N`` where it has one part of the model; else empty.
        ready: whether it takes requests.
        input: what it takes.
        outputs: how many scores it gives for a window.
        most: windows in one request.
    """

    name: str
    version: int
    model: str
    stage: str
    ready: bool
    input: Tensor
    outputs: int
    most: int

    def to_bytes(self) -> bytes:
        """As JSON."""
        return to_json(asdict(self))


def parse_about(content: bytes) -> About:
    """Parse what another server says.

    Raises:
        PayloadError: it is something else.
    """
    try:
        raw = loads(content[: MAX_BYTES + 1] if len(content) <= MAX_BYTES else b"")
        port = as_object(raw.get("input"), "input")
        tensor = Tensor(
            as_text(port.get("name"), "name"),
            as_text(port.get("datatype"), "datatype"),
            tuple(as_size(size, "shape") for size in as_list(port.get("shape"), "shape")[:8]),
        )
        about = About(
            as_text(raw.get("name"), "name"),
            as_size(raw.get("version"), "version"),
            as_text(raw.get("model"), "model"),
            as_text(raw.get("stage"), "stage"),
            as_flag(raw, "ready", False),
            tensor,
            as_size(raw.get("outputs"), "outputs"),
            as_size(raw.get("most"), "most"),
        )
    except RequestError as error:
        raise PayloadError(f"this is no fedge serve: {error}") from None
    known = tensor.datatype in DATATYPES and _SHA256.fullmatch(about.model)
    if not (known and 1 <= about.outputs <= _MAX_OUTPUTS and 1 <= about.most <= _MAX_BATCH):
        raise PayloadError("this is no fedge serve that this one knows")
    if not 1 <= tensor.size <= _MAX_WINDOW:
        raise PayloadError("the other server's windows are too large")
    return about
