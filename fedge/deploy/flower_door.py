"""The door for stock Flower SuperNodes: TLS, and nothing behind it but the calls that a node makes.

The SuperLink trusts whoever reaches it: it reads bodies before it looks who sends them, and on the same port
it starts runs for anyone. So it listens on loopback, and of what comes in here only the ten calls of an
enrolled node are passed on, after its key, its signature, its rate and the size of the call were checked.
Everything else is answered with an empty 404.
"""

import asyncio
import base64
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import h11
import httpx
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from fedge.deploy.flower_internals.uploads import PUSH_MESSAGES, PUSH_OBJECT, check_upload
from fedge.deploy.gateway_limits import Bucket
from fedge.deploy.registry import Registry
from fedge.deploy.stock_node import flower_pem, point_of
from fedge.errors import FedgeError, PayloadError, RefusedError

_ACTIVATE = "/v1/fleet/activate-node"
PATHS = (
    _ACTIVATE,
    PUSH_MESSAGES,
    PUSH_OBJECT,
    "/v1/fleet/deactivate-node",
    "/v1/fleet/send-node-heartbeat",
    "/v1/fleet/pull-messages",
    "/v1/fleet/pull-object",
    "/v1/fleet/confirm-message-received",
    "/v1/fleet/get-run",
    "/v1/fleet/get-fab",
)
"""What is passed on. A node cannot register itself: it is enrolled, or it is not."""

_KEY, _TIME, _SIGNATURE = "flwr-public-key", "flwr-timestamp", "flwr-signature"
_YOUNG, _OLD = -5.0, 305.0  # seconds: as Flower itself
_HEAD = 16 << 10
_EMPTY = b""


@dataclass(frozen=True)
class DoorLimits:
    """What others may take.

    Attributes:
        connections: most connections at a time.
        per_address: of those, most from one address.
        head: seconds in which the head of a call has to be here, and a silent connection may stay.
        body: seconds in which its body has to be here.
        upload: most bytes of one object.
        call: most bytes of every other call.
        memory: most bytes of all bodies that are on their way.
        address_calls: per second and address, with a burst of ten times as much.
        node_calls: per second and node, likewise.
    """

    connections: int = 1024
    per_address: int = 64
    head: float = 30.0
    body: float = 120.0
    upload: int = 64 << 20
    call: int = 64 << 10
    memory: int = 256 << 20
    address_calls: float = 100.0
    node_calls: float = 50.0


class _AnswerError(Exception):
    """A call is answered with a bare status, and the connection closed."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


@dataclass
class _Buckets:
    """One bucket per key; those that are full again are forgotten."""

    rate: float
    most: int = 4096
    _all: dict[object, Bucket] = field(default_factory=dict)

    def take(self, key: object) -> None:
        now = time.monotonic()
        if len(self._all) >= self.most:
            self._all = {k: b for k, b in self._all.items() if not b.full(now)}
        bucket = self._all.setdefault(key, Bucket(self.rate, 10 * self.rate))
        if not bucket.allows(now):
            raise _AnswerError(429, "too many calls")


class FlowerDoor:
    """``start``, then ``close``."""

    def __init__(
        self,
        superlink: str,
        registry: Callable[[], Registry],
        context: ssl.SSLContext,
        known: Callable[[bytes], Awaitable[None]],
        limits: DoorLimits | None = None,
    ) -> None:
        """Nothing happens yet.

        Args:
            superlink: ``host:port`` on loopback.
            registry: who is enrolled now.
            context: the server's; a stock node shows no certificate.
            known: is awaited with a node's public key (PEM) before it activates itself.
            limits: what others may take.
        """
        self._limits = limits or DoorLimits()
        self._registry, self._context, self._known = registry, context, known
        self._client = httpx.AsyncClient(base_url=f"http://{superlink}", timeout=30.0, trust_env=False)
        self._connections: Counter[str] = Counter()
        self._addresses = _Buckets(self._limits.address_calls)
        self._nodes = _Buckets(self._limits.node_calls)
        self._memory = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.refusals: Counter[str] = Counter()

    async def start(self, host: str, port: int) -> int:
        """Listen; gives the port, which is chosen if it is 0."""
        self._server = await asyncio.start_server(
            self._serve, host, port, ssl=self._context, ssl_handshake_timeout=10.0, limit=_HEAD
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        await asyncio.sleep(0)
        await self._client.aclose()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = str(writer.get_extra_info("peername")[0])
        self._connections[address] += 1
        self._open.add(writer)
        try:
            full = self._connections.total() > self._limits.connections
            if not full and self._connections[address] <= self._limits.per_address:
                await self._calls(address, reader, writer)
            else:
                self.refusals["crowded"] += 1
        except (OSError, TimeoutError, ssl.SSLError, h11.ProtocolError, EOFError):
            pass
        finally:
            self._open.discard(writer)
            self._connections[address] -= 1
            if not self._connections[address]:
                del self._connections[address]
            writer.close()

    async def _calls(self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One call after the other on one connection."""
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD)
        while True:
            async with asyncio.timeout(self._limits.head):
                head = await _event(http, reader)
            if not isinstance(head, h11.Request):
                return
            try:
                status, headers, content = await self._call(address, head, http, reader, writer)
            except _AnswerError as error:
                self.refusals[str(error)] += 1
                status, headers, content = error.status, [("connection", "close")], _EMPTY
            length = ("content-length", str(len(content)))
            writer.write(http.send(h11.Response(status_code=status, headers=[*headers, length])) or b"")
            writer.write(http.send(h11.Data(data=content)) or b"")
            writer.write(http.send(h11.EndOfMessage()) or b"")
            await asyncio.wait_for(writer.drain(), self._limits.body)
            if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                return
            http.start_next_cycle()

    async def _call(
        self,
        address: str,
        head: h11.Request,
        http: h11.Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Check a call and pass it on; gives the answer."""
        self._addresses.take(address)
        path = head.target.decode("ascii", "replace")
        if head.method != b"POST" or path not in PATHS:
            raise _AnswerError(404, "another path")
        headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
        public = self._node(headers)
        size = _length(headers)
        if size > (self._limits.upload + (1 << 10) if path == PUSH_OBJECT else self._limits.call):
            raise _AnswerError(413, "a body that is too large")
        if self._memory + size > self._limits.memory:
            raise _AnswerError(503, "no memory")
        self._memory += size
        try:
            if http.they_are_waiting_for_100_continue:
                writer.write(http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
            async with asyncio.timeout(self._limits.body):
                body = await _body(http, reader, size)
            return await self._pass_on(path, public, headers, body)
        finally:
            self._memory -= size

    def _node(self, headers: dict[str, str]) -> bytes:
        """The public key (PEM) of the enrolled node that signed a call."""
        try:
            pem = base64.b64decode(headers[_KEY], validate=True)
            point = point_of(pem)
            self._registry().stock_node(point)
            _check_signature(pem, headers[_TIME], base64.b64decode(headers[_SIGNATURE], validate=True))
        except (KeyError, ValueError, TypeError, RefusedError) as error:
            kind = "an unknown node" if isinstance(error, RefusedError) else "no valid signature"
            raise _AnswerError(401, kind) from None
        self._nodes.take(point)
        return flower_pem(point)

    async def _pass_on(
        self, path: str, public: bytes, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        try:
            check_upload(path, body)
            if path == _ACTIVATE:
                await self._known(public)
            passed = {
                k: v for k, v in headers.items() if k.startswith("flwr-") or k in ("content-type", "accept")
            }
            answer = await self._client.post(path, content=body, headers=passed)
        except PayloadError as error:
            raise _AnswerError(400, str(error)) from None
        except (httpx.HTTPError, OSError, FedgeError):
            raise _AnswerError(503, "the SuperLink is away") from None
        back = [(k, v) for k, v in answer.headers.items() if k.startswith("flwr-") or k == "content-type"]
        return answer.status_code, back, answer.content


def _check_signature(pem: bytes, stamp: str, signature: bytes) -> None:
    """Flower signs the time and nothing else; checked here, so that a stranger's body is not even read.

    Raises:
        ValueError: it is wrong, or too old.
    """
    age = (datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds()
    key = load_pem_public_key(pem)
    if not _YOUNG < age < _OLD or not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("a clock that is wrong")
    try:
        key.verify(signature, stamp.encode("ascii"), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise ValueError("a wrong signature") from None


def _length(headers: dict[str, str]) -> int:
    """The length of the body, which has to be said first."""
    said = headers.get("content-length", "")
    if "transfer-encoding" in headers or not (said.isascii() and said.isdigit() and len(said) < 12):
        raise _AnswerError(411, "no length")
    return int(said)


async def _event(http: h11.Connection, reader: asyncio.StreamReader) -> object:
    while (event := http.next_event()) is h11.NEED_DATA:
        data = await reader.read(1 << 16)
        if not data and http.their_state is h11.IDLE:
            raise EOFError
        http.receive_data(data)
    return event


async def _body(http: h11.Connection, reader: asyncio.StreamReader, size: int) -> bytes:
    content = bytearray()
    while isinstance(event := await _event(http, reader), h11.Data):
        content += event.data
        if len(content) > size:
            raise _AnswerError(413, "a body that is too large")
    if not isinstance(event, h11.EndOfMessage):
        raise EOFError
    return bytes(content)
