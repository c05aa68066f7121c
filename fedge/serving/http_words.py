"""Requests and answers of HTTP/1.1, without a connection."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from fedge.serving._json import RequestError, to_json

JSON, BINARY = b"application/json", b"application/octet-stream"
_REASONS = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout",
    409: "Conflict", 413: "Content Too Large", 415: "Unsupported Media Type",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 502: "Bad Gateway",
    503: "Service Unavailable",
}  # fmt: skip
_STATUS = {code: f"HTTP/1.1 {code} {reason}\r\n".encode() for code, reason in _REASONS.items()}
_MORE = {503: b"retry-after: 1\r\n", 405: b"allow: GET, POST\r\n"}
_GZIP = zlib.MAX_WBITS | 16
_CODINGS = {b"gzip": _GZIP, b"x-gzip": _GZIP, b"deflate": zlib.MAX_WBITS}


@dataclass(slots=True)
class Request:
    """What a client sent. Header names are lower-case; ``arrived`` is the loop's clock, in seconds."""

    method: bytes = b""
    target: bytes = b""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    keep: bool = True
    arrived: float = 0.0
    refused: RequestError | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: status, body, its type, and where its JSON ends if bytes follow it."""

    status: int
    body: bytes
    kind: bytes = JSON
    json_size: int | None = None

    def encode(self, *, keep: bool, with_body: bool = True) -> bytes:
        """As it goes over the wire; without ``keep`` it is the connection's last."""
        size = self.json_size
        extra = b"" if size is None else b"inference-header-content-length: %d\r\n" % size
        return b"%bcontent-type: %b\r\ncontent-length: %d\r\n%b%b%b%b" % (
            _STATUS[self.status], self.kind, len(self.body), extra, _MORE.get(self.status, b""),
            b"\r\n" if keep else b"connection: close\r\n\r\n", self.body if with_body else b"",
        )  # fmt: skip


class Desk(Protocol):
    """Who answers requests."""

    def handle(self, request: Request, reply: Callable[[Answer], None]) -> None:
        """Answer ``request`` by calling ``reply`` once, on the loop's thread, now or later."""


def refusal(error: RequestError) -> Answer:
    """The answer that says what was wrong, as the Open Inference Protocol wants it."""
    return Answer(error.status, to_json({"error": str(error)}))


def inflated(body: bytes, coding: bytes | None, limit: int) -> bytes:
    """``body`` without its ``Content-Encoding``: gzip, deflate, or none.

    Raises:
        RequestError: another coding, damaged, or more than ``limit`` bytes once inflated.
    """
    if coding is None or coding.lower() == b"identity":
        return body
    bits = _CODINGS.get(coding.lower())
    if bits is None:
        raise RequestError(415, "Content-Encoding must be gzip, deflate or identity")
    engine: Any = zlib.decompressobj(bits)
    try:
        content: bytes = engine.decompress(body, limit + 1)
    except zlib.error:
        raise RequestError(400, "the body is not what its Content-Encoding says") from None
    if len(content) > limit:
        raise RequestError(413, f"a body may have {limit} bytes; this one has more once it is inflated")
    if not engine.eof or engine.unused_data:
        raise RequestError(400, "the body is not what its Content-Encoding says, or was cut off")
    return content
