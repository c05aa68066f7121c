"""The client's end of the protocol: one server, one connection, and a deadline for everything together.

What a server answers is not trusted more than what a client asks: sizes are looked at before memory is taken.
"""

import json
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from fedge.errors import ConfigError, FedgeError
from fedge.serving._json import to_json
from fedge.serving.tls import Peer as Tls

_MAX_HEAD = 16_384
_MAX_JSON = 1 << 16
_CHUNK = 1 << 16
_STATUS = re.compile(rb"HTTP/1\.1 ([1-5]\d\d)(?: [^\r\n]*)?")


class PeerError(FedgeError):
    """A server that does not answer, or not as it should."""


class PeerRefusalError(PeerError):
    """A server that says why it does not answer; ``status`` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str
    port: int

    @staticmethod
    def parse(text: str) -> "Address":
        """From ``HOST:PORT``, ``[IPV6]:PORT``.

        Raises:
            ConfigError: it is something else.
        """
        host, colon, port = text.strip().rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
            raise ConfigError(f"{text!r:.80} is no HOST:PORT")
        return Address(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Response:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Peer:
    """One server. Not for several threads at once."""

    def __init__(self, address: Address, tls: Tls | None, deadline: float, limit: int = 1 << 24) -> None:
        """``deadline``: seconds for a whole exchange; ``limit``: bytes that an answer may have."""
        self.address, self._tls, self._deadline, self._limit = address, tls, deadline, limit
        self._socket: socket.socket | None = None

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def get(self, path: str) -> Response:
        """What ``GET path`` answers.

        Raises:
            PeerError: there is no answer in time, or none that makes sense.
            PeerRefusalError: the status is not 200.
        """
        return _checked(self._exchange([self._head("GET", path, {}, 0)]), self.address)

    def infer(
        self, model: str, sha256: str, name: str, datatype: str, x: NDArray[Any], outputs: int
    ) -> NDArray[np.float32]:
        """Scores ``[n, outputs]``, finite, of ``x [n, ...]``, from the model with this hash and no other.

        Raises:
            PeerError, PeerRefusalError: as for :meth:`get`.
        """
        size = {"binary_data_size": x.nbytes}
        tensor = {"name": name, "datatype": datatype, "shape": x.shape, "parameters": size}
        parameters = {"binary_data_output": True, "model_sha256": sha256}
        head = to_json({"inputs": [tensor], "parameters": parameters})
        headers = {"Inference-Header-Content-Length": len(head), "Content-Type": "application/octet-stream"}
        path = f"/v2/models/{quote(model, safe='')}/infer"
        windows = np.ascontiguousarray(x)
        request = self._head("POST", path, headers, len(head) + windows.nbytes) + head
        answer = self._exchange([request, windows.data.cast("B")])
        return _scores(_checked(answer, self.address), len(x), outputs, self.address)

    def _head(self, method: str, path: str, headers: Mapping[str, object], size: int) -> bytes:
        more = {"Host": self.address, "Content-Length": size, **headers}
        lines = "".join(f"{key}: {value}\r\n" for key, value in more.items())
        return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode()

    def _exchange(self, request: Sequence[bytes | memoryview]) -> Response:
        """Send a request and read its answer; on a connection that has died meanwhile, once more."""
        end, fresh = time.monotonic() + self._deadline, self._socket is None
        try:
            return self._try(request, end)
        except ConnectionError as error:
            self.close()
            if fresh:
                raise PeerError(f"{self.address}: {_why(error)}") from None
        except (OSError, ValueError, FedgeError) as error:
            self.close()
            raise PeerError(f"{self.address}: {_why(error)}") from None
        return self._exchange(request)

    def _try(self, request: Sequence[bytes | memoryview], end: float) -> Response:
        connection = self._socket or self._connect(end)
        for part in request:
            connection.settimeout(_left(end))
            connection.sendall(part)
        response = _receive(connection, end, self._limit)
        if response.headers.get("connection", "").lower() == "close":
            self.close()
        return response

    def _connect(self, end: float) -> socket.socket:
        connection = socket.create_connection((self.address.host, self.address.port), _left(end))
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                connection.settimeout(_left(end))
                wrapped = self._tls.context.wrap_socket(connection, server_hostname=self.address.host)
                connection = wrapped
                self._tls.check(wrapped)
        except BaseException:
            connection.close()
            raise
        self._socket = connection
        return connection


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError("no answer in time")
    return left


def _receive(connection: socket.socket, end: float, limit: int) -> Response:
    """Read one response: its head, then as many bytes as it says."""
    data = bytearray()
    while (at := data.find(b"\r\n\r\n")) < 0:
        if len(data) > _MAX_HEAD:
            raise PeerError("the answer's headers are too long")
        data += _some(connection, end)
    status, headers = _parse_head(bytes(data[:at]))
    said = headers.get("content-length", "")
    if not (said.isascii() and said.isdigit() and len(said) < 12 and int(said) <= limit):
        raise PeerError(f"the answer does not say its length, or it is above {limit} bytes")
    body = data[at + 4 :]
    while len(body) < int(said):
        body += _some(connection, end)
    if len(body) > int(said):
        raise PeerError("the answer is longer than it says")
    return Response(status, headers, bytes(body))


def _some(connection: socket.socket, end: float) -> bytes:
    connection.settimeout(_left(end))
    data = connection.recv(_CHUNK)
    if not data:
        raise ConnectionResetError("the connection was closed before the answer")
    return data


def _parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    first, *lines = head.split(b"\r\n")
    match = _STATUS.fullmatch(first)
    if match is None:
        raise PeerError("the answer is not HTTP/1.1")
    pairs = (line.decode("latin-1").partition(":") for line in lines[:64])
    return int(match[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}


def _checked(response: Response, address: Address) -> Response:
    if response.status != 200:
        try:
            said = str(json.loads(response.body[:_MAX_JSON])["error"])[:300]
        except (ValueError, TypeError, KeyError, RecursionError):
            said = "no reason given"
        raise PeerRefusalError(response.status, f"{address}: answers {response.status}: {said}")
    return response


def _scores(response: Response, windows: int, outputs: int, address: Address) -> NDArray[np.float32]:
    size = response.headers.get("inference-header-content-length", "")
    needed = 4 * windows * outputs
    try:
        start = int(size) if size.isascii() and size.isdigit() and len(size) < 9 else -1
        if not 0 < start <= min(_MAX_JSON, len(response.body)) or len(response.body) - start != needed:
            raise ValueError("sizes")
        (output,) = json.loads(response.body[:start])["outputs"]
        if output["datatype"] != "FP32" or output["shape"] != [windows, outputs]:
            raise ValueError("shape")
    except (ValueError, TypeError, KeyError, RecursionError):
        raise PeerError(f"{address}: the answer is not {windows} times {outputs} scores") from None
    scores = np.frombuffer(response.body, "<f4", offset=start).reshape(windows, outputs)
    if not np.isfinite(scores).all():
        raise PeerError(f"{address}: answers with NaN or infinity")
    return scores.astype(np.float32)


def _why(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
