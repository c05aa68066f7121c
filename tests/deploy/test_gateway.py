"""What the gateway lets in, what it refuses, and what it costs."""

import asyncio
import contextlib
import json
import socket
import ssl
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from websockets.client import ClientProtocol
from websockets.uri import parse_uri

from deploy.link_lab import Caller, Lab, Proxy, Running, answer_to, make_federation, plain_client, until
from fedge.deploy import device, enrol, federation, tls
from fedge.deploy.device_wire import Wire
from fedge.deploy.federation import Enrolment
from fedge.deploy.gateway import Gateway
from fedge.deploy.gateway_admission import RegistryFile
from fedge.deploy.gateway_limits import Addresses, Bucket, Limits, prefix
from fedge.deploy.registry import Registry
from fedge.edge.sources import FetchError, HttpSource
from fedge.errors import SetupError
from fedge.link.device_end import DeviceDesk, Opened, Parted
from fedge.link.frames import CHUNK_BYTES, LinkError, Reason


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("federation") / "home"
    make_federation(folder, ("a", "b", "c", "gone"))
    return folder


def _refusal(folder: Path, name: str, port: int, shown: str | None = None) -> Parted:
    caller = Caller(folder, name, port, shown)
    try:
        return caller.until(Parted)
    finally:
        caller.close()


def test_a_task_goes_to_its_device_and_its_answer_comes_back(home: Path, tmp_path: Path) -> None:
    with Running(home) as server, Lab(home / "devices" / "a", tmp_path / "a", server.port) as lab:
        ids = [server.give("a", frame) for frame in (b"one", b"x" * 100_000, b"three")]
        until(lambda: len(server.upstream.answers) == 3)
        assert server.upstream.answers == [
            ("a", i, answer_to(f)) for i, f in zip(ids, (b"one", b"x" * 100_000, b"three"), strict=True)
        ]
        until(lambda: lab.desk == DeviceDesk())
        assert len(lab.rounds) == 3


def test_the_newest_word_of_the_registry_counts(home: Path) -> None:
    with Running(home) as server:
        caller = Caller(home, "gone", server.port)
        caller.until(Opened)
        enrol.revoke(home, ["gone"])
        server.call(server.gateway.look)
        parted = caller.until(Parted)
        assert parted.reason is Reason.REVOKED
        caller.close()
        assert _refusal(home, "gone", server.port).reason is Reason.REVOKED


def test_who_was_never_enrolled_is_unknown(home: Path) -> None:
    """Its certificate is genuine; only the registry does not have it."""
    registry = Registry.load(home / "server" / "registry.json")
    without = Registry.of(m for m in registry.members.values() if m.name != "b")
    with Running(home) as server:
        server.gateway._registry = lambda: without
        server.call(server.gateway.look)
        parted = _refusal(home, "b", server.port)
        assert parted.reason is Reason.UNKNOWN
        assert "not enrolled" in parted.text


def test_a_device_of_another_federation_gets_no_tls(home: Path, tmp_path: Path) -> None:
    make_federation(tmp_path / "other", ("a",))
    with Running(home) as server:
        foreign = tls.device_context(tmp_path / "other" / "devices" / "a")
        with pytest.raises(ssl.SSLCertVerificationError):  # it does not believe this server either
            foreign.wrap_socket(
                socket.create_connection(("127.0.0.1", server.port)), server_hostname="127.0.0.1"
            )
        foreign.check_hostname, foreign.verify_mode = False, ssl.CERT_NONE
        plug = foreign.wrap_socket(
            socket.create_connection(("127.0.0.1", server.port), timeout=10), server_hostname="127.0.0.1"
        )
        with plug, pytest.raises(ssl.SSLError, match=r"(?i)unknown.ca|alert"):
            plug.recv(1)


def test_one_devices_certificate_with_anothers_hello_is_refused(home: Path) -> None:
    with Running(home) as server:
        parted = _refusal(home, "a", server.port, shown="b")
        assert parted.reason is Reason.FOREIGN
        assert parted.seconds > 0


def test_a_hello_with_another_key_is_refused(home: Path) -> None:
    with Running(home) as server:
        caller = Caller(home, "a", server.port)
        stranger = device.identity_of(Enrolment.load(home / "devices" / "b"), home / "devices" / "b")
        own = caller.end._identity
        caller.end._identity = replace(own, key=stranger.key)
        parted = caller.until(Parted)
        assert parted.reason is Reason.SIGNATURE
        caller.close()


def test_a_peer_without_a_certificate_gets_nowhere(home: Path) -> None:
    with Running(home) as server:
        heard = b""
        with contextlib.suppress(OSError), plain_client(home, None, server.port) as plug:
            plug.sendall(b"GET /link HTTP/1.1\r\n\r\n")
            while more := plug.recv(100):
                heard += more
        assert not heard
        until(lambda: server.gateway.addresses.connections == 0)


def test_where_certificates_are_optional_the_link_still_wants_one(home: Path) -> None:
    with Running(home, clients="optional") as server:
        bundle = home / "devices" / "a"
        caller = Caller(home, "a", server.port)
        bare = ssl.create_default_context(cafile=str(home / "ca.pem"))
        bare.verify_flags &= ~ssl.VERIFY_X509_STRICT
        caller.wire = Wire(bare, "127.0.0.1", server.port)
        caller.wire.start()
        parted = caller.until(Parted)
        assert parted.reason is Reason.FOREIGN
        assert bundle.exists()
        caller.close()


def test_an_expired_certificate_is_refused_in_a_resumed_session_too(home: Path) -> None:
    """TLS does not look at the dates again when a session is resumed: the gateway does."""
    with Running(home) as server:
        caller = Caller(home, "a", server.port)
        caller.until(Opened)
        server.call(lambda: setattr(server.gateway.clients["a"], "expires", time.time() - 1))
        server.call(server.gateway.look)
        parted = caller.until(Parted)
        assert parted.reason is Reason.EXPIRED
        caller.close()


def test_the_newer_of_two_processes_wins_and_the_older_is_told(home: Path) -> None:
    with Running(home) as server:
        first, second = Caller(home, "a", server.port), Caller(home, "a", server.port)
        first.until(Opened)
        second.until(Opened)
        parted = first.until(Parted)
        assert parted.reason is Reason.REPLACED
        assert parted.seconds >= 60
        first.close()
        second.close()


def test_two_processes_that_push_each_other_out_are_slowed_down(home: Path) -> None:
    with Running(home, Limits(takeovers_burst=2)) as server:
        callers = []
        for _ in range(3):
            callers.append(Caller(home, "a", server.port))
            callers[-1].until(Opened)
        parted = _refusal(home, "a", server.port)
        assert parted.reason is Reason.REPLACED
        assert parted.seconds >= 60
        assert server.gateway.clients["a"].connection is not None  # the last one stays
        for caller in callers:
            caller.close()


def test_a_process_that_comes_back_takes_its_own_place_at_once(home: Path) -> None:
    with Running(home, Limits(takeovers_burst=1)) as server:
        caller = Caller(home, "a", server.port)
        caller.until(Opened)
        for _ in range(4):
            again = Caller(home, "a", server.port)
            again.end._identity = caller.end._identity
            again.until(Opened)
            caller.close()
            caller = again
        caller.close()


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        b"GET /link HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /link HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n",
        b"\x00" * 5000,
        b"GET /" + b"a" * 200_000,
    ],
)
def test_what_is_no_link_is_sent_away(home: Path, request_: bytes) -> None:
    with Running(home, Limits(greeting=1.0)) as server:
        with plain_client(home, "a", server.port) as plug:
            answer = b""
            try:
                plug.sendall(request_)
                while more := plug.recv(4096):
                    answer += more
            except OSError:
                pass
            assert b"101" not in answer[:20]
        until(lambda: server.gateway.addresses.connections == 0)


def _upgraded(home: Path, port: int) -> ssl.SSLSocket:
    plug = plain_client(home, "a", port)
    protocol = ClientProtocol(parse_uri("wss://127.0.0.1/link"))
    protocol.send_request(protocol.connect())
    plug.sendall(b"".join(protocol.data_to_send()))
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += plug.recv(1)
    return plug


@pytest.mark.parametrize(
    "frame",
    [
        b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00",  # 2^63 bytes are announced
        b"\x82\xfe\xff\xff\x00\x00\x00\x00",  # 65,535 bytes
        b"\x02\x81\x00\x00\x00\x00x",  # in fragments
        b"\x81\x81\x00\x00\x00\x00x",  # text
        b"\x82\x81\x00\x00\x00\x00\xfe",  # a frame of no known kind
        b"\x82\x80\x00\x00\x00\x00",  # an empty frame
    ],
)
def test_a_bad_frame_ends_the_connection_when_its_header_is_seen(home: Path, frame: bytes) -> None:
    with Running(home, Limits(greeting=60.0)) as server:
        with _upgraded(home, server.port) as plug:
            plug.sendall(frame)
            with contextlib.suppress(ConnectionError, ssl.SSLError):  # but no time-out: the server hangs up
                while plug.recv(4096):
                    pass
        until(lambda: server.gateway.addresses.connections == 0)


def test_whoever_says_no_hello_in_time_is_dropped(home: Path) -> None:
    with Running(home, Limits(greeting=0.3)) as server:
        with _upgraded(home, server.port) as plug:
            while plug.recv(4096):
                pass
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as bare:  # not even TLS
            assert bare.recv(1) == b""
        until(lambda: server.gateway.addresses.strangers == 0)


def test_one_address_has_so_many_strangers_and_no_more(home: Path) -> None:
    with Running(home, Limits(strangers_per_address=3)) as server:
        plugs = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(3)]
        until(lambda: server.gateway.addresses.strangers == 3)
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as refused:
            assert refused.recv(1) == b""
        for plug in plugs:
            plug.close()
        until(lambda: server.gateway.addresses.connections == 0)
        caller = Caller(home, "a", server.port)
        caller.until(Opened)
        caller.close()


def test_endless_frames_and_pings_cost_no_memory(home: Path) -> None:
    """Megabytes of pings from a peer that reads nothing: reading stops, nothing piles up."""
    limits = Limits(address_messages=1e9, address_burst=10**9, greeting=60.0)
    with Running(home, limits) as server, _upgraded(home, server.port) as plug:
        plug.setblocking(False)
        flood, sent = b"\x89\x80\x00\x00\x00\x00" * 4096, 0
        quiet = 0
        while sent < 32 << 20 and quiet < 50:
            try:
                sent += plug.send(flood)
                quiet = 0
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                quiet += 1
                time.sleep(0.01)
        assert sent < 32 << 20  # the gateway has stopped to read
        connection = next(iter(server.gateway._open))
        waiting = connection._transport.get_write_buffer_size() if connection._transport else 0
        assert waiting < 1 << 20
        assert connection._tls._in.pending <= 1 << 20


def test_whoever_says_too_much_is_read_more_slowly(home: Path) -> None:
    limits = Limits(address_messages=20.0, address_burst=10)
    with Running(home, limits) as server, _upgraded(home, server.port) as plug:
        plug.sendall(b"\x89\x80\x00\x00\x00\x00" * 60)
        until(lambda: any(c._resting for c in server.gateway._open))


def test_a_slow_reader_gets_a_large_task_without_it_piling_up(home: Path) -> None:
    with Running(home) as server:
        caller = Caller(home, "a", server.port)
        caller.plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        caller.until(Opened)
        caller.end._largest = 32 << 20
        server.give("a", bytes(16 << 20))
        until(lambda: any(c._full for c in server.gateway._open))
        connection = next(iter(server.gateway._open))
        assert connection._transport is not None
        assert connection._transport.get_write_buffer_size() < 1 << 20
        caller.close()


def test_answers_beyond_the_memory_are_asked_to_come_later(home: Path) -> None:
    with Running(home, Limits(memory=1000)) as server:
        with pytest.raises(LinkError) as caught:
            server.gateway.room(1001)
        assert caught.value.reason is Reason.BUSY
        assert caught.value.seconds > 0
        server.gateway.room(1000)


def test_an_answer_that_nobody_wants_is_forgotten(home: Path, tmp_path: Path) -> None:
    with Running(home) as server, Lab(home / "devices" / "a", tmp_path / "a", server.port) as lab:
        gate = threading.Event()
        lab.work = lambda frame: (gate.wait(10), answer_to(frame))[1]
        unwanted = server.give("a", b"old")
        server.upstream.unwanted.add(unwanted)
        gate.set()
        until(lambda: lab.rounds and lab.desk == DeviceDesk())
        server.give("a", b"new")
        until(lambda: server.upstream.answers)
        assert [a[2] for a in server.upstream.answers] == [answer_to(b"new")]


def test_a_hand_over_that_fails_is_tried_again_without_sending_the_answer_again(
    home: Path, tmp_path: Path
) -> None:
    with Running(home) as server:
        server.upstream.failures = 1
        proxy = Proxy(server.port)
        with Lab(home / "devices" / "a", tmp_path / "a", proxy.port, work=lambda _: bytes(400_000)):
            server.give("a", b"task")
            until(lambda: server.upstream.answers, 30)
        proxy.close()
        assert server.upstream.failures == 0
        assert len(server.upstream.answers) == 1
        assert proxy.up < 500_000


def test_a_task_is_withdrawn_at_its_deadline(home: Path, tmp_path: Path) -> None:
    gate = threading.Event()
    work = lambda frame: (gate.wait(20), answer_to(frame))[1]  # noqa: E731
    with (
        Running(home) as server,
        Lab(home / "devices" / "a", tmp_path / "a", server.port, work=work) as lab,
    ):
        server.give("a", b"late", time.time() + 1.0)
        until(lambda: lab.rounds)
        until(lambda: lab.desk == DeviceDesk())
        gate.set()
        server.give("a", b"next")
        until(lambda: server.upstream.answers)
        assert [a[2] for a in server.upstream.answers] == [answer_to(b"next")]


def test_the_upstream_hears_that_a_client_has_gone_after_a_while(home: Path) -> None:
    with Running(home, Limits(linger=0.3)) as server:
        caller = Caller(home, "a", server.port)
        caller.until(Opened)
        until(lambda: server.upstream.here["a"] == 1)
        caller.close()
        until(lambda: server.upstream.here["a"] == 0)
        again = Caller(home, "a", server.port)
        again.until(Opened)
        until(lambda: server.upstream.here["a"] == 1)
        again.close()


def test_a_short_break_is_not_reported(home: Path) -> None:
    with Running(home, Limits(linger=30)) as server:
        for _ in range(3):
            caller = Caller(home, "a", server.port)
            caller.until(Opened)
            caller.close()
            until(lambda: server.gateway.clients["a"].connection is None)
        assert server.upstream.here["a"] == 1


def test_a_gateway_that_stops_says_when_to_come_back(home: Path) -> None:
    with Running(home) as server:
        caller = Caller(home, "a", server.port)
        caller.until(Opened)
    parted = caller.until(Parted)
    assert isinstance(parted, Parted)
    assert parted.reason is Reason.LATER
    assert parted.seconds == 1
    caller.close()


def test_a_port_that_is_taken_is_named(home: Path) -> None:
    async def twice(port: int) -> None:
        registry = RegistryFile(home / "server" / "registry.json")
        context = tls.server_context(home / "server")
        from deploy.link_lab import PlainUpstream

        await Gateway(PlainUpstream(), registry, context, "f" * 32).start("127.0.0.1", port)

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SetupError, match=str(port)):
            asyncio.run(twice(port))


def test_a_registry_that_breaks_later_keeps_what_was_in_it(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "registry.json"
    with pytest.raises(SetupError):
        RegistryFile(path)()
    path.write_bytes((home / "server" / federation.REGISTRY).read_bytes())
    registry = RegistryFile(path)
    known = registry()
    path.write_text("{")
    assert registry().members == known.members
    path.write_text(json.dumps({"schema": 1, "members": {}}))
    assert not registry().members


def test_no_client_may_announce_more_than_its_share(home: Path) -> None:
    with Running(home) as server:
        limits = server.gateway.limits
        assert limits.answer <= limits.memory
        assert CHUNK_BYTES < 16_384


# The buckets and the book of addresses, without a gateway.


# ----- releases


def _released(folder: Path) -> Path:
    place = folder / "releases"
    (place / "v0001").mkdir(parents=True)
    (place / "latest.json").write_bytes(b"{}")
    (place / "v0001" / "model.onnx").write_bytes(bytes(range(256)) * 4000)
    (folder / "secret").write_bytes(b"not for devices")
    return place


def test_an_enrolled_device_can_fetch_releases(home: Path, tmp_path: Path) -> None:
    place = _released(tmp_path)
    with Running(home, releases=place) as server:
        source = HttpSource(f"https://127.0.0.1:{server.port}/releases", home / "devices" / "a")
        for path in ("latest.json", "v0001/model.onnx"):
            assert source.fetch(path, 1 << 24) == (place / path).read_bytes()
        with pytest.raises(FetchError, match="404"):
            source.fetch("v0002/model.onnx", 1 << 24)


@pytest.mark.parametrize("path", ["../secret", "%2e%2e/secret", "/etc/passwd", "", "v0001/../../secret"])
def test_no_other_file_can_be_had(home: Path, tmp_path: Path, path: str) -> None:
    with Running(home, releases=_released(tmp_path)) as server:
        context = tls.device_context(home / "devices" / "a")
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=10) as plug,
            context.wrap_socket(plug, server_hostname="127.0.0.1") as wire,
        ):
            wire.sendall(f"GET /releases/{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert wire.recv(4096).startswith(b"HTTP/1.1 404")


def test_a_revoked_device_gets_no_releases(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    make_federation(folder, ("a", "gone"))
    enrol.revoke(folder, ["gone"])
    with Running(folder, releases=_released(tmp_path)) as server:
        source = HttpSource(f"https://127.0.0.1:{server.port}/releases", folder / "devices" / "gone")
        with pytest.raises(FetchError):
            source.fetch("latest.json", 1 << 24)


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = Bucket(2.0, 3)
    assert [bucket.allows(0.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.allows(0.5), bucket.allows(0.5)] == [True, False]
    assert [bucket.allows(100.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.full(100.0)
    assert bucket.full(102.0)


def test_a_bucket_that_is_overdrawn_says_how_long_to_wait() -> None:
    bucket = Bucket(10.0, 1)
    assert bucket.wait(0.0) == 0
    assert bucket.wait(0.0) == pytest.approx(0.1)
    assert bucket.wait(0.0) == pytest.approx(0.2)
    assert bucket.wait(10.0) == 0


def test_a_clock_that_steps_back_gives_no_tokens() -> None:
    bucket = Bucket(1.0, 1)
    assert bucket.allows(50.0)
    assert not bucket.allows(10.0)
    assert not bucket.allows(50.5)
    assert bucket.allows(51.0)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_an_address_is_an_ipv4_host_or_an_ipv6_network(address: str, expected: str) -> None:
    assert prefix(address) == expected


def test_the_book_of_addresses_does_not_grow() -> None:
    book = Addresses(Limits(), most=100)
    for number in range(10_000):
        known = book.arrive(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 1.0)
        assert known is not None or len(book) <= 101
        if known is not None:
            book.leave(known, stranger=True)
    assert len(book) <= 101
    book.forget(10_000.0)
    assert len(book) == 0
    assert book.connections == book.strangers == 0
