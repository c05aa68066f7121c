"""What a client claims of its answer and does not keep is told to the server; a bad link never is."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.link_lab import Caller, Lab, Proxy, Running, answer_to, make_federation, until
from fedge.deploy.gateway_limits import Limits
from fedge.link.coding import encode
from fedge.link.device_end import DeviceDesk, Opened, Parted, Settled, TaskWhole
from fedge.link.frames import CHUNK_BYTES, FRAME_BYTES, AnswerPart, Outcome, Reason
from fedge.link.transfer import announce

CONTENT = bytes(3 * CHUNK_BYTES)
QUICK = Limits(stalled=0.02)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("federation") / "home"
    make_federation(folder, ("a", "b"))
    return folder


@pytest.fixture
def server(home: Path) -> Iterator[Running]:
    with Running(home, QUICK) as running:
        yield running


def _with_task(home: Path, server: Running) -> tuple[Caller, bytes]:
    caller = Caller(home, "a", server.port)
    caller.until(Opened)
    task = server.give("a", b"task")
    whole = caller.until(TaskWhole)
    caller.end.stored(whole.id, len(whole.frame))
    return caller, task


def _first_part(task: bytes, size: int = len(CONTENT)) -> bytes:
    return encode(AnswerPart(replace(announce(task, CONTENT), size=size), 0, CONTENT[:CHUNK_BYTES]))


def test_a_client_that_keeps_back_an_announced_answer_is_named(home: Path, server: Running) -> None:
    caller, task = _with_task(home, server)
    caller.wire.send(_first_part(task))
    while not server.upstream.accusations:
        caller.step()  # it answers pings, and says no more
    assert server.upstream.accusations == [
        ("a", task, f"keeps back an answer: {CHUNK_BYTES} of {len(CONTENT)} bytes came")
    ]
    again = server.give("a", b"another")
    assert caller.until(TaskWhole).id == again  # the first is over, and it may do better
    caller.end.stored(again, len(b"another"))
    caller.end.finish(again, b"answer")
    caller.until(Settled)
    assert [a[2] for a in server.upstream.answers] == [b"answer"]
    assert len(server.upstream.accusations) == 1
    caller.close()


def test_a_client_that_sends_the_same_bytes_for_ever_keeps_back_the_rest(home: Path, server: Running) -> None:
    caller, task = _with_task(home, server)
    while not server.upstream.accusations:
        caller.wire.send(_first_part(task))
        caller.step()
    assert server.upstream.accusations[0][:2] == ("a", task)
    caller.close()


def test_a_client_that_announces_more_than_any_answer_may_have_is_named(home: Path, server: Running) -> None:
    caller, task = _with_task(home, server)
    caller.wire.send(_first_part(task, 1 << 40))
    assert caller.until(Parted).reason is Reason.TOO_LARGE
    until(lambda: server.upstream.accusations)
    assert server.upstream.accusations[0][:2] == ("a", task)
    until(lambda: server.gateway.clients["a"].desk.task is None)
    back = Caller(home, "a", server.port)
    back.end._desk.answer = replace(announce(task, CONTENT), size=1 << 40), CONTENT  # and insists
    back.until(Opened)
    assert server.gateway.clients["a"].desk.last is not None
    assert server.gateway.clients["a"].desk.last.outcome is Outcome.UNWANTED
    assert len(server.upstream.accusations) == 1
    for each in (caller, back):
        each.close()


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (bytes(FRAME_BYTES + 1), "WebSocket: "),
        (b"\xffgarbage", "unknown kind of frame 255"),
        (b"", "a frame has 1 to"),
    ],
    ids=["larger than a frame", "no frame", "empty"],
)
def test_a_client_that_says_what_no_rule_allows_is_named(
    home: Path, server: Running, message: bytes, words: str
) -> None:
    caller, task = _with_task(home, server)
    caller.wire.send(message)
    caller.plug.sendall(caller.wire.outgoing())
    until(lambda: server.upstream.accusations)
    assert server.upstream.accusations[0][:2] == ("a", task)
    assert words in server.upstream.accusations[0][2]
    until(lambda: server.gateway.clients["a"].connection is None)  # and hung up on
    caller.close()


def test_a_client_whose_link_is_tampered_with_is_not_named(home: Path, server: Running) -> None:
    """Bytes that somebody on the way has put in: TLS finds them out, and the client has not said them."""
    caller, task = _with_task(home, server)
    caller.wire.send(_first_part(task))
    honest = bytearray(caller.wire.outgoing())
    honest[-1] ^= 1
    caller.plug.sendall(honest)
    until(lambda: server.gateway.clients["a"].connection is None)
    assert not server.upstream.accusations
    assert server.gateway.clients["a"].desk.wants(task)
    assert server.gateway.refusals["protocol"]
    caller.close()


def test_a_client_whose_link_breaks_in_an_answer_is_not_named(home: Path, server: Running) -> None:
    caller, task = _with_task(home, server)
    caller.wire.send(_first_part(task))
    caller.plug.sendall(caller.wire.outgoing())
    client = server.gateway.clients["a"]
    until(lambda: client.desk.answer is not None)
    caller.close()
    until(lambda: client.connection is None)
    for _ in range(10):
        server.call(lambda: server.gateway._tasks.look([client]))
    assert not server.upstream.accusations
    assert client.desk.wants(task)


def test_a_client_that_falls_silent_in_an_answer_is_not_named(home: Path, server: Running) -> None:
    """It does not even answer pings, as on a link that is cut without a word."""
    caller, task = _with_task(home, server)
    caller.wire.send(_first_part(task))
    caller.plug.sendall(caller.wire.outgoing())
    client = server.gateway.clients["a"]
    until(lambda: client.desk.answer is not None)
    for _ in range(10):
        server.call(lambda: server.gateway._tasks.look([client]))
    assert not server.upstream.accusations
    caller.close()


def test_a_client_on_a_link_that_stalls_in_an_answer_is_not_named(
    home: Path, server: Running, tmp_path: Path
) -> None:
    """For fifty looks nothing of the answer comes; then the rest does."""
    proxy = Proxy(server.port)
    proxy.stall = (200_000, 50 * QUICK.stalled)
    with Lab(home / "devices" / "b", tmp_path / "b", proxy.port, work=lambda _: bytes(2_000_000)) as lab:
        server.give("b", b"task")
        until(lambda: server.upstream.answers)
        until(lambda: lab.desk == DeviceDesk())
    proxy.close()
    assert proxy.stall == (0, 0.0)
    assert proxy.connections == 1
    assert not server.upstream.accusations


def test_answers_in_one_piece_are_never_asked_after(home: Path, server: Running, tmp_path: Path) -> None:
    with Lab(home / "devices" / "b", tmp_path / "b", server.port):
        for number in range(5):
            server.give("b", b"%d" % number)
        until(lambda: len(server.upstream.answers) == 5)
    assert [a[2] for a in server.upstream.answers] == [answer_to(b"%d" % n) for n in range(5)]
    assert not server.upstream.accusations
