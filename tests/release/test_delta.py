"""Deltas between model files: exact, small, and harmless whatever arrives in place of one."""

import os
import random
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.codec import _container, _rans, _table
from fedge.codec._container import Reader, varint
from fedge.errors import PayloadError
from fedge.release import _plan, _protobuf, _segments, _streams, delta
from fedge.release._segments import Kind, Segment

from .models import STEP_IN, Weights, float_model, int8_model, raw_tensors

FUZZED = 10_000 if os.environ.get("FEDGE_FULL") == "1" else 400
LIMIT = 1 << 20
BEFORE = Weights.random(0)
AFTER = BEFORE.tuned(1)
OLD, NEW = int8_model(BEFORE), int8_model(AFTER)


def made(old: bytes, new: bytes) -> bytes:
    change = delta.encode(old, new)
    assert change is not None
    return change


def resealed(payload: bytes, old: bytes) -> bytes:
    """With a checksum that fits: what an attacker would do."""
    return payload[:-4] + zlib.crc32(payload[:-4], zlib.crc32(old)).to_bytes(4, "little")


@pytest.mark.parametrize("kind", [int8_model, float_model])
@pytest.mark.parametrize("share", [0.0, 1e-4, 0.01, 0.3])
def test_delta_gives_the_new_file_back_bit_for_bit(kind: Callable[[Weights], bytes], share: float) -> None:
    old, new = (kind(w) for w in (BEFORE, BEFORE.tuned(2, share)))
    change = delta.encode(old, new)
    if change is not None:
        assert delta.decode(old, change, len(new)) == new
    assert delta.unpack(delta.pack(new), len(new)) == new


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_files_that_are_no_models_survive_too(old: bytes, new: bytes) -> None:
    for base in (old, b""):
        payload = delta._encode(base, new)
        assert delta.decode(base, payload, 300) == new


@given(st.binary(min_size=1, max_size=200), st.integers(0, 199), st.binary(max_size=5))
def test_a_small_change_in_the_middle_costs_little(old: bytes, at: int, change: bytes) -> None:
    new = old[:at] + change + old[at:]
    assert delta.decode(old, payload := delta._encode(old, new), 300) == new
    assert len(payload) <= 60 + len(change)


def test_model_in_which_layers_came_and_went_survives() -> None:
    fewer = Weights({n: w for n, w in AFTER.layers.items() if n != "conv1"}, AFTER.alive)
    small = int8_model(fewer)
    for old, new in ((small, NEW), (NEW, small)):
        assert delta.decode(old, delta._encode(old, new), LIMIT) == new


def test_no_delta_where_the_whole_is_smaller() -> None:
    stranger = int8_model(Weights.random(7))
    assert delta.encode(stranger, NEW) is None or len(made(stranger, NEW)) < len(delta.pack(NEW))
    assert delta.encode(random.Random(0).randbytes(2000), b"another file") is None


def test_delta_of_a_fine_tuned_model_is_close_to_the_entropy_of_what_changed() -> None:
    """Beside a naive sum: the entropy of what the prediction leaves of each layer, cut weights apart."""
    bits, rest = 0.0, 0
    old, new = raw_tensors(OLD), raw_tensors(NEW)
    for name in BEFORE.layers:
        before, after = (np.frombuffer(t[f"{name}.weight.step"], "<f4") for t in (old, new))
        a, b = (np.frombuffer(t[f"{name}.weight.int8"], np.int8).reshape(len(before), -1) for t in (old, new))
        zero: list[int] = []
        other: list[int] = []
        for row in range(len(before)):
            for was, now in zip(a[row].tolist(), b[row].tolist(), strict=True):
                expected = int(min(max(np.rint(was * (float(before[row]) / float(after[row]))), -127), 127))
                (zero if expected == 0 else other).append((now - expected) % 256)
        for values in (zero, other):
            _, counts = np.unique(values, return_counts=True)
            bits -= float((counts * np.log2(counts / counts.sum())).sum())
        rest += 3 * len(before) + 3 * len(before)  # steps and biases: about three bytes each
    assert bits / 8 < len(made(OLD, NEW)) < 1.1 * bits / 8 + rest + 200


def test_delta_is_a_fraction_of_the_packed_model_and_that_is_below_zlib() -> None:
    assert len(made(OLD, NEW)) < 0.6 * len(delta.pack(NEW))
    assert len(delta.pack(NEW)) < len(zlib.compress(NEW, 9)) < len(NEW)


def test_same_files_give_the_same_delta() -> None:
    assert delta._encode(OLD, NEW) == delta._encode(OLD, NEW)


def test_weights_are_scaled_and_steps_of_biases_computed() -> None:
    kinds = [s.kind for s in _plan.plan(OLD, NEW)]
    layers = len(BEFORE.layers)
    assert [kinds.count(k) for k in (Kind.SCALED8, Kind.SCALED32, Kind.PRODUCT)] == [layers] * 3
    assert kinds.count(Kind.LITERAL) == 0


def test_segments_cover_the_new_file_without_gap_or_overlap() -> None:
    for old, new in ((OLD, NEW), (b"", NEW), (NEW, OLD[:-7]), (OLD, b"")):
        assert sum(s.size for s in _plan.plan(old, new)) == len(new)


def test_walker_finds_the_tensors_that_the_onnx_package_finds() -> None:
    expected = raw_tensors(NEW)
    found = {t.name.decode(): NEW[t.offset : t.offset + t.size] for t in _protobuf.tensors(NEW)}
    assert found == expected
    steps = {t.name.decode(): t.step for t in _protobuf.tensors(NEW) if t.step}
    assert steps["head.weight.int8"] == b"head.weight.step"
    assert steps["head.bias.int32"] == b"head.bias.step"


@pytest.mark.parametrize("width", [1, 4])
def test_scaled_integers_are_predicted_as_a_naive_loop_does(width: int) -> None:
    rng = np.random.default_rng(width)
    most = {1: 127, 4: 2**31 - 1}[width]
    values = rng.integers(-most - 1, most + 1, (4, 6))
    before = np.array([1e-3, 0.0, np.inf, 2.5], np.float32)
    after = np.array([1.1e-3, 0.0, 1.0, 1e-9], np.float32)
    old = values.astype(f"<i{width}").tobytes() + before.tobytes()
    kind = {1: Kind.SCALED8, 4: Kind.SCALED32}[width]
    segment = Segment(kind, 24 * width, 0, 0, rows=4, old_steps=24 * width, new_steps=0)
    found = _segments.predicted(segment, old, bytearray(after.tobytes()))
    expected = []
    for row in range(4):
        for value in values[row].tolist():
            with np.errstate(all="ignore"):
                scaled = np.float64(value) * (np.float64(before[row]) / np.float64(after[row]))
            near = 0.0 if np.isnan(scaled) else float(np.clip(np.rint(scaled), -most, most))
            expected.append(int(near))
    assert found.tolist() == expected


def test_product_is_the_float32_product() -> None:
    steps = np.array([1.5e-3, 7e-5, 3.0], np.float32)
    segment = Segment(Kind.PRODUCT, 12, new_steps=4, scalar=0)
    found = _segments.product(segment, bytearray(STEP_IN.tobytes() + steps.tobytes()))
    assert found == b"".join(np.float32(s * STEP_IN).tobytes() for s in steps)


@given(st.lists(st.integers(0, 255), max_size=300), st.integers(0, 3))
def test_streams_give_back_what_was_written(values: list[int], zeros: int) -> None:
    content = np.array([v if i % (zeros + 1) == 0 else 0 for i, v in enumerate(values)], np.uint8)
    reader = Reader(_streams.write(content))
    assert _streams.read(reader, len(content)).tolist() == content.tolist()
    reader.end()


def test_streams_of_small_numbers_are_near_their_entropy() -> None:
    rng = np.random.default_rng(0)
    numbers = np.rint(rng.laplace(0, 1.5, 20_000)).astype(np.int8)
    _, counts = np.unique(numbers, return_counts=True)
    entropy = -(counts * np.log2(counts / counts.sum())).sum() / 8
    assert len(_streams.write(numbers.view(np.uint8))) < 1.02 * entropy + 60


def test_wrong_base_is_refused() -> None:
    change = made(OLD, NEW)
    for base in (NEW, b"", OLD[:-1], OLD + b"\0"):
        with pytest.raises(PayloadError):
            delta.decode(base, change, LIMIT)


def test_file_above_the_limit_is_refused() -> None:
    change = made(OLD, NEW)
    assert delta.decode(OLD, change, len(NEW)) == NEW
    with pytest.raises(PayloadError):
        delta.decode(OLD, change, len(NEW) - 1)
    with pytest.raises(PayloadError):
        delta.unpack(delta.pack(NEW), len(NEW) - 1)


def test_delta_cut_off_anywhere_is_refused() -> None:
    change = made(OLD, NEW)
    for size in range(len(change)):
        with pytest.raises(PayloadError):
            delta.decode(OLD, change[:size], LIMIT)
    for size in range(1, len(change), 7):
        with pytest.raises(PayloadError):
            delta.decode(OLD, resealed(change[:size] + b"\0\0\0\0", OLD), LIMIT)


def test_bytes_after_a_delta_are_refused() -> None:
    change = made(OLD, NEW)
    with pytest.raises(PayloadError):
        delta.decode(OLD, resealed(change[:-4] + b"\0" + b"\0\0\0\0", OLD), LIMIT)


def body(
    size: int, segments: list[Segment], literals: bytes, streams: bytes = b"", old: bytes = b""
) -> bytes:
    """A payload made by hand."""
    table = b"".join(s.to_bytes() for s in segments)
    head = varint(size) + varint(len(table)) + delta._deflated(table, b"")
    return _container.seal(31, head + delta._deflated(literals, old) + streams, zlib.crc32(old))


FILLED = Segment(Kind.LITERAL, 16)
WRONG = {
    "literal beyond the end": (3, [Segment(Kind.LITERAL, 4)]),
    "bytes left out": (5, [Segment(Kind.LITERAL, 4)]),
    "empty segment": (4, [Segment(Kind.LITERAL, 0), Segment(Kind.LITERAL, 4)]),
    "copy from nowhere": (4, [Segment(Kind.COPY, 4)]),
    "copy beyond the old file": (4, [Segment(Kind.COPY, 4, 13)]),
    "integers beyond the old file": (4, [Segment(Kind.INT8, 4, 13)]),
    "half an integer": (5, [Segment(Kind.INT32, 5, 0)]),
    "scaled from nowhere": (20, [FILLED, Segment(Kind.SCALED8, 4, None, rows=1)]),
    "no rows": (20, [FILLED, Segment(Kind.SCALED8, 4, 0, rows=0)]),
    "rows that do not divide": (20, [FILLED, Segment(Kind.SCALED8, 4, 0, rows=3)]),
    "old steps beyond the file": (20, [FILLED, Segment(Kind.SCALED8, 4, 0, rows=2, old_steps=9)]),
    "new steps beyond the file": (20, [FILLED, Segment(Kind.SCALED8, 4, 0, rows=2, new_steps=13)]),
    "factors beyond the file": (4, [Segment(Kind.PRODUCT, 4, new_steps=1)]),
    "scalar beyond the file": (4, [Segment(Kind.PRODUCT, 4, scalar=1)]),
}
REFUSAL = {"literal beyond the end": "a number above 3", "bytes left out": "leave 1 bytes out"}


@pytest.mark.parametrize("wrong", WRONG)
def test_segments_that_do_not_fit_are_refused(wrong: str) -> None:
    size, segments = WRONG[wrong]
    literals = b"x" * sum(s.size for s in segments if s.kind is Kind.LITERAL)
    streams = b"\0" * sum(2 if s.kind in (Kind.INT8, Kind.SCALED8) else 0 for s in segments)
    with pytest.raises(PayloadError, match=REFUSAL.get(wrong, "does not fit the files")):
        delta.decode(bytes(16), body(size, segments, literals, streams, bytes(16)), LIMIT)


@pytest.mark.parametrize("count", [5000, 100])
def test_stream_in_few_lanes_is_refused_before_it_takes_long(count: int) -> None:
    """One lane means one step for each value: at most so many as an encoder would take."""
    numbers = np.arange(count) % 5
    table = _table.fit(np.bincount(numbers, minlength=5), 2)
    coded = _rans.encode(numbers.astype(np.uint8), table.table, 1, np.zeros(1, np.uint16))
    stream = bytes([3 + table.kind, 2]) + varint(1) + table.data + varint(len(coded)) + coded
    if count < 4096:
        assert _streams.read(Reader(stream), count).tolist() == ((numbers - 2) % 256).tolist()
    else:
        with pytest.raises(PayloadError, match="1 coder lanes for 5000 values"):
            _streams.read(Reader(stream), count)


def test_a_payload_made_by_hand_is_read() -> None:
    """The control of the test above: kinds that fit are taken."""
    old = bytes(range(16))
    segments = [Segment(Kind.LITERAL, 2), Segment(Kind.COPY, 3, 13), Segment(Kind.INT8, 4, 0)]
    payload = body(9, segments, b"ab", b"\0\0", old)
    assert delta.decode(old, payload, LIMIT) == b"ab" + old[13:] + old[:4]


BOMB = zlib.compress(bytes(1 << 26), 9)
SEALED_BOMB = varint(len(BOMB)) + BOMB
NO_LITERALS = delta._deflated(b"", b"")
BOMBS = {
    "size": (varint(1 << 40), "a number above"),
    "table": (varint(4) + varint(1 << 10) + SEALED_BOMB, "does not end after 1024 bytes"),
    "literals": (
        varint(4) + varint(2) + delta._deflated(bytes([0, 4]), b"") + SEALED_BOMB,
        "does not end after 4 bytes",
    ),
    "stream": (
        varint(3) + varint(4) + delta._deflated(bytes([2, 3, 0, 0]), b"") + NO_LITERALS + b"\2" + SEALED_BOMB,
        "does not end after 3 bytes",
    ),
}


@pytest.mark.parametrize("where", BOMBS)
def test_claims_of_gigabytes_take_no_memory(where: str) -> None:
    """A few bytes that announce a lot, or inflate to a lot, are refused before memory is taken for it."""
    head, match = BOMBS[where]
    payload = _container.seal(31, head, zlib.crc32(b""))
    tracemalloc.start()
    with pytest.raises(PayloadError, match=match):
        delta.decode(b"", payload, LIMIT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * len(payload) + (2 << 20)


def test_fuzzed_deltas_give_a_file_within_the_limit_or_are_refused() -> None:
    """Changed bytes, pieces cut, doubled and swapped; half of them with a checksum that fits."""
    rng = random.Random(5)
    change, whole = made(OLD, NEW), delta.pack(NEW)
    wrong = 0
    for number in range(FUZZED):
        old, payload = ((OLD, change), (b"", whole))[number % 2]
        fuzzed = mutated(payload, rng)
        if number % 4 < 3:
            fuzzed = resealed(fuzzed, old)
        try:
            result = delta.decode(old, fuzzed, len(NEW))
        except PayloadError:
            continue
        assert len(result) <= len(NEW)
        wrong += result != NEW
    assert wrong, "some mutations must get through the checksum, or this tests nothing"


def mutated(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at, size = rng.randrange(len(changed)), rng.randrange(1, 20)
        match rng.randrange(5):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at : at + size] = rng.randbytes(size)
            case 2:
                del changed[at : at + size]
            case 3:
                changed[at:at] = changed[at : at + size]
            case 4:
                changed[at] = rng.choice([0, 1, 127, 128, 255])
        if len(changed) < 8:
            changed += bytes(8)
    return bytes(changed)


def test_model_of_more_pieces_than_allowed_travels_as_one() -> None:
    layers = {f"l{i}": np.full((4, 4), float(i + 1)) for i in range(3 * _segments.MAX_SEGMENTS // 4)}
    weights = Weights(layers, {name: np.ones((4, 4), np.bool_) for name in layers})
    new = int8_model(weights)
    assert delta.unpack(delta.pack(new), len(new)) == new
