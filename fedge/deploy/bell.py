"""What the round loop and the gateway tell each other on one machine, so that neither has to poll.

The gateway listens on a Unix socket in the state directory (0600); the round loop connects. Each line is one
JSON object. The gateway says ``{"nodes": {client: node id}}`` first and after every change, and
``{"answered": message id}`` when an answer lies with Flower; the round loop says ``{"fetch": [clients]}``
when a task waits there. Nothing is lost with a line that is lost: both sides look from time to time anyway.
"""

import asyncio
import json
import os
import select
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fedge.errors import PayloadError

MAX_LINE = 4 << 20
"""Bytes of the longest line: some 60,000 clients."""

_RETRY = 0.2  # seconds between two attempts to reach the gateway


class Bell:
    """The round loop's end. It is used by one thread, and survives a gateway that dies and comes back."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Reach the gateway at ``path``, when it is there."""
        self._path, self._clock = path, clock
        self._socket: socket.socket | None = None
        self._rest = b""
        self._tried = -_RETRY
        self._nodes: dict[str, int] = {}
        self._answered: set[str] = set()

    @property
    def connected(self) -> bool:
        """Whether the gateway was there at the last look."""
        return self._socket is not None

    def nodes(self) -> Mapping[str, int]:
        """Flower's node of each client that is there, as the gateway said last; empty without a gateway."""
        self._look(0.0)
        return self._nodes

    def fetch(self, clients: Iterable[str]) -> None:
        """A task waits at Flower for each of these."""
        self._look(0.0)
        if self._socket is not None:
            try:
                self._socket.settimeout(5.0)
                self._socket.sendall(_line({"fetch": sorted(clients)}))
            except OSError:
                self._drop()

    def wait(self, seconds: float) -> set[str]:
        """Wait until an answer lies at Flower or the gateway says something else, or ``seconds`` at most.

        Returns:
            the messages that were answered since the last call.
        """
        if not self._answered:
            self._look(seconds)
        answered, self._answered = self._answered, set()
        return answered

    def close(self) -> None:
        """Hang up."""
        self._drop()

    def _look(self, seconds: float) -> None:
        if self._socket is None and not self._connect():
            time.sleep(min(seconds, _RETRY))
            return
        while self._socket is not None and select.select([self._socket], [], [], seconds)[0]:
            seconds = 0.0
            self._receive(self._socket)

    def _connect(self) -> bool:
        if self._clock() - self._tried < _RETRY:
            return False
        self._tried = self._clock()
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with short_path(self._path) as path:
                end.connect(path)
        except OSError:
            end.close()
            return False
        self._socket, self._rest = end, b""
        return True

    def _receive(self, end: socket.socket) -> None:
        try:
            data = end.recv(1 << 16)
            if not data:
                raise ConnectionResetError
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._told(_parsed(line))
            if len(self._rest) > MAX_LINE:
                raise PayloadError("a line without an end")
        except (OSError, PayloadError):
            self._drop()

    def _told(self, said: Mapping[str, Any]) -> None:
        if isinstance(nodes := said.get("nodes"), dict):
            self._nodes = {c: n for c, n in nodes.items() if isinstance(n, int)}
        if isinstance(message := said.get("answered"), str):
            self._answered.add(message)

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._nodes = None, {}


class BellServer:
    """The gateway's end."""

    def __init__(
        self, path: Path, fetch: Callable[[list[str]], None], ready: Callable[[], Awaitable[None]]
    ) -> None:
        """Listen at ``path``.

        Args:
            path: of the socket.
            fetch: is told which clients a task waits for.
            ready: is awaited before a round loop that has just connected hears of any node.
        """
        self._path, self._fetch, self._ready = path, fetch, ready
        self._loops: set[asyncio.StreamWriter] = set()
        self._nodes: Mapping[str, int] = {}
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begin to listen; a socket that a dead gateway left is replaced."""
        self._path.unlink(missing_ok=True)
        with short_path(self._path) as path:
            self._server = await asyncio.start_unix_server(self._serve, path, limit=MAX_LINE)
        self._path.chmod(0o600)

    async def close(self) -> None:
        """Stop, and hang up."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._loops):
            writer.close()
        self._path.unlink(missing_ok=True)

    def tell_nodes(self, nodes: Mapping[str, int]) -> None:
        """These clients are there, with these nodes."""
        self._nodes = dict(nodes)
        self._tell({"nodes": self._nodes})

    def tell_answered(self, message: str) -> None:
        """An answer to this message lies at Flower."""
        self._tell({"answered": message})

    def _tell(self, what: Mapping[str, Any]) -> None:
        line = _line(what)
        for writer in list(self._loops):
            if writer.transport.get_write_buffer_size() > MAX_LINE:
                writer.transport.abort()  # it has stopped reading; it may come again
            else:
                writer.write(line)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._ready()
            self._loops.add(writer)
            writer.write(_line({"nodes": self._nodes}))
            while line := await reader.readline():
                clients = _parsed(line).get("fetch")
                if isinstance(clients, list):
                    self._fetch([c for c in clients if isinstance(c, str)])
        except (OSError, ValueError, PayloadError):
            pass
        except asyncio.CancelledError:
            pass  # the process ends; asyncio would print a traceback
        finally:
            self._loops.discard(writer)
            with suppress(OSError):
                writer.close()


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Another name of a socket, short enough for the 108 bytes that the kernel has for it."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _line(what: Mapping[str, Any]) -> bytes:
    return json.dumps(what, separators=(",", ":")).encode() + b"\n"


def _parsed(line: bytes) -> Mapping[str, Any]:
    try:
        said = json.loads(line)
    except ValueError:
        raise PayloadError("a line that is no JSON") from None
    if not isinstance(said, dict):
        raise PayloadError("a line that is no object")
    return said
