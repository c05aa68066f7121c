import json
import time
from typing import Any

import numpy as np
import pytest

from fedge.errors import ConfigError, PayloadError
from fedge.serving.about import PATH, About, parse_about
from fedge.serving.oip_tensor import Tensor
from fedge.serving.peer import Address, Peer, PeerError, PeerRefusalError

from .build import FACE, Fake, running, windows
from .hostile_peer import Behaviour, drips, hangs, misbehaving, says

ABOUT = About("test", 3, "ab" * 32, "1/2", True, Tensor("window", "FP32", (8, 2)), 3, 64)


def infer(peer: Peer, x: Any) -> Any:
    return peer.infer("test", f"{1:064x}", "window", "FP32", x, FACE.output.size)


def infer_once(port: int, deadline: float) -> Any:
    with peer(port, deadline) as one:
        return infer(one, windows(1))


def peer(port: int, deadline: float = 10.0) -> Peer:
    return Peer(Address("127.0.0.1", port), None, deadline)


def test_scores_are_those_of_the_server_on_one_connection() -> None:
    with running(Fake()) as port:
        one = peer(port)
        for n in (1, 5, 2):
            x = windows(n, seed=n)
            assert np.allclose(infer(one, x)[:, 0], x.mean(axis=(1, 2)), atol=1e-6)
        assert parse_about(one.get(PATH).body).most == 1024
        one.close()


def test_a_server_that_was_started_again_is_asked_on_a_new_connection() -> None:
    with running(Fake()) as port:
        one = peer(port)
        infer(one, windows(1))
    with running(Fake(), port=port):
        assert len(infer(one, windows(2))) == 2
        one.close()


def test_refusals_come_with_their_status_and_reason() -> None:
    with running(Fake()) as port:
        one = peer(port)
        with pytest.raises(PeerRefusalError, match="no such page") as caught:
            one.get("/nowhere")
        assert caught.value.status == 404
        with pytest.raises(PeerRefusalError, match="another release") as caught:
            one.infer("test", "0" * 64, "window", "FP32", windows(1), 3)
        assert caught.value.status == 409
        one.close()


def test_nobody_there_is_said_at_once() -> None:
    with running(Fake()) as port:
        pass
    with pytest.raises(PeerError, match=f"127.0.0.1:{port}: .*refused"):
        peer(port).get(PATH)


@pytest.mark.parametrize("behaviour", [hangs, drips])
def test_who_hangs_is_given_up_at_the_deadline(behaviour: Behaviour) -> None:
    with misbehaving(behaviour) as port:
        start = time.monotonic()
        with pytest.raises(PeerError, match=r"in time|timed out"):
            infer_once(port, 0.3)
        assert time.monotonic() - start < 5


def answer(
    body: bytes, *, status: bytes = b"200 OK", said: int | None = None, head: int | None = None
) -> bytes:
    more = b"" if head is None else b"Inference-Header-Content-Length: %d\r\n" % head
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n%b\r\n%b" % (
        status, len(body) if said is None else said, more, body,
    )  # fmt: skip


def scores(x: np.ndarray[Any, Any], **changes: Any) -> bytes:
    output = {"name": "scores", "datatype": "FP32", "shape": list(x.shape)} | changes
    head = json.dumps({"outputs": [output]}).encode()
    return answer(head + x.tobytes(), head=len(head))


GOOD = np.ones((1, 3), np.float32)


def test_the_answer_that_the_next_test_spoils_is_good() -> None:
    with misbehaving(says(scores(GOOD))) as port:
        assert np.array_equal(infer_once(port, 10.0), GOOD)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"HTTP/1.1 200 OK\r\n", b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 999 X\r\n\r\n", b"x" * 50_000,
        b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        answer(b"{}", said=100), answer(b"{}" * 9, said=1), answer(b"{}"), answer(b"{}", head=2),
        answer(b"{}", head=3), answer(b"\xff" * 20, head=8), answer(b"[" * 9000 + GOOD.tobytes(), head=9000),
        answer(b"", head=0), scores(GOOD, shape=[3, 1]),
        scores(GOOD, shape="x"), scores(GOOD, datatype="FP64"),
        scores(GOOD[:, :2]), scores(np.ones((2, 3), np.float32)),
        scores(GOOD * np.nan), scores(GOOD * np.inf),
        scores(GOOD).replace(b"outputs", b"inputs!"), answer(b"not json", status=b"500 X"),
        answer(b'{"error": {"deep": 1}}', status=b"500 X"),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_is_refused(content: bytes) -> None:
    with misbehaving(says(content)) as port, pytest.raises(PeerError):
        infer_once(port, 2.0)


def test_addresses() -> None:
    assert Address.parse("host:80") == Address("host", 80)
    assert Address.parse(" [::1]:80 ") == Address("::1", 80)
    assert str(Address("::1", 80)) == "[::1]:80"
    for bad in ("", "host", "host:", ":80", "host:0", "host:70000", "host:8x", "host:\u0661"):
        with pytest.raises(ConfigError):
            Address.parse(bad)


def test_what_a_server_says_of_itself_comes_back() -> None:
    assert parse_about(ABOUT.to_bytes()) == ABOUT


@pytest.mark.parametrize(
    "changes",
    [
        {"name": 1}, {"version": -1}, {"version": "1"}, {"model": "x"}, {"model": "AB" * 32}, {"ready": 1},
        {"input": None}, {"input": {"name": "w", "datatype": "FP31", "shape": [1]}},
        {"input": {"name": "w", "datatype": "FP32", "shape": [1 << 20, 1 << 20]}},
        {"input": {"name": "w", "datatype": "FP32", "shape": [0]}}, {"outputs": 0},
        {"outputs": 5000}, {"most": 0},
    ],
)  # fmt: skip
def test_what_no_server_says_is_refused(changes: dict[str, Any]) -> None:
    raw = json.loads(ABOUT.to_bytes()) | changes
    with pytest.raises(PayloadError):
        parse_about(json.dumps(raw).encode())
    for content in (b"", b"[]", b"x" * 100_000):
        with pytest.raises(PayloadError):
            parse_about(content)
