"""Models to serve, a server in a thread of this process, and a client that says exactly what it is told."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from edge.build import CHANNELS, CLASSES, TIME, WEIGHTS, manifest, model, naive
from numpy.typing import NDArray

from fedge.serving.batcher import Bounds
from fedge.serving.model import Answered, Whole, face_of
from fedge.serving.oip import Face
from fedge.serving.server import Settings, listen, serve_until

MODEL = model().SerializeToString()
MANIFEST = manifest(MODEL)
FACE = face_of(MANIFEST, None)
WINDOW_BYTES = 4 * TIME * CHANNELS


def write_release(folder: Path, version: int = 1, weights: NDArray[np.float32] = WEIGHTS) -> Path:
    """The folder of a release of the small model."""
    content = model(weights=weights).SerializeToString()
    said = manifest(content, version=version)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(content)
    (folder / "manifest.json").write_bytes(said.to_bytes())
    return folder


def windows(n: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(1, 3, (n, TIME, CHANNELS)).astype(np.float32)


def expected(x: NDArray[Any]) -> NDArray[np.float64]:
    return naive(x)


@dataclass
class Fake:
    """Answers with the mean of each window in every column, and the version that is current.

    ``hold``: while it is clear, every batch waits. ``batches``: how many windows each had.
    """

    version: int = 1
    hold: threading.Event = field(default_factory=threading.Event)
    fails: Callable[[NDArray[Any]], Exception | None] = lambda x: None  # noqa: ARG005
    batches: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.hold.set()
        self._faces: dict[int, Face] = {}

    def face(self) -> Face:
        version = self.version
        if version not in self._faces:
            self._faces[version] = replace(FACE, version=version, model=f"{version:064x}")
        return self._faces[version]

    def manifest(self) -> bytes:
        file = replace(MANIFEST.model, sha256=self.face().model)
        return replace(MANIFEST, version=self.version, model=file).to_bytes()

    def ready(self) -> bool:
        return True

    def predict(self, x: NDArray[Any]) -> Answered:
        assert self.hold.wait(30)
        face = self.face()
        self.batches.append(len(x))
        if (error := self.fails(x)) is not None:
            raise error
        return face, np.repeat(x.mean(axis=(1, 2), keepdims=True)[:, 0], CLASSES, axis=1)

    def warm(self, count: int) -> None:
        del count

    def follow(self) -> str | None:
        return None

    def close(self) -> str | None:
        return None


@contextmanager
def running(served: Any, settings: Settings | None = None, port: int = 0) -> Iterator[int]:
    """A server on loopback; gives its port."""
    import uvloop

    listener = listen("127.0.0.1", port)
    taken: int = listener.getsockname()[1]
    loop = uvloop.new_event_loop()
    stop = asyncio.Event()
    own, said = settings or Settings(Bounds(budget=10.0), grace=2), list[str]()
    thread = threading.Thread(
        target=lambda: loop.run_until_complete(serve_until(stop, served, listener, own, said.append))
    )
    thread.start()
    try:
        yield taken
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        assert not thread.is_alive()
        loop.close()


def whole(folder: Path) -> Whole:
    return Whole.open(write_release(folder))


def infer_head(shape: list[int], size: int, **more: Any) -> bytes:
    tensor = {
        "name": "window",
        "shape": shape,
        "datatype": "FP32",
        "parameters": {"binary_data_size": size},
    }
    return json.dumps(
        {"inputs": [tensor | more], "parameters": {"binary_data_output": True}}, separators=(",", ":")
    ).encode()


def infer_request(x: NDArray[np.float32], name: str = "test") -> bytes:
    """A whole request, in binary."""
    head = infer_head(list(x.shape), x.nbytes)
    return post(
        f"/v2/models/{name}/infer", head + x.tobytes(), {"Inference-Header-Content-Length": len(head)}
    )


def post(path: str, body: bytes, headers: dict[str, object] | None = None) -> bytes:
    lines = "".join(f"{k}: {v}\r\n" for k, v in (headers or {}).items())
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode() + body


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


@dataclass
class Said:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def scores(self) -> NDArray[np.float32]:
        start = int(self.headers["inference-header-content-length"])
        shape = json.loads(self.body[:start])["outputs"][0]["shape"]
        return np.frombuffer(self.body, "<f4", offset=start).reshape(shape)


class Raw:
    """A connection."""

    def __init__(self, port: int, timeout: float = 20) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self._rest = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self, *, body: bool = True) -> Said:
        """The next response; raises ``EOFError`` where the connection ends before it."""
        while b"\r\n\r\n" not in self._rest:
            self._more()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
        size = int(headers.get("content-length", 0)) if body else 0
        while len(self._rest) < size:
            self._more()
        content, self._rest = self._rest[:size], self._rest[size:]
        return Said(int(first.split()[1]), headers, content)

    def ask(self, data: bytes) -> Said:
        self.send(data)
        return self.read()

    def closed(self) -> bool:
        """Whether the server ends the connection, now or soon."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True

    def _more(self) -> None:
        data = self.socket.recv(65_536)
        if not data:
            raise EOFError
        self._rest += data

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def ask(port: int, data: bytes) -> Said:
    """One request on a connection of its own."""
    with Raw(port) as raw:
        return raw.ask(data)
