"""A small HTTP server on loopback: ``/`` the status page, ``/metrics`` for Prometheus, ``/healthz``.

It only reads ``status.json``, in a thread of its own, so nothing here can hold up the rounds, which another
process does. It answers GET only, one request a connection, and a Host that is a loopback name: a page from
elsewhere whose name was made to point here (DNS rebinding) gets nothing.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from fedge.deploy import status_metrics, status_page, status_words
from fedge.deploy.status_file import load
from fedge.errors import SetupError

HOST = "127.0.0.1"
MAX_HEAD = 8192
"""Bytes of the longest request that is read."""
MAX_CONNECTIONS = 16
_PATIENCE = 5.0  # seconds that a request may take to come, and an answer to go
_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_REASONS = {
    200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    503: "Service Unavailable",
}  # fmt: skip
_PLAIN = "text/plain; charset=utf-8"


@dataclass(frozen=True)
class Answer:
    """A response: status code, body, its type, and headers beyond those that each one has."""

    code: int
    body: bytes
    kind: str = _PLAIN
    headers: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        """As it goes over the wire."""
        headers = {
            "Content-Type": self.kind,
            "Content-Length": str(len(self.body)),
            "Connection": "close",
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Content-Security-Policy": "default-src 'none'",
            **self.headers,
        }
        lines = [f"HTTP/1.1 {self.code} {_REASONS[self.code]}", *(f"{k}: {v}" for k, v in headers.items())]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii") + self.body


@asynccontextmanager
async def serve_status(state: Path, port: int) -> AsyncIterator[None]:
    """Serve the status of ``state`` on ``port`` of loopback while the context is open; 0: serve nothing.

    Raises:
        SetupError: the port cannot be had.
    """
    if port == 0:
        yield
        return
    desk = _Desk(state)
    try:
        server = await asyncio.start_server(desk.serve, HOST, port, limit=MAX_HEAD)
    except (OSError, OverflowError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise SetupError(
            f"cannot serve the status page on {HOST} port {port}: {why}; "
            "choose another with --status-port, or 0 for none"
        ) from None
    try:
        yield
    finally:
        server.close()
        await desk.close()


def answer(state: Path, head: bytes) -> Answer:
    """The answer to a request, given everything up to its empty line."""
    try:
        line, *rest = head.decode("ascii").split("\r\n")
        method, target, version = line.split(" ")
        fields = [header.partition(":") for header in rest]
        hosts = [value.strip() for name, _, value in fields if name.lower() == "host"]
    except ValueError:
        return _text(400, "this is no HTTP request")
    if not version.startswith("HTTP/1.") or len(hosts) != 1:
        return _text(400, "this is no HTTP/1.1 request with one Host")
    if not _is_loopback(hosts[0]):
        return _text(403, "ask for localhost or 127.0.0.1")
    if method != "GET":
        return Answer(405, b"only GET\n", headers={"Allow": "GET"})
    return _page(state, target.partition("?")[0])


def _is_loopback(host: str) -> bool:
    """Any port: a tunnel may have another one at its other end."""
    name, colon, port = host.lower().rpartition(":")
    if colon and port.isdecimal():
        return name in _NAMES
    return host.lower() in _NAMES


def _page(state: Path, path: str) -> Answer:
    if path not in ("/", "/metrics", "/healthz"):
        return _text(404, "there are /, /metrics and /healthz")
    working = status_words.at_work(state) is not None
    if path == "/healthz":
        return _text(200, "ok") if working else _text(503, status_words.run_words(state))
    try:
        now, why = load(state), ""
    except SetupError as error:
        now, why = None, str(error)
    if path == "/metrics":
        body = status_metrics.metrics_text(now, working)
        return Answer(200, body.encode(), status_metrics.CONTENT_TYPE)
    run = status_words.run_words(state)
    page = status_page.page(now, run, working) if now else status_page.empty_page(why)
    policy = {"Content-Security-Policy": status_page.policy()}
    return Answer(200 if now else 503, page.encode(errors="replace"), "text/html; charset=utf-8", policy)


def _text(code: int, text: str) -> Answer:
    return Answer(code, f"{text}\n".encode(errors="replace"))


class _Desk:
    """Takes connections, and answers one of them at a time."""

    def __init__(self, state: Path) -> None:
        self._state, self._open = state, set[asyncio.Task[None]]()
        self._turn = asyncio.Lock()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        me = asyncio.current_task()
        if me is None or len(self._open) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._open.add(me)
        try:
            with suppress(OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
                async with asyncio.timeout(_PATIENCE):
                    head = await reader.readuntil(b"\r\n\r\n")
                async with self._turn:
                    reply = await asyncio.to_thread(answer, self._state, head)
                writer.write(reply.encode())
                async with asyncio.timeout(_PATIENCE):
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
        finally:
            writer.transport.abort()
            self._open.discard(me)

    async def close(self) -> None:
        """End what is open."""
        for task in (open_ := list(self._open)):
            task.cancel()
        await asyncio.gather(*open_, return_exceptions=True)
