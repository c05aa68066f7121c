"""The connection, from the outside: what a client may do to it, and what it must not be able to do."""

import contextlib
import gzip
import socket
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from fedge.serving._json import RequestError
from fedge.serving.batcher import Bounds
from fedge.serving.http_words import inflated
from fedge.serving.limits import Limits
from fedge.serving.server import Settings

from .build import Fake, Raw, ask, get, infer_head, infer_request, post, running, windows

LIMITS = Limits(body_bytes=100_000, buffered_bytes=150_000, connections=8, windows=64)
IMPATIENT = replace(LIMITS, receive_seconds=1, idle_seconds=1, stalled_seconds=1)
INFER = "/v2/models/test/infer"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with running(Fake(), Settings(limits=LIMITS, grace=2)) as taken:
        yield taken


def test_a_connection_answers_one_request_after_the_other(port: int) -> None:
    with Raw(port) as raw:
        for n in (1, 3, 2):
            said = raw.ask(infer_request(windows(n, seed=n)))
            assert np.allclose(said.scores[:, 0], windows(n, seed=n).mean(axis=(1, 2)), atol=1e-5)


def test_requests_sent_at_once_are_answered_in_their_order(port: int) -> None:
    with Raw(port) as raw:
        raw.send(b"".join(infer_request(windows(1, seed=n)) for n in range(8)) + get("/v2"))
        for n in range(8):
            assert np.allclose(raw.read().scores[0, 0], windows(1, seed=n).mean(), atol=1e-5)
        assert raw.read().json["name"] == "fedge"


def test_a_request_may_come_byte_by_byte(port: int) -> None:
    request = infer_request(windows(1))
    with Raw(port) as raw:
        raw.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(len(request)):
            raw.send(request[i : i + 1])
        assert raw.read().status == 200


def test_a_body_may_come_in_chunks(port: int) -> None:
    x = windows(2)
    head = infer_head([*x.shape], x.nbytes)
    start = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    start += f"Inference-Header-Content-Length: {len(head)}\r\n\r\n"
    body = head + x.tobytes()
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:80], body[80:]))
    with Raw(port) as raw:
        assert raw.ask(start.encode() + chunks + b"0\r\n\r\n").scores.shape == (2, 3)
        assert raw.ask(get("/v2")).status == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), b"GET\r\n\r\n", b"\0" * 50,
        b"GET /v2 HTTP/3.0\r\n\r\n", b"GET /v2 HTTP/1.1\r\nHost x\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 5x\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"POST /v2 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /v2 HTTP/1.1\r\n\r\n", b"GET /v2 HTTP/1.1\r\nHost: a\r\nhost: b\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: a\r\nX: 1\r\nX: 2\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_http_is_refused_and_the_connection_ended(port: int, data: bytes) -> None:
    with Raw(port) as raw:
        said = raw.ask(data)
        assert said.status == 400
        assert said.json["error"]
        assert said.headers["connection"] == "close"
        assert raw.closed()


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b"x" * 20_000, b"GET /v2 HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 20_000,
        b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X%d: 1\r\n" % i for i in range(100)),
        b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X%d: %b\r\n" % (i, b"y" * 900) for i in range(30)),
        b"GET /v2 HTTP/1.1\r\n" + b"X" * 20_000,
    ],
)  # fmt: skip
def test_headers_without_an_end_are_refused(port: int, data: bytes) -> None:
    with Raw(port) as raw:
        assert raw.ask(data).status == 431
        assert raw.closed()


def test_a_body_above_the_limit_is_refused_before_it_comes(port: int) -> None:
    with Raw(port) as raw:
        raw.send(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 100001\r\n\r\n".encode())
        assert raw.read().status == 413
        assert raw.closed()


def test_a_refused_client_that_goes_on_sending_still_hears_why(port: int) -> None:
    """A server that closes while bytes are under way resets the connection, and its answer is lost."""
    with Raw(port) as raw:
        raw.send(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 90000000\r\n\r\n".encode())
        for _ in range(20):
            raw.send(b"x" * 50_000)
        time.sleep(0.05)
        raw.send(b"x" * 50_000)
        assert raw.read().status == 413


def test_a_body_in_chunks_above_the_limit_is_refused(port: int) -> None:
    with Raw(port) as raw:
        raw.send(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(11):
            raw.send(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
        assert raw.read().status == 413


def test_bodies_that_are_sent_at_once_are_bounded_together(port: int) -> None:
    start = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n".encode()
    first, second = Raw(port), Raw(port)
    with first, second:
        first.send(start + b"x" * 80_000)
        assert ask(port, get("/v2")).status == 200  # the first has been read by now
        second.send(start + b"x" * 80_000)
        assert second.read().status == 503
    with Raw(port) as raw:  # and what was held is given back
        raw.send(start + b"x" * 90_000)
        assert raw.read().status == 400


def test_connections_are_bounded(port: int) -> None:
    many = [Raw(port) for _ in range(8)]
    try:
        assert all(raw.ask(get("/v2")).status == 200 for raw in many)
        with Raw(port) as more:
            said = more.read()
            assert said.status == 503
            assert said.headers["retry-after"] == "1"
    finally:
        for raw in many:
            raw.socket.close()


def test_who_takes_too_long_is_given_up() -> None:
    """A request that does not come whole, a connection without one, and a client that takes no answers."""
    with running(Fake(), Settings(limits=IMPATIENT, grace=2)) as port:
        slow = [Raw(port) for _ in range(3)]
        for raw, begin in zip(slow, (b"", b"GET /v2 HT", infer_request(windows(1))[:-5]), strict=True):
            raw.send(begin)
        with Raw(port) as idle:
            assert idle.ask(get("/v2")).status == 200
            with pytest.raises(EOFError):
                idle.read()
        for raw in slow:
            with raw:
                assert raw.read().status == 408
                assert raw.closed()
        with Raw(port) as deaf:
            deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            with pytest.raises(ConnectionError):
                _send_for_ever(deaf)


def _send_for_ever(raw: Raw) -> None:
    while True:
        raw.send(get("/metrics"))


def test_too_many_requests_before_their_answers_are_refused() -> None:
    served = Fake()
    served.hold.clear()
    settings = Settings(Bounds(inline=False), LIMITS, grace=2)
    with running(served, settings) as port, Raw(port) as raw:
        raw.send(infer_request(windows(1)) * 40)
        assert ask(port, get("/v2")).status == 200  # they have been read by now
        served.hold.set()
        statuses = _until_end(raw)
        assert statuses == [200] * LIMITS.pipelined + [503]
    with running(served, settings) as port, Raw(port) as raw:  # nor those that are answered at once
        raw.send(get("/v2") * 40)
        assert _until_end(raw) == [200] * LIMITS.pipelined + [503]


def _until_end(raw: Raw) -> list[int]:
    statuses: list[int] = []
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            statuses.append(raw.read().status)
    return statuses


def test_expect_100_continue_is_answered(port: int) -> None:
    body = infer_request(windows(1)).partition(b"\r\n\r\n")
    with Raw(port) as raw:
        raw.send(body[0] + b"\r\nExpect: 100-continue\r\n\r\n")
        assert raw.read(body=False).status == 100
        assert raw.ask(body[2]).status == 200
    with Raw(port) as raw:
        raw.send(b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 200000\r\n\r\n")
        assert raw.read().status == 413


def test_a_client_may_stop_sending_before_it_reads(port: int) -> None:
    with Raw(port) as raw:
        raw.send(infer_request(windows(2)))
        raw.socket.shutdown(socket.SHUT_WR)
        assert raw.read().status == 200
        assert raw.closed()


def test_old_clients_and_those_that_want_to_close_are_answered(port: int) -> None:
    for request in (b"GET /v2 HTTP/1.0\r\n\r\n", b"GET /v2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"):
        with Raw(port) as raw:
            said = raw.ask(request)
            assert said.status == 200
            assert said.headers["connection"] == "close"
            assert raw.closed()


def test_an_upgrade_is_not_taken(port: int) -> None:
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
    with Raw(port) as raw:
        assert raw.ask(b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + offer).status == 200


def test_an_upgrade_with_a_body_is_refused_and_not_read_without_it(port: int) -> None:
    """As clients that would rather speak HTTP/2 send it; the parser leaves out what follows such headers."""
    head = b"POST /v2/models/activity/infer HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
    for more in (b"Content-Length: 2\r\n\r\n{}", b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"):
        with Raw(port) as raw:
            said = raw.ask(head + more)
            assert (said.status, "upgrade" in said.json["error"]) == (400, True)


def test_head_has_no_body(port: int) -> None:
    with Raw(port) as raw:
        raw.send(b"HEAD /v2 HTTP/1.1\r\nHost: x\r\n\r\n" + get("/v2"))
        assert int(raw.read(body=False).headers["content-length"]) > 0
        assert raw.read().json["name"] == "fedge"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "identity", "GZIP"])
def test_bodies_may_be_compressed(port: int, coding: str) -> None:
    x = windows(2)
    head = infer_head([*x.shape], x.nbytes)
    body = head + x.tobytes()
    packed = {"gzip": gzip.compress, "deflate": zlib.compress}.get(coding.lower(), bytes)(body)
    headers: dict[str, object] = {"Inference-Header-Content-Length": len(head), "Content-Encoding": coding}
    assert ask(port, post(INFER, packed, headers)).scores.shape == (2, 3)


def test_a_bomb_is_refused_before_it_swells() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    with pytest.raises(RequestError, match="more once it is inflated") as caught:
        inflated(bomb, b"gzip", 1000)
    assert caught.value.status == 413
    assert inflated(gzip.compress(bytes(1000)), b"gzip", 1000) == bytes(1000)


@pytest.mark.parametrize(
    "body",
    [b"", b"x", gzip.compress(b"abc")[:-1], gzip.compress(b"abc") + b"x", zlib.compress(b"abc")],
)
def test_a_damaged_compressed_body_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        inflated(body, b"gzip", 1000)
    assert caught.value.status == 400
    with pytest.raises(RequestError) as caught:
        inflated(body, b"br", 1000)
    assert caught.value.status == 415
