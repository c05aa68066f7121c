import json
import math
import tracemalloc
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.errors import PayloadError
from fedge.federated.frames import (
    PLAN_LIMIT,
    Hello,
    Offer,
    Scores,
    Step,
    StepKind,
    Train,
    Trained,
    Verdict,
    Welcome,
    decode_reply,
    decode_task,
    encode_reply,
    encode_task,
)

_NUMBER = st.integers(0, 2**63 - 1)
_FLOAT = st.floats(width=32, allow_nan=False, allow_infinity=False)
_BLOB = st.binary(max_size=300)  # lengths of one and of two bytes
_STEP = st.builds(Step, st.sampled_from(StepKind), _BLOB)
_GROUPS = st.lists(st.lists(_STEP, max_size=3).map(tuple), max_size=4).map(tuple)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | _FLOAT | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_TASK: st.SearchStrategy[Any] = st.one_of(
    st.builds(
        Welcome, st.binary(max_size=64), st.dictionaries(st.text(max_size=8), _JSON, max_size=4), _BLOB
    ),
    st.builds(
        Train,
        round=_NUMBER,
        counted=_NUMBER,
        version=st.integers(4, 2**63 - 1),
        lineage=st.binary(min_size=8, max_size=8),
        steps=_GROUPS,
        learning_rate=_FLOAT,
        candidate=st.none() | _STEP,
    ),
    st.builds(Offer, _BLOB),
)
_SCORES = st.builds(Scores, _NUMBER, _FLOAT, _FLOAT, _FLOAT, _FLOAT)
_ASCII = st.text(st.characters(max_codepoint=127), max_size=64)
_REPLY: st.SearchStrategy[Any] = st.one_of(
    st.builds(Hello, st.binary(max_size=32), st.binary(max_size=64)),
    st.builds(Trained, _NUMBER, _NUMBER, _FLOAT, _FLOAT, st.none() | _SCORES, _BLOB, st.binary(max_size=64)),
    st.builds(Verdict, _NUMBER, st.booleans(), _ASCII, _FLOAT, _FLOAT, _NUMBER),
)

TASKS: list[Any] = [
    Welcome(b"challenge", {"federation": "00ff", "spec": [1, 2.5, None]}, b"snapshot" * 20),
    Train(7, 6, 6, b"8 bytes!", ((Step(StepKind.UPDATE, b"abc"),), ()), 0.5, Step(StepKind.CHANGE, b"xyz")),
    Train(1, 0, 0, b"8 bytes!", (), 0.25, None),
    Offer(b"bundle" * 30),
]
REPLIES: list[Any] = [
    Hello(b"k" * 32, b"s" * 64),
    Trained(3, 20, 0.5, 0.75, Scores(9, 1.0, 0.5, 0.5, 0.75), b"payload" * 20, b"s" * 64),
    Trained(3, 0, 0.0, 0.75, None, b"", b"s" * 64),
    Verdict(2, True, "not_worse", 0.5, 0.75, 10),
]


@given(_TASK)
def test_every_task_comes_back_as_it_was(task: Any) -> None:
    assert decode_task(encode_task(task)) == task


@given(_REPLY)
def test_every_reply_comes_back_as_it_was(reply: Any) -> None:
    assert decode_reply(encode_reply(reply)) == reply


def test_a_verdict_without_measurements_keeps_its_nan() -> None:
    verdict = decode_reply(encode_reply(Verdict(2, False, "does_not_open", math.nan, math.nan, 0)))
    assert isinstance(verdict, Verdict)
    assert math.isnan(verdict.current)
    assert math.isnan(verdict.candidate)


@pytest.mark.parametrize("task", TASKS, ids=lambda t: type(t).__name__)
def test_a_truncated_or_longer_task_is_refused(task: Any) -> None:
    frame = encode_task(task)
    for end in range(len(frame)):
        with pytest.raises(PayloadError):
            decode_task(frame[:end])
    with pytest.raises(PayloadError, match="left over"):
        decode_task(frame + b"\0")


@pytest.mark.parametrize("reply", REPLIES, ids=lambda t: type(t).__name__)
def test_a_truncated_or_longer_reply_is_refused(reply: Any) -> None:
    frame = encode_reply(reply)
    for end in range(len(frame)):
        with pytest.raises(PayloadError):
            decode_reply(frame[:end])
    with pytest.raises(PayloadError, match="left over"):
        decode_reply(frame + b"\0")


def test_a_task_with_any_byte_changed_raises_nothing_but_payload_errors() -> None:
    for task in TASKS:
        _mutate(encode_task(task), decode_task)


def test_a_reply_with_any_byte_changed_raises_nothing_but_payload_errors() -> None:
    for reply in REPLIES:
        _mutate(encode_reply(reply), decode_reply)


def _mutate(frame: bytes, decode: Any) -> None:
    """Every byte takes every value. What is still a frame is another one, which signatures tell apart."""
    refused = 0
    for at in range(len(frame)):
        for value in range(256):
            try:
                decode(frame[:at] + bytes([value]) + frame[at + 1 :])
            except PayloadError:
                refused += 1
    assert refused > 0


@given(st.binary(max_size=400))
def test_random_bytes_raise_nothing_but_payload_errors(frame: bytes) -> None:
    for decode in (decode_task, decode_reply):
        try:
            decode(frame)
        except PayloadError:
            continue


def _peak(frame: bytes, decode: Any) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(PayloadError):
            decode(frame)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


_HUGE = b"\xff" * 8 + b"\x7f"  # 2 ** 63 - 1


@pytest.mark.parametrize(
    ("frame", "decode"),
    [
        (b"\1\0" + _HUGE + b"plan", decode_task),
        (b"\1\0\1x" + _HUGE + b"snapshot", decode_task),
        (b"\3" + _HUGE + b"bundle", decode_task),
        (b"\2\1\0" + _HUGE + b"8 bytes!" + _HUGE + b"\0" * 50, decode_task),  # groups
        (b"\2\1\0\1" + b"8 bytes!" + b"\1" + _HUGE + b"\1\0" * 30, decode_task),  # steps of one group
        (b"\2\1\1" + b"\0" * 8 + b"\0" + _HUGE + b"payload", decode_reply),
    ],
    ids=["plan", "snapshot", "bundle", "groups", "steps", "payload"],
)
def test_a_lying_length_or_count_costs_no_memory(frame: bytes, decode: Any) -> None:
    assert _peak(frame, decode) < 1 << 16


def _welcome_with(plan: bytes) -> bytes:
    def varint(value: int) -> bytes:
        out = bytearray()
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        return bytes([*out, value])

    return b"\1\0" + varint(len(plan)) + plan + b"\0"


def test_a_deflate_bomb_in_a_plan_is_refused_in_bounded_memory() -> None:
    bomb = zlib.compress(b'{"a":"' + b" " * (100 << 20) + b'"}', 9)
    assert len(bomb) < PLAN_LIMIT
    assert _peak(_welcome_with(bomb), decode_task) < 4 * PLAN_LIMIT + 4 * len(bomb)


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"not deflate",
        zlib.compress(b"[1]"),
        zlib.compress(b"null"),
        zlib.compress(b"{"),
        zlib.compress(b"\xff\xfe"),
        zlib.compress(b"[" * 100_000),
        zlib.compress(b'{"a": ' + b"9" * 5000 + b"}"),
        zlib.compress(b"{}")[:-1],
        zlib.compress(b"{}") + b"x",
        b"\0" * (PLAN_LIMIT + 1),
    ],
    ids=[
        "empty",
        "no deflate",
        "list",
        "null",
        "cut JSON",
        "no UTF-8",
        "deep",
        "long number",
        "cut",
        "more",
        "too long",
    ],
)
def test_what_is_not_a_plan_is_refused(packed: bytes) -> None:
    with pytest.raises(PayloadError):
        decode_task(_welcome_with(packed))


def test_the_largest_plan_passes_and_one_byte_more_does_not() -> None:
    def frame(size: int) -> bytes:
        return _welcome_with(zlib.compress(json.dumps({"a": "x" * (size - len('{"a": ""}'))}).encode(), 9))

    assert isinstance(decode_task(frame(PLAN_LIMIT)), Welcome)
    with pytest.raises(PayloadError, match="larger than"):
        decode_task(frame(PLAN_LIMIT + 1))


def test_unknown_kinds_are_refused_by_name() -> None:
    train = encode_task(TASKS[2])
    with pytest.raises(PayloadError, match="unknown kind of task 9"):
        decode_task(b"\x09" + train[1:])
    with pytest.raises(PayloadError, match="unknown kind of reply 9"):
        decode_reply(b"\x09" + train[1:])
    with pytest.raises(PayloadError, match="unknown kind of step 5"):
        decode_task(train[:-1] + b"\x05\0")
    with pytest.raises(PayloadError, match="flag is 2"):
        decode_reply(b"\2\1\1" + b"\0" * 8 + b"\2\0\0")


def test_a_number_of_more_than_63_bits_is_refused() -> None:
    with pytest.raises(PayloadError, match="too long"):
        decode_reply(b"\2" + b"\xff" * 9 + b"\1")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_wherever_it_stands(value: float) -> None:
    """But for a score that is not defined, which is NaN."""
    refused = "not finite|infinite"
    with pytest.raises(PayloadError, match=refused):
        decode_reply(encode_reply(Trained(1, 1, value, 0.5, None, b"", b"")))
    if not math.isnan(value):
        with pytest.raises(PayloadError, match=refused):
            decode_reply(encode_reply(Trained(1, 1, 0.5, value, None, b"", b"")))
    for place in range(4):
        if math.isnan(value) and place in (1, 3):
            continue
        numbers = [value if i == place else 0.5 for i in range(4)]
        with pytest.raises(PayloadError, match=refused):
            decode_reply(encode_reply(Trained(1, 1, 0.5, 0.5, Scores(1, *numbers), b"", b"")))
    with pytest.raises(PayloadError, match="not finite"):
        decode_task(encode_task(Train(1, 0, 0, b"8 bytes!", (), value)))


def test_a_score_that_is_not_defined_arrives_as_such() -> None:
    judged = Scores(3, 0.5, math.nan, 0.25, math.nan)
    back = decode_reply(encode_reply(Trained(1, 1, 0.5, math.nan, judged, b"", b"")))
    assert isinstance(back, Trained)
    assert back.judged is not None
    assert all(math.isnan(v) for v in (back.score, back.judged.score_held, back.judged.score_candidate))
    assert (back.loss, back.judged.loss_held, back.judged.loss_candidate) == (0.5, 0.5, 0.25)


@given(_NUMBER, _NUMBER, _FLOAT, _FLOAT, st.none() | _SCORES, _BLOB)
@settings(max_examples=50)
def test_what_is_signed_is_everything_but_the_signature(
    number: int, weight: int, loss: float, score: float, judged: Scores | None, payload: bytes
) -> None:
    reply = Trained(number, weight, loss, score, judged, payload, b"s" * 64)
    assert encode_reply(reply) == b"\2" + reply.signed_part() + b"\x40" + b"s" * 64
    assert np.float32(loss) == np.float32(reply.loss)


@pytest.mark.parametrize(("made", "limit"), [(Hello(b"k" * 33, b""), 32), (Hello(b"", b"s" * 65), 64)])
def test_a_key_or_signature_above_its_length_is_refused(made: Hello, limit: int) -> None:
    with pytest.raises(PayloadError, match=f"more than {limit}"):
        decode_reply(encode_reply(made))


@pytest.mark.parametrize("value", [math.inf, -math.inf])
@pytest.mark.parametrize("name", ["current", "candidate"])
def test_a_verdict_with_an_infinite_score_is_refused_before_it_reaches_the_journal(
    name: str, value: float
) -> None:
    verdict = replace(Verdict(2, True, "not_worse", 0.5, 0.75, 10), **{name: value})
    with pytest.raises(PayloadError, match="infinite"):
        decode_reply(encode_reply(verdict))
