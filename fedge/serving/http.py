"""HTTP/1.1 on one connection: bytes to requests within bounds, answers to bytes. httptools does the parsing.

Not ASGI: a task, an event and a dictionary per request cost more than a small model, and the servers that
speak it bound neither the headers nor the time that a request takes to come
(``docs/decisions/serving-http.md``). A connection's answers leave in the order of its requests, and it reads
on only once they have left.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import cast

import httptools

from fedge.serving._json import RequestError
from fedge.serving.http_words import Answer, Desk, Request, refusal
from fedge.serving.limits import Limits

_LINGER = 2.0  # seconds for which what a refused client goes on sending is read and thrown away

_LAST_CALL = 0.5  # seconds for which a server that ends waits for a request that may be on its way


@dataclass
class House:
    """What the connections of a server share.

    Attributes:
        desk: answers their requests.
        limits: for each of them and for all.
        open: the connections.
        buffered: bytes of bodies that are still coming in.
        closing: whether each answer is the last of its connection.
    """

    desk: Desk
    limits: Limits
    open: "set[Connection]" = field(default_factory=set)
    buffered: int = 0
    closing: bool = False

    def sweep(self, now: float) -> None:
        """Close connections that have waited too long; ``now`` is the loop's clock. For once a second."""
        for connection in list(self.open):
            connection.look(now)


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, house: House) -> None:
        self._house, self._limits = house, house.limits
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._coming = self._current = Request()
        self._chunks: list[bytes] = []
        self._head = self._body = 0  # bytes so far of the request that is coming
        self._burst = 0  # requests that came with one read
        self._waiting: deque[Request] = deque()
        self._since = self._loop.time()  # of whatever is waited for now
        self._in_head = False
        self._receiving = True  # a request has begun, or the first has not
        self._busy = False  # a request has been handed over and not been answered
        self._deaf = False  # nothing that comes matters any more
        self._ended = False  # the last answer has been given
        self._stuck = False  # the client does not take its answers
        self._paused = False  # reading is

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, or say that there are too many."""
        self._transport = cast("asyncio.Transport", transport)
        self._house.open.add(self)
        if len(self._house.open) > 2 * self._limits.connections:
            self._transport.abort()
        elif len(self._house.open) > self._limits.connections:
            self._refuse(RequestError(503, "too many connections: try again later"))

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 (asyncio's name)
        """Forget it."""
        self._house.open.discard(self)
        self._drop_body()
        self._waiting.clear()
        self._deaf = self._ended = True

    def eof_received(self) -> bool:
        """The client sends no more; what it has asked is still answered."""
        self._deaf = True
        return self._busy

    def pause_writing(self) -> None:
        """The client does not take its answers."""
        self._stuck, self._since = True, self._loop.time()

    def resume_writing(self) -> None:
        """It does again."""
        self._stuck = False
        self._next()

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self._deaf:
            return
        self._burst = 0
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # an offer that a server need not take
            self._deaf = True
        except httptools.HttpParserError:
            self._refuse(RequestError(400, "this is no HTTP/1.1 request"))
        if self._in_head:  # a long line is known to the parser only, so far
            self._count(len(data))
        if (self._busy or self._stuck) and not (self._paused or self._ended):
            self._paused = True
            self._transport.pause_reading()

    # What the parser calls.

    def on_message_begin(self) -> None:
        """A request begins."""
        if self._deaf:
            return
        self._coming = Request()
        self._head, self._in_head = 0, True
        if not self._busy:
            self._receiving, self._since = True, self._loop.time()

    def on_url(self, url: bytes) -> None:
        """Part of its target."""
        self._coming.target += url
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One of its headers, or one after a body that came in chunks."""
        headers, name = self._coming.headers, name.lower()
        self._count(len(name) + len(value) + 4)
        if name in headers:
            self._refuse(RequestError(400, f"the header {name.decode('latin-1')!r:.80} is there twice"))
        elif len(headers) >= self._limits.headers:
            self._refuse(RequestError(431, f"more than {self._limits.headers} headers"))
        headers[name] = value

    def on_headers_complete(self) -> None:
        """Its headers are there: what can be refused now is."""
        self._in_head = False
        coming, newest = self._coming, self._parser.get_http_version() == "1.1"
        coming.method = self._parser.get_method()
        coming.keep = newest and self._parser.should_keep_alive()
        if newest and b"host" not in coming.headers:
            self._refuse(RequestError(400, "the request has no Host"))
        said = coming.headers.get(b"content-length", b"0")
        if len(said) > 15 or int(said) > self._limits.body_bytes:
            self._refuse(self._too_large())
        elif self._parser.should_upgrade() and (said != b"0" or b"transfer-encoding" in coming.headers):
            self._refuse(RequestError(400, "a request with a body cannot ask for an upgrade: use HTTP/1.1"))
        if coming.headers.get(b"expect", b"").lower() == b"100-continue" and not (self._deaf or self._busy):
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Part of its body."""
        if self._deaf:
            return
        self._chunks.append(body)
        self._body += len(body)
        self._house.buffered += len(body)
        if self._body > self._limits.body_bytes:
            self._refuse(self._too_large())
        elif self._house.buffered > self._limits.buffered_bytes:
            self._refuse(RequestError(503, "too much is being sent at once: try again later"))

    def on_message_complete(self) -> None:
        """The request is there whole."""
        if self._deaf:
            return
        self._burst += 1
        if self._burst > self._limits.pipelined:
            self._refuse(RequestError(503, "too many requests before their answers"))
            return
        coming = self._coming
        coming.body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        coming.arrived = self._loop.time()
        self._receiving = False
        self._drop_body()
        self._waiting.append(coming)
        self._next()

    def _count(self, size: int) -> None:
        self._head += size
        if self._head > self._limits.head_bytes:
            self._refuse(RequestError(431, f"more than {self._limits.head_bytes} bytes of headers"))

    def _too_large(self) -> RequestError:
        return RequestError(413, f"a body may have {self._limits.body_bytes} bytes")

    def _drop_body(self) -> None:
        self._house.buffered -= self._body
        self._body, self._chunks = 0, []

    def _refuse(self, error: RequestError) -> None:
        """Answer with ``error`` when its turn comes, and listen no more."""
        if not self._deaf:
            self._deaf, self._in_head = True, False
            self._drop_body()
            self._waiting.append(Request(refused=error))
            self._next()

    # Answers.

    def _next(self) -> None:
        """Hand over the next request, or read on, if it is time to."""
        while self._waiting and not (self._busy or self._stuck or self._ended):
            self._current, self._busy = self._waiting.popleft(), True
            if self._current.refused:
                self._end(refusal(self._current.refused))
            else:
                self._house.desk.handle(self._current, self._reply)
        if self._paused and not (self._busy or self._stuck):
            self._paused = False
            self._transport.resume_reading()

    def _reply(self, answer: Answer) -> None:
        if self._ended:
            return
        request, more = self._current, bool(self._waiting)
        keep = request.keep and not self._house.closing and (more or not self._deaf)
        self._transport.write(answer.encode(keep=keep, with_body=request.method != b"HEAD"))
        self._busy, self._since = False, self._loop.time()
        if not keep:
            self._deaf = self._ended = True
            self._transport.close()
        elif more or self._paused:
            self._next()

    def _end(self, answer: Answer) -> None:
        """Answer, and close so that the client can read it: it may still be sending."""
        self._transport.write(answer.encode(keep=False))
        self._busy, self._ended, self._since = False, True, self._loop.time()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    # Time.

    def look(self, now: float) -> None:
        """Close the connection if it has waited too long; ``now`` is the loop's clock."""
        waited, limits = now - self._since, self._limits
        if self._stuck or self._ended:
            taken = not self._transport.get_write_buffer_size()
            if waited > (_LINGER if taken else limits.stalled_seconds):
                self._transport.abort()
        elif self._busy:
            return
        elif self._receiving:
            if waited > limits.receive_seconds:
                problem = f"the request took more than {limits.receive_seconds:g} s to come"
                self._refuse(RequestError(408, problem))
        elif waited > (_LAST_CALL if self._house.closing else limits.idle_seconds):
            self._transport.close()

    def abort(self) -> None:
        """Break the connection off."""
        self._transport.abort()
