"""The door for stock nodes: of everything that knocks, only an enrolled node's ten calls reach Flower."""

import asyncio
import base64
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import h11
import numpy as np
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import Array, ArrayRecord, ConfigRecord
from flwr.proto.error_pb2 import Error
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node

from deploy.provisioned import make_federation
from fedge.deploy.flower_door import PATHS, DoorLimits, FlowerDoor
from fedge.deploy.gateway_limits import Bucket
from fedge.deploy.registry import Member, Registry
from fedge.deploy.stock_node import point_of
from fedge.deploy.tls import server_context
from fedge.flower.messages import UNSOUND

_NODE = ec.generate_private_key(ec.SECP384R1())
_STRANGER = ec.generate_private_key(ec.SECP384R1())
_REVOKED = ec.generate_private_key(ec.SECP384R1())
_OBJECT = PushObjectRequest(node=Node(node_id=7), object_content=ConfigRecord({"frame": b"x"}).deflate())


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _signed(key: ec.EllipticCurvePrivateKey, age: float = 0.0, stamp: str | None = None) -> dict[str, str]:
    stamp = stamp or (datetime.now(UTC) - timedelta(seconds=age)).isoformat()
    signature = key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
    return {
        "flwr-public-key": base64.b64encode(_pem(key)).decode(),
        "flwr-timestamp": stamp,
        "flwr-signature": base64.b64encode(signature).decode(),
        "content-type": "application/x-protobuf",
        "cookie": "secret",
    }


@dataclass
class SuperLinkOfTests:
    """Takes every call and remembers it."""

    calls: list[tuple[str, bytes, dict[str, str]]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        http = h11.Connection(h11.SERVER)
        head, body = None, b""
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await reader.read(1 << 16))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                headers = {k.decode(): v.decode() for k, v in head.headers}
                self.calls.append((head.target.decode(), body, headers))
                response = h11.Response(
                    status_code=200, headers=[("content-length", "2"), ("server", "uvicorn")]
                )
                writer.write((http.send(response) or b"") + (http.send(h11.Data(data=b"ok")) or b""))
                writer.write(http.send(h11.EndOfMessage()) or b"")
                http.start_next_cycle()
                body = b""
            else:
                writer.close()
                return


@dataclass
class Outside:
    """Someone at the door."""

    port: int
    trust: ssl.SSLContext
    superlink: SuperLinkOfTests
    known: list[bytes]
    door: FlowerDoor

    async def say(self, raw: bytes, wait: float = 5.0) -> bytes:
        """Send these bytes; what comes back until the door closes or answers."""
        reader, writer = await asyncio.open_connection("localhost", self.port, ssl=self.trust)
        try:
            writer.write(raw)
            return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), wait)
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""
        finally:
            writer.close()

    async def call(
        self,
        path: str,
        headers: dict[str, str],
        body: bytes = b"",
        method: str = "POST",
        length: int | None = None,
    ) -> int:
        """A call; the status that it gets."""
        lines = [
            f"{method} {path} HTTP/1.1",
            "host: x",
            f"content-length: {len(body) if length is None else length}",
        ]
        lines += [f"{k}: {v}" for k, v in headers.items()]
        head = await self.say("\r\n".join([*lines, "", ""]).encode() + body)
        return int(head.split(b" ")[1]) if head else 0


@asynccontextmanager
async def _open(folder: Path, limits: DoorLimits | None = None) -> AsyncIterator[Outside]:
    make_federation(folder, now=time.time())
    member = Member("n", b"s" * 32, b"c" * 32, node=point_of(_pem(_NODE)))
    revoked = Member("r", b"t" * 32, b"d" * 32, node=point_of(_pem(_REVOKED)), revoked=True)
    superlink, known = SuperLinkOfTests(), list[bytes]()
    inner = await asyncio.start_server(superlink.serve, "127.0.0.1", 0)
    address = f"127.0.0.1:{inner.sockets[0].getsockname()[1]}"

    async def tell(public: bytes) -> None:
        known.append(public)

    context = server_context(folder / "server", "none")
    door = FlowerDoor(address, lambda: Registry.of([member, revoked]), context, tell, limits)
    trust = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    try:
        yield Outside(await door.start("127.0.0.1", 0), trust, superlink, known, door)
    finally:
        await door.close()
        inner.close()
        await asyncio.sleep(0.05)  # connections end


def _play(
    folder: Path, story: Callable[[Outside], Awaitable[None]], limits: DoorLimits | None = None
) -> None:
    async def play() -> None:
        async with _open(folder / "f", limits) as outside:
            await asyncio.wait_for(story(outside), 60)

    asyncio.run(play())


def _bodies() -> dict[str, bytes]:
    tree = ObjectTree(
        object_id="m", children=[ObjectTree(object_id="d", children=[ObjectTree(object_id="r")])]
    )
    message = Message(metadata=Metadata(src_node_id=7))
    pushed = PushMessagesRequest(node=Node(node_id=7), messages_list=[message], message_object_trees=[tree])
    return {
        "/v1/fleet/push-messages": pushed.SerializeToString(),
        "/v1/fleet/push-object": _OBJECT.SerializeToString(),
    }


def test_an_enrolled_node_s_ten_calls_pass_and_nothing_of_its_headers_but_flower_s(tmp_path: Path) -> None:
    async def story(outside: Outside) -> None:
        bodies = _bodies()
        for path in PATHS:
            assert await outside.call(path, _signed(_NODE), bodies.get(path, b"x")) == 200
        assert [c[:2] for c in outside.superlink.calls] == [(p, bodies.get(p, b"x")) for p in PATHS]
        assert all("cookie" not in c[2] and "flwr-signature" in c[2] for c in outside.superlink.calls)
        assert outside.known == [_pem(_NODE)]  # before it activates itself

    _play(tmp_path, story)


def test_every_other_path_of_flower_s_list_is_an_empty_404(tmp_path: Path) -> None:
    from flwr.superlink.main import create_app

    paths = set(create_app().openapi()["paths"]) | {
        "/",
        "/docs",
        "/openapi.json",
        "/v1/fleet/../control/start-run",
    }
    paths |= {"//v1/fleet/pull-messages", "/v1/fleet/pull-messages?x=1", "/v1/fleet/pull-messages/", "*"}
    assert "/v1/control/start-run" in paths

    async def story(outside: Outside) -> None:
        for path in sorted(paths - set(PATHS)):
            head = await outside.say(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".encode())
            assert head.startswith(b"HTTP/1.1 404"), path
            assert b"content-length: 0" in head.lower()
            assert b"server" not in head.lower()
        for method in ("GET", "PUT", "OPTIONS", "CONNECT"):
            assert await outside.call(PATHS[0], _signed(_NODE), method=method) == 404
        assert not outside.superlink.calls

    _play(tmp_path, story)


def test_nobody_else_s_body_is_read(tmp_path: Path) -> None:
    """The answer is there although the body that was announced never comes."""

    async def story(outside: Outside) -> None:
        wrong = _signed(_NODE) | {"flwr-signature": _signed(_STRANGER)["flwr-signature"]}
        for headers in (
            {},
            _signed(_STRANGER),
            _signed(_REVOKED),
            _signed(_NODE, age=400),
            _signed(_NODE, age=-60),
            _signed(_NODE, stamp="yesterday"),
            _signed(_NODE, stamp="2026-01-01T00:00:00"),
            wrong,
            _signed(_NODE) | {"flwr-public-key": "%%%"},
            _signed(_NODE) | {"flwr-public-key": base64.b64encode(b"no key").decode()},
        ):
            assert await outside.call("/v1/fleet/push-object", headers, length=1 << 30) == 401
        assert not outside.superlink.calls

    _play(tmp_path, story)


def test_an_enrolled_node_cannot_send_more_than_it_may(tmp_path: Path) -> None:
    async def story(outside: Outside) -> None:
        assert await outside.call("/v1/fleet/push-object", _signed(_NODE), length=1 << 30) == 413
        assert await outside.call("/v1/fleet/push-messages", _signed(_NODE), length=(64 << 10) + 1) == 413
        chunked = _signed(_NODE) | {"transfer-encoding": "chunked"}
        lines = ["POST /v1/fleet/push-object HTTP/1.1", "host: x", *(f"{k}: {v}" for k, v in chunked.items())]
        head = await outside.say("\r\n".join([*lines, "", ""]).encode())
        assert head.startswith(b"HTTP/1.1 411")
        assert not outside.superlink.calls

    _play(tmp_path, story)


def test_an_endless_head_or_silence_is_hung_up_on(tmp_path: Path) -> None:
    async def story(outside: Outside) -> None:
        assert await outside.say(b"POST / HTTP/1.1\r\n" + b"a: " + b"x" * 100_000) == b""
        assert await outside.say(b"") == b""
        assert await outside.say(b"\x16\x03garbage\r\n\r\n") == b""

    _play(tmp_path, story, DoorLimits(head=0.3))


def test_calls_come_at_a_rate(tmp_path: Path) -> None:
    async def story(outside: Outside) -> None:
        got = [await outside.call(PATHS[0], _signed(_NODE), b"x") for _ in range(14)]
        assert got[:10] == [200] * 10
        assert 429 in got
        assert len(outside.superlink.calls) < 14

    _play(tmp_path, story, DoorLimits(node_calls=1.0))
    assert Bucket(1.0, 10.0).allows(0.0)


def _tree(width: int, depth: int) -> ObjectTree:
    return ObjectTree(
        object_id="x", children=[_tree(width, depth - 1) for _ in range(width)] if depth else []
    )


def _push(node: int, source: int, tree: ObjectTree, copies: int = 1, code: int = 0) -> bytes:
    message = Message(metadata=Metadata(src_node_id=source), error=Error(code=code) if code else None)
    request = PushMessagesRequest(
        node=Node(node_id=node), messages_list=[message] * copies, message_object_trees=[tree] * copies
    )
    return request.SerializeToString()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/fleet/push-messages", _push(7, 8, _tree(1, 2))),  # in another's name
        ("/v1/fleet/push-messages", _push(7, 7, _tree(400, 1))),  # many parts
        ("/v1/fleet/push-messages", _push(7, 7, _tree(1, 50))),  # deep
        ("/v1/fleet/push-messages", _push(7, 7, _tree(1, 2), copies=2)),
        ("/v1/fleet/push-messages", _push(7, 7, _tree(1, 2), code=UNSOUND)),  # only the gateway accuses
        ("/v1/fleet/push-messages", b""),
        ("/v1/fleet/push-messages", b"\xff" * 100),
        ("/v1/fleet/push-object", PushObjectRequest(object_content=b"garbage of 15 b").SerializeToString()),
        ("/v1/fleet/push-object", PushObjectRequest(object_content=b"").SerializeToString()),
        (
            "/v1/fleet/push-object",
            PushObjectRequest(object_content=Array(np.ones(3)).deflate()).SerializeToString(),
        ),
        (
            "/v1/fleet/push-object",
            PushObjectRequest(object_content=ArrayRecord().deflate()).SerializeToString(),
        ),
        ("/v1/fleet/push-object", b"\xff" * 100),
    ],
    ids=[
        "forged",
        "wide",
        "deep",
        "two",
        "accusation",
        "none",
        "noise",
        "garbage",
        "empty",
        "array",
        "arrays",
        "noisy-object",
    ],
)
def test_what_would_blow_up_behind_the_door_stays_outside(tmp_path: Path, path: str, body: bytes) -> None:
    async def story(outside: Outside) -> None:
        assert await outside.call(path, _signed(_NODE), body) == 400
        assert not outside.superlink.calls

    _play(tmp_path, story)
