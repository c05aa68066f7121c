"""What both ends agree on: split and join are inverse, and a description is bounded before it is believed."""

import json
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import ConfigError, PayloadError
from fedge.flower.compress_scheme import Coding, Scheme, inflate, parse_scheme, scheme_of

ARRAYS: dict[str, Any] = {
    "w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.linspace(0, 1, 4, dtype=np.float16),
    "double": np.ones((1, 2), np.float64),
    "bn.running_var": np.array([1e-9, 2.0], np.float32),
    "count": np.array(2**53 + 1, np.int64),
    "flag": np.array([True, False]),
    "bytes": np.arange(5, dtype=np.uint8),
    "none": np.zeros((3, 0), np.float32),
}


def _scheme(**arrays: Any) -> Scheme:
    return scheme_of(arrays or ARRAYS, ("*running_var",), Coding("ternary", {"share": 0.5}), Coding("raw"))


def test_join_undoes_split_in_values_dtypes_shapes_and_order() -> None:
    scheme = _scheme()
    coded, exact = scheme.split(dict(reversed(ARRAYS.items())))
    assert list(coded) == ["w", "half", "double", "none"]
    assert {a.dtype for a in coded.values()} == {np.dtype(np.float32)}
    joined = scheme.join(coded, exact)
    assert list(joined) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(joined[name], array)
        assert joined[name].dtype == array.dtype
    assert len(exact) == scheme.exact_bytes == 2 * 4 + 8 + 2 + 5
    assert scheme.plain_bytes == sum(a.nbytes for a in ARRAYS.values())


def test_a_scheme_survives_its_bytes() -> None:
    assert parse_scheme(_scheme().to_bytes(), 100) == _scheme()


def test_a_mean_of_counters_is_rounded_back_to_a_counter() -> None:
    scheme = _scheme(count=np.array([0, 0, 0], np.int64))
    _, exact = scheme.split({"count": np.array([1.4, 2.6, -0.6])})
    assert scheme.read_exact(exact)["count"].tolist() == [1, 3, -1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"w": np.zeros((3, 2), np.float32)}, "shape"),
        ({"w": np.full((2, 3), np.nan, np.float32)}, "not finite"),
        ({"bn.running_var": np.array([np.inf, 1], np.float32)}, "not finite"),
        ({"double": np.full((1, 2), 1e300)}, "range of float32"),
        ({"new": np.zeros(1, np.float32)}, "new"),
    ],
)
def test_other_arrays_than_the_first_are_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(PayloadError, match=says):
        _scheme().split(ARRAYS | change)
    with pytest.raises(PayloadError, match="flag"):
        _scheme().split({n: a for n, a in ARRAYS.items() if n != "flag"})


def _packed(**changes: Any) -> bytes:
    text: dict[str, Any] = json.loads(zlib.decompress(_scheme().to_bytes()))
    return zlib.compress(json.dumps(text | changes).encode())


@pytest.mark.parametrize(
    "arrays",
    [
        [["w", "float32", [2, 3]]],
        [["w", "float32", [2, -3], False]],
        [["w", "float32", [2.0], False]],
        [["w", "float32", [True], False]],
        [["w", "object", [2], True]],
        [["w", "int64", [2], False]],
        [[7, "float32", [2], False]],
        [["w", "float32", [2], 1]],
        [["w", "float32", [1] * 33, False]],
        [["w", "float32", [2], False], ["w", "float32", [2], False]],
        [["w", "float32", [2**30, 2**30, 2**30], False]],
        [["w", "float32", "23", False]],
        [["w", ["float32"], [2], False]],
        "abc",
        7,
    ],
)
def test_a_description_of_impossible_arrays_is_refused(arrays: Any) -> None:
    with pytest.raises(PayloadError):
        parse_scheme(_packed(arrays=arrays), 1 << 28)


def test_a_scheme_without_a_codec_or_not_json_is_refused() -> None:
    for content in (
        _packed(uplink=["ternary"]),
        _packed(downlink=7),
        zlib.compress(b"{"),
        zlib.compress(b"[]"),
    ):
        with pytest.raises(PayloadError, match="not a scheme"):
            parse_scheme(content, 1 << 28)
    with pytest.raises(PayloadError, match="not a scheme"):
        parse_scheme(zlib.compress(b"[" * 100_000), 1 << 28)


def test_a_model_of_more_values_than_allowed_is_refused() -> None:
    values = sum(a.size for a in ARRAYS.values())
    assert parse_scheme(_scheme().to_bytes(), values).entries
    with pytest.raises(PayloadError, match=f"more than {values - 1} values"):
        parse_scheme(_scheme().to_bytes(), values - 1)


def test_deflated_bytes_are_not_inflated_beyond_the_limit() -> None:
    bomb = zlib.compress(bytes(1 << 24), 9)
    assert inflate(bomb, 1 << 24) == bytes(1 << 24)
    for content, most in ((bomb, (1 << 24) - 1), (bomb[:-1], 1 << 24), (bomb + b"x", 1 << 24), (b"", 1)):
        with pytest.raises(PayloadError):
            inflate(content, most)


@given(st.binary(max_size=60))
def test_garbage_is_no_scheme(content: bytes) -> None:
    for text in (content, zlib.compress(content)):
        with pytest.raises(PayloadError):
            parse_scheme(text, 1 << 20)


def test_names_matched_by_a_pattern_travel_exactly() -> None:
    scheme = _scheme()
    assert [e.name for e in scheme.entries if e.exact] == ["bn.running_var", "count", "flag", "bytes"]
    more = scheme_of(ARRAYS, ("w", "ha*"), Coding("raw"), Coding("raw"))
    assert [e.name for e in more.entries if e.exact] == ["w", "half", "count", "flag", "bytes"]


def test_a_codec_takes_changed_settings_only_where_it_has_them() -> None:
    assert "residual" in Coding("ternary").build().init({"w": (3,)})
    assert "residual" not in Coding("ternary").build(error_feedback=False).init({"w": (3,)})
    assert Coding("raw").build(error_feedback=False).name == "raw"
    with pytest.raises(ConfigError, match="bits is 1"):
        Coding("quantized", {"bits": 1}).build()
