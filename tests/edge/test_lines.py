import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.data._table import _seconds
from fedge.edge.lines import MAX_LINE, HeaderError, LateLabel, Lines, Sample, seconds
from fedge.errors import DataError, FedgeError

CHANNELS = ("ax", "ay")
_finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def lines(*text: str, columns: tuple[str, ...] | None = None) -> list[Sample | LateLabel | None]:
    parser = Lines(CHANNELS, columns)
    return [parser.parse(line.encode()) for line in text]


def last(*text: str, columns: tuple[str, ...] | None = None) -> Any:
    return lines(*text, columns=columns)[-1]


@given(st.lists(st.tuples(_finite, _finite), min_size=1, max_size=5))
def test_csv_and_json_give_the_very_numbers_that_were_written(rows: list[tuple[float, float]]) -> None:
    in_csv, in_json = Lines(CHANNELS), Lines(CHANNELS)
    in_csv.parse(b"ay,ax")
    for ax, ay in rows:
        first = in_csv.parse(f"{ay!r},{ax!r}".encode())
        second = in_json.parse(json.dumps({"ay": ay, "ax": ax}).encode())
        assert isinstance(first, Sample)
        assert isinstance(second, Sample)
        assert first.values == second.values == [ax, ay]


def test_columns_are_found_by_name_in_any_order() -> None:
    found = last("label,ay,battery,timestamp,ax", "walk,2,99,0.5,1")
    assert found == Sample([1.0, 2.0], 0.5, 0.5, "walk")


def test_columns_that_are_not_used_are_told() -> None:
    parser = Lines(CHANNELS)
    parser.parse(b"ax,ay,battery")
    assert parser.unused == ("battery",)


def test_columns_may_be_called_otherwise_here() -> None:
    assert last("x,y", "1,2", columns=("y", "x")) == Sample([2.0, 1.0], None, None, None)
    assert last('{"x": 1, "y": 2}', columns=("y", "x")) == Sample([2.0, 1.0], None, None, None)


def test_empty_label_is_none() -> None:
    assert last("ax,ay,label", "1,2, ").label is None
    assert last('{"ax": 1, "ay": 2, "label": ""}').label is None
    assert last('{"ax": 1, "ay": 2, "label": 0}').label == 0


@pytest.mark.parametrize("columns", [("x",), ("x", "x"), ("x", "y", "z")])
def test_columns_must_be_one_for_each_channel(columns: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="one column for each"):
        Lines(CHANNELS, columns)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("time,ax", "no column 'ay'"),
        ("ax,az", "is 'az' meant"),
        ("0.1,0.2", "the first line is data"),
        ("ax,ay,ax", "two columns"),
        ("ax,ay,Timestamps", "write it 'timestamp'"),
        ("ax,ay,labels", "write it 'label'"),
        ('ax,"ay', "no column|not CSV"),
        ("ax;ay", "no column"),
    ],
)
def test_wrong_header_is_refused_with_what_is_wrong(header: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        lines(header)


def test_wrong_header_is_told_from_a_wrong_line() -> None:
    for first in (b"1,2", b"ax", b"\xff\xfe\x00"):
        with pytest.raises(HeaderError):
            Lines(CHANNELS).parse(first)


@pytest.mark.parametrize(
    "bad",
    [
        "1",
        "1,2,3",
        "nan,2",
        "inf,2",
        "1e39,2",
        ",2",
        "one,2",
        '"1,2',
        "1,2\x00",
        '{"ax": 1}',
        '{"ax": 1, "ay": null}',
        '{"ax": 1, "ay": NaN}',
        '{"ax": 1, "ay": true}',
        '{"ax": 1, "ay": [2]}',
        '{"ax": 1, "ay": 1e999}',
        '{"ax": 1, "ay": ' + "9" * 400 + "}",
        '{"ax": 1, "ay": 2, "timestamp": "yesterday"}',
        '{"ax": 1, "ay": 2, "timestamp": true}',
        '{"ax": 1, "ay": 2, "timestamp": Infinity}',
        '{"ax": 1, "ay": 2, "label": ["walk"]}',
        '{"ax": 1, "ay": ' + "[" * 100_000,
        '{"label": "walk", "from": 1, "to": 0}',
        '{"label": "walk", "from": 1, "to": NaN}',
        '{"from": 1, "to": 2}',
        '{"label": "walk", "from": 1}',
        "{}",
    ],
)
def test_bad_line_is_refused_and_the_next_one_is_read(bad: str) -> None:
    parser = Lines(CHANNELS)
    parser.parse(b"ax,ay")
    with pytest.raises(DataError) as error:
        parser.parse(bad.encode())
    assert not isinstance(error.value, HeaderError)
    assert len(str(error.value)) < 300
    assert parser.parse(b"3,4") == Sample([3.0, 4.0], None, None, None)


def test_message_names_the_column_that_is_wrong() -> None:
    with pytest.raises(DataError, match="'ay' is 'nan'"):
        lines("ax,ay", "1,nan")
    with pytest.raises(DataError, match="no number for 'ay'"):
        lines('{"ax": 1, "bx": 2}')


def test_overlong_line_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(DataError, match="more than"):
        Lines(CHANNELS).parse(b"{" * (MAX_LINE + 1))


def test_empty_lines_a_byte_order_mark_and_windows_line_ends_do_no_harm() -> None:
    found = lines("", "\ufeffax,ay\r", "  ", "1,2\r")
    assert found == [None, None, None, Sample([1.0, 2.0], None, None, None)]


def test_header_that_comes_again_is_no_sample() -> None:
    assert lines("ax,ay", "1,2", "ax,ay")[-1] is None


def test_later_labels_come_between_samples_of_either_kind() -> None:
    late = '{"label": "walk", "from": 1.5, "to": "1970-01-01T00:00:02"}'
    assert last("ax,ay", late) == LateLabel("walk", 1.5, 2.0)
    assert last('{"ax": 1, "ay": 2}', late) == LateLabel("walk", 1.5, 2.0)


def test_channels_called_from_and_to_are_no_later_label() -> None:
    parser = Lines(("from", "to"))
    assert parser.parse(b'{"from": 1, "to": 2, "label": "x"}') == Sample([1.0, 2.0], None, None, "x")


@pytest.mark.parametrize(
    "text", ["0.25", "-3", "2024-05-01T10:00:00", "2024-05-01T10:00:00+02:00", "20240501T10"]
)
def test_time_is_read_as_from_a_file_of_recordings(text: str) -> None:
    assert seconds(text) == _seconds(text, "here")


def test_answers_repeat_a_time_as_it_was_given() -> None:
    assert last("timestamp,ax,ay", "0.50,1,2").stamp == 0.5
    assert last("timestamp,ax,ay", "2024-05-01T10:00:00,1,2").stamp == "2024-05-01T10:00:00"


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_no_bytes_bring_anything_but_the_error_tree(content: list[bytes]) -> None:
    parser = Lines(CHANNELS)
    for line in content:
        try:
            found = parser.parse(line)
        except FedgeError:
            continue
        assert not isinstance(found, Sample) or all(map(math.isfinite, found.values))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["ax", "ay", "timestamp", "label", "from", "to"]), _json))
def test_no_json_brings_anything_but_the_error_tree(content: dict[str, Any]) -> None:
    try:
        found = Lines(CHANNELS).parse(json.dumps(content).encode())
    except FedgeError:
        return
    if isinstance(found, Sample):
        assert np.isfinite(np.array(found.values, np.float32)).all()
        assert found.time is None or math.isfinite(found.time)
    elif found is not None:
        assert found.start <= found.stop
