"""Frames: what was encoded comes back, and nothing else is taken for a frame."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.errors import PayloadError
from fedge.flower.compress_frames import (
    Base,
    Change,
    Down,
    Up,
    as_record,
    decode_down,
    decode_up,
    encode_down,
    encode_up,
    find_frame,
    replaced,
)

_eight, _blob = st.binary(min_size=8, max_size=8), st.binary(max_size=40)
_bases = st.none() | st.builds(Base, _blob, _blob, st.booleans())
_downs = st.builds(
    Down,
    _eight,
    _eight,
    _eight,
    st.integers(9, 2**32 - 1),
    _bases,
    st.lists(_blob, max_size=9).map(tuple),
    _blob,
)
_ups = st.builds(Up, _eight, st.none() | st.builds(Change, _blob, _blob))


@given(_downs)
def test_a_task_comes_back_and_every_shorter_or_longer_one_is_refused(down: Down) -> None:
    frame = encode_down(down)
    assert decode_down(frame) == down
    for other in (frame[:-1], frame + b"\0", frame[: len(frame) // 2]):
        with pytest.raises(PayloadError):
            decode_down(other)


@given(_ups)
def test_an_answer_comes_back_and_every_shorter_or_longer_one_is_refused(up: Up) -> None:
    frame = encode_up(up)
    assert decode_up(frame) == up
    for other in (frame[:-1], frame + b"\0"):
        with pytest.raises(PayloadError):
            decode_up(other)


@settings(max_examples=300)
@given(st.binary(max_size=120), _downs, st.integers(0, 200), st.integers(0, 255))
def test_garbage_is_refused_or_is_a_frame_in_its_only_spelling(
    noise: bytes, down: Down, place: int, value: int
) -> None:
    frame = bytearray(encode_down(down))
    frame[place % len(frame)] = value
    for content in (noise, bytes(frame)):
        try:
            parsed = decode_down(content)
        except PayloadError:
            continue
        assert encode_down(parsed) == content


def test_a_count_of_steps_beyond_the_frame_is_refused_before_they_are_read() -> None:
    frame = bytearray(encode_down(Down(bytes(8), bytes(8), bytes(8), 2**32 - 1, None, (), b"")))
    frame[29:33] = (1 << 20).to_bytes(4, "little")
    with pytest.raises(PayloadError, match="truncated"):
        decode_down(bytes(frame))
    frame[29:33] = (1 << 31).to_bytes(4, "little")
    with pytest.raises(PayloadError, match="steps"):
        decode_down(bytes(frame))


def test_a_frame_is_found_where_it_stands_and_records_keep_their_order() -> None:
    content = RecordDict({"a": ConfigRecord({"x": 1}), "b": as_record(b"frame"), "c": ConfigRecord()})
    assert find_frame(content) == ("b", b"frame")
    assert find_frame(RecordDict({"a": ConfigRecord({"x": 1})})) is None
    changed = replaced(content, "b", ConfigRecord({"y": 2}))
    assert list(changed) == ["a", "b", "c"]
    assert find_frame(content) is not None
    assert find_frame(changed) is None
    with pytest.raises(PayloadError, match="several"):
        find_frame(replaced(content, "c", as_record(b"more")))
    with pytest.raises(PayloadError, match="not bytes"):
        find_frame(RecordDict({"a": ConfigRecord({"fedge-frame": 1})}))


def test_the_fixed_part_costs_41_bytes_down_and_17_up() -> None:
    down = Down(bytes(8), bytes(8), bytes(8), 3, None, (b"12",), b"")
    assert len(encode_down(down)) == 41 + 2
    assert len(encode_up(Up(bytes(8), Change(b"12", b"")))) == 17 + 2
    assert np.uint8(encode_up(Up(bytes(8), None))[0]) == 0
