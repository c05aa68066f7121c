"""Load for an HTTP server, from a process of its own: so many connections, each always with one request.

The request is the same each time and is written as it is; of a response only the status and its length are
read. So what is measured is the server, as far as two processes on one machine can tell.
"""

import asyncio
import base64
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

_WARM = 1.0  # seconds before anything counts


@dataclass(frozen=True)
class Load:
    """What was measured.

    Attributes:
        requests: answered with 200.
        failed: answered otherwise, or not at all.
        seconds: for which was measured.
        p50_ms: median milliseconds from sending to the whole answer.
        p99_ms: of 99 % of the requests.
        max_ms: of the slowest.
        statuses: how many answers had each status.
    """

    requests: int
    failed: int
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    statuses: Mapping[str, int]

    @property
    def per_second(self) -> float:
        """Requests that were answered, per second."""
        return self.requests / self.seconds


def oip_request(name: str, x: NDArray[np.float32], tensor: str = "window") -> bytes:
    """A request of the Open Inference Protocol for the windows ``x``, in binary both ways."""
    size = {"binary_data_size": x.nbytes}
    inputs = [{"name": tensor, "datatype": "FP32", "shape": x.shape, "parameters": size}]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    lines = (
        f"POST /v2/models/{name}/infer HTTP/1.1", "Host: localhost",
        f"Content-Length: {len(head) + x.nbytes}", f"Inference-Header-Content-Length: {len(head)}",
    )  # fmt: skip
    return "\r\n".join([*lines, "", ""]).encode() + head + x.astype("<f4").tobytes()


def measure(
    port: int, request: bytes, connections: int = 64, seconds: float = 3.0, *, host: str = "127.0.0.1"
) -> Load:
    """Have another process load the server for ``seconds``, after one second that does not count."""
    task = {
        "host": host, "port": port, "request": base64.b64encode(request).decode(),
        "connections": connections, "seconds": seconds,
    }  # fmt: skip
    command = [sys.executable, "-m", "fedge.bench._edge_load"]
    done = subprocess.run(command, input=json.dumps(task).encode(), capture_output=True, check=True)  # noqa: S603
    return Load(**json.loads(done.stdout))


@dataclass
class _Tally:
    """What the connections have seen; ``counts`` while it matters."""

    counts: bool = False
    over: bool = False
    lost: int = 0
    times: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)


class _Client(asyncio.Protocol):
    """One connection: as soon as an answer is there, the next request goes out."""

    def __init__(self, request: bytes, tally: _Tally) -> None:
        self._request, self._tally = request, tally
        self._data, self._sent = b"", 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        data = self._data + data if self._data else data
        end = data.find(b"\r\n\r\n")
        size = _length(data[:end]) if end >= 0 else 0
        if end < 0 or len(data) < end + 4 + size:
            self._data = data
            return
        self._data, tally = b"", self._tally
        if tally.counts:
            tally.times.append(time.perf_counter() - self._sent)
            tally.statuses[data[9:12].decode("latin-1")] += 1
        if not tally.over:
            self._send()

    def connection_lost(self, error: Exception | None) -> None:
        del error
        self._tally.lost += not self._tally.over

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._request)


def _length(head: bytes) -> int:
    at = head.lower().find(b"content-length:")
    return int(head[at + 15 :].split(b"\r\n", 1)[0])


async def _load(host: str, port: int, request: bytes, connections: int, seconds: float) -> Load:
    tally, loop = _Tally(), asyncio.get_running_loop()
    for _ in range(connections):
        await loop.create_connection(lambda: _Client(request, tally), host, port)
    await asyncio.sleep(_WARM)
    tally.counts, start = True, time.perf_counter()
    await asyncio.sleep(seconds)
    tally.over, taken = True, time.perf_counter() - start
    good = tally.statuses["200"]
    failed = tally.statuses.total() - good + tally.lost
    p50, p99, slowest = np.percentile(1000 * np.array(tally.times or [0.0]), [50, 99, 100]).tolist()
    return Load(good, failed, taken, p50, p99, slowest, dict(tally.statuses))


def _main() -> None:
    import uvloop

    task: dict[str, Any] = json.load(sys.stdin)
    request = base64.b64decode(task.pop("request"))
    sys.stdout.write(json.dumps(asdict(uvloop.run(_load(request=request, **task)))))


if __name__ == "__main__":
    _main()
