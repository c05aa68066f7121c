"""Two ends over a channel that breaks, repeats and swaps: every task is answered exactly once."""

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.link import device_end as device
from fedge.link.coding import decode, encode
from fedge.link.device_end import HELLO, DeviceDesk, DeviceEnd, Identity, hello_parts
from fedge.link.frames import (
    CHUNK_BYTES,
    VERSION,
    Announced,
    AnswerPart,
    At,
    Challenge,
    Delay,
    Done,
    Hello,
    LinkError,
    More,
    Outcome,
    Place,
    Reason,
    Refusal,
    Refused,
    TaskPart,
    Welcome,
)
from fedge.link.gateway_end import AnswerWhole, Door, GatewayDesk, GatewayEnd, Greeted, TaskHeld
from fedge.link.transfer import MAX_REWINDS, Leaving, announce
from fedge.signing import SigningKey, verify

KEY = SigningKey.from_seed(bytes(32))
ME = Identity("f" * 32, "watch-1", KEY, b"c" * 32, b"instance", "0.1.0")
LIMIT = 100_000


def _answer_to(frame: bytes) -> bytes:
    return b"answer to " + frame


@dataclass
class Pair:
    """A device and a gateway that keep their desks when a connection breaks, and count what they send."""

    tasks: list[tuple[bytes, bytes]]
    desk: DeviceDesk = field(default_factory=DeviceDesk)
    book: GatewayDesk = field(default_factory=GatewayDesk)
    taken: list[tuple[bytes, bytes]] = field(default_factory=list)
    done: Counter[bytes] = field(default_factory=Counter)
    down: Counter[int] = field(default_factory=Counter)  # byte of the present task -> times it was sent
    up: Counter[int] = field(default_factory=Counter)
    settled: list[device.Settled] = field(default_factory=list)

    def connect(self) -> tuple[DeviceEnd, GatewayEnd]:
        """A fresh connection."""
        door = Door(self._admit, lambda _: None, 300, LIMIT)
        self.ends = DeviceEnd(ME, self.desk, LIMIT), GatewayEnd(door, b"n" * 32, 1_800_000_000)
        self._serve()
        return self.ends

    def _admit(self, hello: Hello, nonce: bytes) -> GatewayDesk:
        parts = hello_parts(ME.federation, hello.name, nonce, ME.certificate, hello.version)
        verify(KEY.public, hello.signature, HELLO, *parts)
        return self.book

    def _serve(self) -> None:
        if self.book.task is None and self.tasks:
            self.book.give(*self.tasks.pop(0))

    def to_device(self, message: bytes) -> None:
        for event in self.ends[0].receive(message):
            if isinstance(event, device.Settled):
                self.settled.append(event)
            if isinstance(event, device.TaskWhole):
                self.ends[0].stored(event.id, len(event.frame))
                self.done[event.id] += 1
                assert self.ends[0].finish(event.id, _answer_to(event.frame))

    def to_gateway(self, message: bytes) -> None:
        for event in self.ends[1].receive(message):
            if isinstance(event, AnswerWhole):
                self.taken.append((event.id, event.content))
                self.ends[1].settled(event.id, Outcome.TAKEN)
                self._serve()

    def pull(self, side: int) -> bytes | None:
        """What an end sends next, with its payload counted."""
        message = self.ends[side].next_message()
        if message is not None:
            frame = decode(message)
            if isinstance(frame, TaskPart | AnswerPart | More):
                counter = self.up if side == 0 else self.down
                counter.update(range(frame.at, frame.at + len(frame.data)))
        return message

    def run(self) -> None:
        """Everything that is left, over a good connection."""
        self.connect()
        for _ in range(10_000):
            moved = False
            for side, give in ((0, self.to_gateway), (1, self.to_device)):
                if (message := self.pull(side)) is not None:
                    give(message)
                    moved = True
            if not moved:
                return
        raise AssertionError("the two ends never stop talking")


def _tasks(sizes: list[int]) -> list[tuple[bytes, bytes]]:
    draw = random.Random(7)
    return [(draw.randbytes(16), draw.randbytes(size)) for size in sizes]


sizes = st.lists(st.sampled_from([1, 100, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES]), max_size=4)


@settings(max_examples=200, deadline=None)
@given(sizes, st.lists(st.integers(0, 12), max_size=30))
def test_connections_that_break_anywhere_lose_nothing_and_answer_nothing_twice(
    sizes: list[int], lives: list[int]
) -> None:
    """Each connection carries so many messages, then what is under way is lost."""
    tasks = _tasks(sizes)
    pair = Pair(list(tasks))
    for life in lives:
        pair.connect()
        for step in range(life):
            side = step % 2
            if (message := pair.pull(side)) is not None and step < life - 1:  # the last one is lost
                (pair.to_gateway if side == 0 else pair.to_device)(message)
    pair.run()
    assert pair.taken == [(task, _answer_to(frame)) for task, frame in tasks]
    assert all(pair.done[task] == 1 for task, _ in tasks)
    assert pair.desk == DeviceDesk()


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3 * CHUNK_BYTES), st.lists(st.integers(1, 8), min_size=1, max_size=12))
def test_no_byte_that_had_arrived_is_sent_again(size: int, lives: list[int]) -> None:
    """A byte is sent once for its arrival, and once more only for each message that was lost."""
    pair, lost = Pair(_tasks([size])), [0, 0]
    for life in lives:
        pair.connect()
        for step in range(life):
            side = step % 2
            if (message := pair.pull(side)) is None:
                continue
            if step < life - 1:
                (pair.to_gateway if side == 0 else pair.to_device)(message)
            elif isinstance(decode(message), TaskPart | AnswerPart | More):
                lost[side] += 1
    pair.run()
    assert sum(pair.down.values()) <= size + lost[1] * CHUNK_BYTES
    assert sum(pair.up.values()) <= size + 10 + lost[0] * CHUNK_BYTES
    assert len(pair.taken) == 1


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3 * CHUNK_BYTES), st.randoms(use_true_random=False))
def test_repeats_and_swaps_are_harmless(size: int, chance: random.Random) -> None:
    tasks = _tasks([size])
    pair = Pair([])
    pair.run()  # an open link, to which things now happen
    pair.book.give(*tasks[0])
    under_way: tuple[list[bytes], list[bytes]] = ([], [])
    quiet = 0
    while quiet < 40:
        side = chance.randrange(2)
        if (message := pair.pull(side)) is not None:
            under_way[side].extend([message] * chance.choice([1, 1, 1, 2]))
        flying = under_way[side]
        quiet = 0 if flying or message else quiet + 1
        if flying:
            (pair.to_gateway if side == 0 else pair.to_device)(flying.pop(chance.randrange(len(flying))))
        elif quiet == 20 and not pair.taken:
            pair.ends[0].nudge()
            pair.ends[1].nudge()
    pair.run()
    assert pair.taken == [(tasks[0][0], _answer_to(tasks[0][1]))]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=8), st.booleans(), st.randoms(use_true_random=False))
def test_nothing_that_comes_raises_anything_else(
    noise: list[bytes], opened: bool, chance: random.Random
) -> None:
    pair = Pair(_tasks([40_000]))
    ends = pair.connect()
    if opened:
        pair.run()
    known = pair.book.task[0].id if pair.book.task else bytes(16)
    starts = [b"\x05" + known, b"\x06" + known, b"\x07" + known[:4], b"\x08" + known, b"\x09" + known, b""]
    for raw in noise:
        for end in ends:
            try:
                end.receive(chance.choice(starts) + raw)
                end.next_message()
            except LinkError:
                pass
    assert pair.desk.arriving is None or pair.desk.arriving.at <= LIMIT


def test_memory_grows_with_what_arrives_and_not_with_what_is_announced() -> None:
    pair = Pair([])
    pair.run()
    told = Announced(b"t" * 16, LIMIT, bytes(8))
    pair.to_device(encode(TaskPart(told, 0, 0, b"abc")))
    assert pair.desk.arriving is not None
    assert len(pair.desk.arriving.content) == 3


def test_a_task_above_the_limit_is_refused_and_not_taken() -> None:
    pair = Pair([])
    pair.run()
    pair.to_device(encode(TaskPart(Announced(b"t" * 16, LIMIT + 1, bytes(8)), 0, 0, bytes(9))))
    assert pair.desk.arriving is None
    message = pair.ends[0].next_message()
    assert message is not None
    refusal = decode(message)
    assert isinstance(refusal, Refusal)
    assert refusal.kind is Refused.TOO_LARGE


def test_an_answer_above_the_limit_ends_the_connection() -> None:
    pair = Pair([])
    pair.run()
    pair.book.give(b"t" * 16, b"task")
    with pytest.raises(LinkError) as caught:
        pair.to_gateway(encode(AnswerPart(Announced(b"t" * 16, LIMIT + 1, bytes(8)), 0, b"")))
    assert caught.value.reason is Reason.TOO_LARGE


def test_bytes_beyond_the_announced_size_end_the_connection() -> None:
    pair = Pair([])
    pair.run()
    told = Announced(b"t" * 16, 5, bytes(8))
    for frame in (TaskPart(told, 0, 0, b"sixsix"), TaskPart(told, 0, 4, b"xx")):
        with pytest.raises(LinkError):
            pair.to_device(encode(frame))


def test_a_transfer_of_other_bytes_than_announced_starts_from_nothing() -> None:
    pair = Pair([])
    pair.run()
    told = announce(b"t" * 16, b"right")
    pair.to_device(encode(TaskPart(told, 0, 0, b"wrong")))
    message = pair.ends[0].next_message()
    assert message is not None
    assert decode(message) == At(Place(told.id, 0))
    pair.to_device(encode(TaskPart(told, 0, 0, b"right")))
    assert pair.done[told.id] == 1


def test_an_answer_that_was_handed_over_is_settled_again_and_not_taken_again() -> None:
    """The acknowledgement was lost: the gateway remembers, and the device learns it with the hello."""
    pair = Pair(_tasks([50]))
    task = pair.tasks[0]
    ends = pair.connect()
    for _ in range(10):
        for side, give in ((0, pair.to_gateway), (1, pair.to_device)):
            if pair.taken and side == 1:
                break
            if (message := ends[side].next_message()) is not None:
                give(message)
    assert pair.taken == [(task[0], _answer_to(task[1]))]
    assert pair.desk.answer is not None
    pair.up.clear()
    pair.run()
    assert not pair.up
    assert pair.desk == DeviceDesk()
    assert len(pair.taken) == 1
    assert pair.settled == [device.Settled(task[0], Outcome.TAKEN)]


def test_an_answer_to_a_forgotten_task_is_unwanted_and_not_sent() -> None:
    pair = Pair([])
    pair.desk.held = Place(b"t" * 16, 4)
    pair.desk.answer = announce(b"t" * 16, b"x" * 50_000), b"x" * 50_000
    pair.run()
    assert not pair.up
    assert pair.desk == DeviceDesk()


def test_a_task_that_the_gateway_forgot_is_dropped() -> None:
    pair = Pair([])
    pair.desk.held = Place(b"t" * 16, 4)
    pair.run()
    assert pair.desk.held is None
    assert not pair.ends[0].finish(b"t" * 16, b"late")


def test_a_withdrawn_task_is_not_answered() -> None:
    pair = Pair([])
    pair.run()
    pair.book.give(b"t" * 16, b"task")
    message = pair.pull(1)
    assert message is not None
    pair.ends[0].receive(message)
    pair.ends[0].stored(b"t" * 16, 4)
    pair.ends[1].withdraw(b"t" * 16)
    while (message := pair.pull(1)) is not None:
        pair.to_device(message)
    assert not pair.ends[0].finish(b"t" * 16, b"late")


def test_a_refusal_arrives_after_a_break_too() -> None:
    pair = Pair([])
    pair.desk.held = Place(b"t" * 16, 4)
    pair.book.give(b"t" * 16, b"task")
    ends = pair.connect()
    assert ends[0].refuse(b"t" * 16, Refused.HOURS, 3600, "outside the\nhours")
    found = []
    for _ in range(5):
        for side in (0, 1):
            if (message := ends[side].next_message()) is None:
                continue
            if side == 1:
                ends[0].receive(message)
                continue
            for event in ends[1].receive(message):
                found.append(event)
                if isinstance(event, Refusal):
                    ends[1].settled(event.id, Outcome.TAKEN)
    assert Refusal(b"t" * 16, Refused.HOURS, 3600, "outside the hours") in found
    assert pair.desk == DeviceDesk()


def test_a_delay_is_told_for_the_present_task_only() -> None:
    pair = Pair([])
    pair.run()
    pair.book.give(b"t" * 16, b"task")
    assert pair.ends[1].receive(encode(Delay(b"u" * 16, Refused.HOURS, 5, ""))) == []
    delay = Delay(b"t" * 16, Refused.HOURS, 5, "")
    assert pair.ends[1].receive(encode(delay)) == [delay]


def test_the_gateway_learns_that_a_task_is_safe_once() -> None:
    pair = Pair([])
    pair.run()
    pair.book.give(b"t" * 16, b"task")
    assert pair.pull(1) is not None
    told = encode(At(Place(b"t" * 16, 4)))
    assert pair.ends[1].receive(told) == [TaskHeld(b"t" * 16)]
    assert pair.ends[1].receive(told) == []


def test_whoever_asks_for_the_same_bytes_again_and_again_is_hung_up_on() -> None:
    leaving = Leaving(announce(b"t" * 16, b"content"), b"content")
    for _ in range(MAX_REWINDS):
        leaving.take()
        leaving.rewind(0)
    leaving.take()
    with pytest.raises(LinkError):
        leaving.rewind(0)
    with pytest.raises(LinkError):
        Leaving(announce(b"t" * 16, b"content"), b"content").rewind(3)


def test_nobody_gets_past_the_hello() -> None:
    pair = Pair(_tasks([10]))
    _, gate = pair.connect()
    for frame in (At(Place(bytes(16), 0)), More(bytes(4), 0, b""), Done(bytes(16), Outcome.TAKEN)):
        with pytest.raises(LinkError):
            gate.receive(encode(frame))
    first = gate.next_message()
    assert first is not None
    assert isinstance(decode(first), Challenge)
    assert gate.next_message() is None


def test_a_refused_hello_opens_nothing() -> None:
    def refuse(hello: Hello, _: bytes) -> GatewayDesk:
        raise LinkError(f"{hello.name} is not enrolled", Reason.UNKNOWN)

    gate = GatewayEnd(Door(refuse, lambda _: None, 300, LIMIT), b"n" * 32, 0)
    with pytest.raises(LinkError) as caught:
        gate.receive(encode(Hello(VERSION, b"instance", "x", "", bytes(64))))
    assert caught.value.reason is Reason.UNKNOWN
    assert not gate.opened


def test_a_hello_is_good_for_its_challenge_only() -> None:
    end = DeviceEnd(ME, DeviceDesk(), LIMIT)
    end.receive(encode(Challenge(1, 1, b"a" * 32, 0)))
    message = end.next_message()
    assert message is not None
    hello = decode(message)
    assert isinstance(hello, Hello)
    for nonce, certificate in ((b"b" * 32, ME.certificate), (b"a" * 32, b"d" * 32)):
        with pytest.raises(Exception, match="does not verify"):
            verify(
                KEY.public,
                hello.signature,
                HELLO,
                *hello_parts(ME.federation, hello.name, nonce, certificate, VERSION),
            )
    verify(
        KEY.public,
        hello.signature,
        HELLO,
        *hello_parts(ME.federation, hello.name, b"a" * 32, ME.certificate, VERSION),
    )


@pytest.mark.parametrize(("lowest", "highest", "word"), [(2, 3, "older"), (0, 0, "newer")])
def test_another_version_is_named(lowest: int, highest: int, word: str) -> None:
    end = DeviceEnd(ME, DeviceDesk(), LIMIT)
    with pytest.raises(LinkError, match=word) as caught:
        end.receive(encode(Challenge(lowest, highest, bytes(32), 0)))
    assert caught.value.reason is Reason.VERSION


def test_small_rounds_cost_few_bytes() -> None:
    """Task, its acknowledgement, answer, its acknowledgement: without TLS and WebSocket."""
    pair = Pair([])
    pair.run()
    pair.book.give(b"t" * 16, bytes(500))
    spent = 0
    for _ in range(10):
        for side, give in ((0, pair.to_gateway), (1, pair.to_device)):
            if (message := pair.pull(side)) is not None:
                spent += len(message)
                give(message)
    assert len(pair.taken) == 1
    assert spent - 500 - 510 <= 110


def test_a_goodbye_is_the_last_word() -> None:
    pair = Pair([])
    pair.run()
    pair.book.give(b"t" * 16, b"task")
    pair.ends[1].part(Reason.REPLACED, 60, "another process")
    message = pair.ends[1].next_message()
    assert message is not None
    assert pair.ends[0].receive(message) == [device.Parted(Reason.REPLACED, 60, "another process")]
    assert pair.ends[1].next_message() is None


def test_a_hello_says_who_it_was() -> None:
    pair = Pair([])
    ends = pair.connect()
    first = ends[1].next_message()
    assert first is not None
    ends[0].receive(first)
    hello = ends[0].next_message()
    assert hello is not None
    events = ends[1].receive(hello)
    assert isinstance(events[0], Greeted)
    assert events[0].hello.name == "watch-1"
    welcome = ends[1].next_message()
    assert welcome is not None
    assert decode(welcome) == Welcome(300, 0)
    assert ends[0].receive(welcome) == [device.Opened(1_800_000_000, 300)]


def test_an_answer_is_handed_over_once_however_often_it_comes() -> None:
    """It takes a while until the server has it; meanwhile its last bytes come again."""
    pair = Pair([])
    pair.run()
    pair.book.give(b"t" * 16, b"task")
    part = encode(AnswerPart(announce(b"t" * 16, b"answer"), 0, b"answer"))
    assert pair.ends[1].receive(part) == [AnswerWhole(b"t" * 16, b"answer")]
    assert pair.ends[1].receive(part) == []
    assert pair.ends[1].receive(encode(More(b"tttt", 3, b"wer"))) == []
