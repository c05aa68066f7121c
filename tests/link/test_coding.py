"""Frames survive the way there and back, and nothing else parses."""

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedge.link.coding import decode, encode
from fedge.link.frames import (
    CHUNK_BYTES,
    FRAME_BYTES,
    NUMBER_LIMIT,
    Announced,
    AnswerPart,
    At,
    Bye,
    Challenge,
    Delay,
    Done,
    Drop,
    Frame,
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
    shorten,
)

numbers = st.integers(0, NUMBER_LIMIT - 1)
ids = st.binary(min_size=16, max_size=16)
texts = st.text(max_size=100).map(shorten)
data = st.binary(max_size=300)
announced = st.builds(Announced, ids, st.integers(1, NUMBER_LIMIT - 1), st.binary(min_size=8, max_size=8))
places = st.builds(Place, ids, numbers)
bytes_ = st.integers(0, 255)
frames = st.one_of(
    st.builds(Challenge, bytes_, bytes_, st.binary(min_size=32, max_size=32), numbers),
    st.builds(
        Hello,
        bytes_,
        st.binary(min_size=8, max_size=8),
        st.text(max_size=16),
        st.text(max_size=8),
        st.binary(min_size=64, max_size=64),
        st.none() | places,
        st.none() | announced,
    ),
    st.builds(Welcome, numbers, numbers),
    st.builds(Bye, st.sampled_from(Reason), numbers, texts),
    st.builds(TaskPart, announced, numbers, numbers, data),
    st.builds(AnswerPart, announced, numbers, data),
    st.builds(More, st.binary(min_size=4, max_size=4), numbers, data),
    st.builds(At, places),
    st.builds(Done, ids, st.sampled_from(Outcome)),
    st.builds(Drop, ids),
    st.builds(Refusal, ids, st.sampled_from(Refused), numbers, texts),
    st.builds(Delay, ids, st.sampled_from(Refused), numbers, texts),
)


@given(frames)
def test_a_frame_survives_the_way_there_and_back(frame: Frame) -> None:
    assert decode(encode(frame)) == frame


@given(st.binary(max_size=200))
@example(b"")
@example(b"\x0a" + bytes(16))
def test_bytes_are_refused_or_are_exactly_one_frame(message: bytes) -> None:
    try:
        frame = decode(message)
    except LinkError:
        return
    assert encode(frame) == message


@given(frames, st.data())
def test_a_damaged_frame_is_refused_or_is_another_frame(frame: Frame, draw: st.DataObject) -> None:
    message = bytearray(encode(frame))
    message[draw.draw(st.integers(0, len(message) - 1))] ^= draw.draw(st.integers(1, 255))
    try:
        found = decode(bytes(message))
    except LinkError:
        return
    assert encode(found) == bytes(message)


@given(frames.filter(lambda f: not isinstance(f, TaskPart | AnswerPart | More)), st.binary(min_size=1))
def test_what_is_left_over_is_refused(frame: Frame, rest: bytes) -> None:
    with pytest.raises(LinkError):
        decode((encode(frame) + rest)[:FRAME_BYTES])


def test_the_longest_chunk_fits_and_one_more_byte_does_not() -> None:
    told = Announced(bytes(16), NUMBER_LIMIT - 1, bytes(8))
    whole = TaskPart(told, NUMBER_LIMIT - 1, NUMBER_LIMIT - 1, bytes(CHUNK_BYTES))
    assert len(encode(whole)) <= FRAME_BYTES
    assert decode(encode(whole)) == whole
    with pytest.raises(LinkError):
        encode(TaskPart(told, 0, 0, bytes(CHUNK_BYTES + 1)))
    with pytest.raises(LinkError):
        decode(encode(TaskPart(told, 0, 0, bytes(CHUNK_BYTES))) + b"x")


def test_a_number_has_one_spelling_and_a_limit() -> None:
    assert decode(b"\x03\x05\x00") == Welcome(5, 0)
    for spelling in (b"\x85\x00", b"\xff" * 7 + b"\x01", b"\xff" * 6 + b"\x7f"):
        with pytest.raises(LinkError):
            decode(b"\x03" + spelling + b"\x00")
    with pytest.raises(LinkError):
        encode(Welcome(NUMBER_LIMIT, 0))


def test_a_transfer_of_no_bytes_is_refused() -> None:
    with pytest.raises(LinkError):
        decode(b"\x06" + bytes(16) + b"\0" + bytes(8) + b"\0")


def test_the_layout_is_the_documented_one() -> None:
    """A frame written by hand from docs/wire-format.md."""
    told = Announced(bytes(range(16)), 300, b"digest!!")
    by_hand = b"\x05" + bytes(range(16)) + b"\xac\x02" + b"digest!!" + b"\x3c" + b"\x80\x01" + b"content"
    assert encode(TaskPart(told, 60, 128, b"content")) == by_hand
    refusal = b"\x0b" + bytes(16) + b"\x03" + b"\x00" + struct.pack("B", 4) + b"torn"
    assert encode(Refusal(bytes(16), Refused.DATA, 0, "torn")) == refusal


@given(st.text())
def test_a_text_is_cut_to_one_line_within_its_limit(text: str) -> None:
    short = shorten(text, 20)
    assert len(short.encode()) <= 20
    assert "\n" not in short
