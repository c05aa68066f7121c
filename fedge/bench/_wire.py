"""Proxies that count what goes through a client's socket, both ways, without looking into it."""

import asyncio
import threading
import time
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

_T = TypeVar("_T")
_READ = 1 << 16


class Meter:
    """Listens on loopback and passes everything on. The clock is ``time.monotonic``, one for all processes.

    Attributes:
        port: where it listens.
    """

    def __init__(self, port: int) -> None:
        """Passes on to ``port`` of loopback."""
        self.port = 0
        self._to = port
        self._counted: list[tuple[float, int]] = []

    async def open(self) -> asyncio.Server:
        """Listen on a free port."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = int(server.sockets[0].getsockname()[1])
        return server

    def between(self, start: float, end: float) -> int:
        """Bytes that came through, in either direction, from ``start`` until before ``end``."""
        return sum(size for when, size in list(self._counted) if start <= when < end)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(_READ):
                self._counted.append((time.monotonic(), len(data)))
                writer.write(data)
                await writer.drain()
        except OSError:
            pass  # the other end is gone, and so is this connection
        finally:
            writer.close()


class Meters:
    """Several meters in one thread. Use it as a context manager."""

    def __init__(self, ports: list[int]) -> None:
        """One meter for each of ``ports``, which it passes on to."""
        self.each = [Meter(port) for port in ports]
        self._loop = asyncio.new_event_loop()
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="meters", daemon=True)

    def __enter__(self) -> Self:
        """Listen."""
        self._thread.start()
        self._servers = [self._do(meter.open()) for meter in self.each]
        return self

    def __exit__(self, *_: object) -> None:
        """Hang up."""
        self._do(_close(self._servers))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def total(self, start: float, end: float) -> int:
        """Bytes of all of them."""
        return sum(meter.between(start, end) for meter in self.each)

    def _do(self, what: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result()


async def _close(servers: list[asyncio.Server]) -> None:
    for server in servers:
        server.close()
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    for _ in range(3):  # the connections close in turns of the loop
        await asyncio.sleep(0)
