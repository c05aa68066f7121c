import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fedge.errors import PayloadError
from fedge.packing import pack, unpack

DTYPES = ["f4", "f8", "i4", "i8", "u1", "i1", "u4", "u8"]
NAMES = st.text(st.characters(codec="utf-8"), max_size=8)
META = st.dictionaries(
    NAMES,
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**70), 2**70) | NAMES
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)  # fmt: skip
ARRAYS = st.dictionaries(
    NAMES,
    st.sampled_from(DTYPES).flatmap(
        lambda d: hnp.arrays(np.dtype(d), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    ),
    max_size=4,
)


def framed(header: object, body: bytes = b"") -> bytes:
    """The format, with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return b"FP1\0" + len(text).to_bytes(4, "little") + text + body


def table(*rows: object) -> dict[str, object]:
    return {"meta": {}, "arrays": list(rows)}


@given(META, ARRAYS)
def test_what_is_packed_comes_back(meta: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
    again, found = unpack(pack(meta, arrays))
    assert again == meta
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()  # NaN and minus zero included


def test_layout_of_an_array_in_memory_does_not_matter() -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    for same in (np.asfortranarray(x), x.astype(">f4"), np.repeat(x, 2, axis=0)[::2]):
        assert pack({}, {"x": same}) == pack({}, {"x": x})


def test_what_comes_back_can_be_written_to() -> None:
    content = pack({}, {"x": np.zeros(3, np.float32)})
    unpack(content)[1]["x"][0] = 7
    assert unpack(content)[1]["x"][0] == 0


def test_the_layout_is_as_documented() -> None:
    header = b'{"meta":{"a":1},"arrays":[["w","f4",[2]]]}'
    body = bytes.fromhex("0000803f000000c0")  # 1.0, -2.0
    assert pack({"a": 1}, {"w": np.array([1, -2], np.float32)}) == framed(header, body)


@pytest.mark.parametrize(
    "array",
    [np.zeros(2, np.float16), np.zeros(2, bool), np.zeros(2, complex), np.array(["a"]), np.array([None])],
)
def test_only_numbers_of_fixed_size_are_packed(array: NDArray[Any]) -> None:
    with pytest.raises(TypeError, match="cannot be packed"):
        pack({}, {"x": array})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_meta_that_json_cannot_hold_is_not_packed(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        pack({"x": value}, {})


SAMPLE = pack(
    {"round": 3, "names": ["a", "b"]},
    {"w": np.arange(5, dtype=np.float32), "n": np.array(7, np.int64), "none": np.zeros((0, 3), np.uint8)},
)


def test_every_truncation_is_refused() -> None:
    for length in range(len(SAMPLE)):
        with pytest.raises(PayloadError):
            unpack(SAMPLE[:length])


@pytest.mark.parametrize("extra", [b"\0", b"FP1\0", SAMPLE])
def test_trailing_bytes_are_refused(extra: bytes) -> None:
    with pytest.raises(PayloadError, match="trailing"):
        unpack(SAMPLE + extra)


def _tried(data: bytes) -> None:
    """Unpack; only ``PayloadError`` may come out, and arrays no larger than the bytes."""
    try:
        meta, arrays = unpack(data)
    except PayloadError:
        return
    assert isinstance(meta, dict)
    assert sum(a.nbytes for a in arrays.values()) <= len(data)


@settings(max_examples=400)
@given(st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_no_mutation_gets_past_as_anything_but_a_refusal_or_small_arrays(
    changes: list[tuple[int, int]],
) -> None:
    data = bytearray(SAMPLE)
    for position, value in changes:
        data[position] = value
    _tried(bytes(data))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["w", "f4", "u1", ""]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=300)
@given(JSON, JSON, st.binary(max_size=16))
def test_no_header_of_other_types_gets_past(meta: object, rows: object, body: bytes) -> None:
    _tried(framed({"meta": meta, "arrays": rows}, body))
    _tried(framed(rows, body))


@given(st.lists(st.integers(-1, 70), max_size=9), st.sampled_from(DTYPES), st.integers(0, 64))
def test_no_shape_reads_more_than_is_there(shape: list[int], dtype: str, length: int) -> None:
    _tried(framed(table(["x", dtype, shape]), bytes(length)))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"FP1\0",
        b"FP2\0" + SAMPLE[4:],
        b"PK\3\4",
        b"\x80\x04\x95" + bytes(20),  # a pickle
        framed(b"["),
        framed(b"[" * 100_000),
        framed(b'{"meta":' + b'{"a":' * 100_000),
        framed(b"\xff\xfe{\0"),
        framed(b'{"meta":{},"arrays":[["x","u1",[' + b"1" * 5000 + b"]]]}"),
        framed([]),
        framed({"meta": {}}),
        framed({"arrays": []}),
        framed({"meta": 5, "arrays": []}),
        framed({"meta": [], "arrays": []}),
        framed(table("abc")),
        framed(table(["x", "u1"])),
        framed(table(["x", "O", [1]]), b"\0" * 8),
        framed(table(["x", "f2", [1]]), b"\0" * 2),
        framed(table(["x", ["u1"], [1]]), b"\0"),
        framed(table(["x", "u1", [True]]), b"\0"),
        framed(table(["x", "u1", [1.0]]), b"\0"),
        framed(table(["x", "u1", [-1]]), b"\0"),
        framed(table(["x", "u1", [2**62, 2**62, 2**62]])),
        framed(table(["x", "u1", [1] * 9]), b"\0"),
        framed(table(["x", "u1", 1]), b"\0"),
        framed(table(["x", "u1", None]), b"\0"),
    ],
    ids=lambda data: data[:40].hex(),
)
def test_bytes_that_are_something_else_are_refused(data: bytes) -> None:
    with pytest.raises(PayloadError):
        unpack(data)


def test_more_bytes_than_allowed_are_refused() -> None:
    assert unpack(SAMPLE, len(SAMPLE))
    with pytest.raises(PayloadError, match="more than"):
        unpack(SAMPLE, len(SAMPLE) - 1)


def test_a_header_beyond_its_limit_is_not_even_parsed() -> None:
    within, beyond = (framed(b'{"meta":{},"arrays":[]}'.ljust(size)) for size in (1 << 22, (1 << 22) + 1))
    assert unpack(within) == ({}, {})
    with pytest.raises(PayloadError, match="header"):
        unpack(beyond)


LYING = [
    framed(table(["x", "f8", [2**27]]), bytes(1000)),
    framed(table(["x", "u1", [1000, 1000, 1000, 1000]]), bytes(4000)),
    framed(table(*[["x", "f8", [120]]] * 500), bytes(1000)),
    b"FP1\0" + (2**32 - 1).to_bytes(4, "little") + bytes(1000),
    b"FP1\0" + (1 << 22).to_bytes(4, "little") + bytes(1000),
]


@pytest.mark.parametrize("data", LYING, ids=["one size", "product", "many", "header", "header at its limit"])
def test_a_header_that_lies_allocates_nothing_for_it(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(PayloadError):
            unpack(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20 * len(data) + 100_000
