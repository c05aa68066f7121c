"""Payloads from an attacker: whatever the bytes, an answer within the limits or ``PayloadError``.

Half of the mutations are blind; the other half know the container and mend its checksum, so that they reach
the codecs' own parsers. ``FEDGE_FULL=1`` makes it 100,000.
"""

import os
import tracemalloc

import numpy as np
import pytest

from fedge.codec import Codec, Limits, Shapes
from fedge.codec._container import seal, varint
from fedge.codec._flat import Layout
from fedge.errors import PayloadError

from .cases import CODECS, SHAPES, heavy

MUTATIONS = 100_000 if os.environ.get("FEDGE_FULL") else 2_000
WIDE: Shapes = {"a": (15, 100), "b": (7,)}
LARGE: Shapes = {"a": (200, 1000), "b": (7,)}

Rng = np.random.Generator


def _blind(payload: bytes, rng: Rng) -> bytes:
    data = bytearray(payload)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(len(data)))
        match int(rng.integers(4)):
            case 0:
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                data[at:] = data[at:][: int(rng.integers(1, 9))]
            case 2:
                data[at:at] = rng.bytes(int(rng.integers(1, 9)))
            case _:
                data[at : at + 4] = rng.bytes(4)
    return bytes(data)


def _aware(payload: bytes, rng: Rng, digest: int) -> bytes:
    """Fields swapped for extremes, bodies cut, grown, filled or blindly mutated; then sealed properly."""
    body = payload[1:-4]
    extreme = varint(int(rng.choice([0, 1, 127, 128, 2**14, 2**31 - 1, 2**32, 2**62])))
    at = int(rng.integers(min(len(body), 8) + 1))
    match int(rng.integers(6)):
        case 0:
            body = body[:at] + extreme + body[at + 1 :]
        case 1:
            body = body[: int(rng.integers(len(body) + 1))]
        case 2:
            body += bytes([int(rng.choice([0, 255]))]) * int(rng.integers(1, 2000))
        case 3:
            body = body[:at] + rng.bytes(max(0, len(body) - at))
        case 4:
            body = body[:at] + bytes([int(rng.choice([0, 255]))]) * max(0, len(body) - at)
        case _:
            body = _blind(body, rng)
    return seal(payload[0] & 31, body, digest)


def _attack(codec: Codec, payload: bytes, lim: Limits) -> int:
    """Decode a forged payload; the bytes of memory that it took."""
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        decoded = codec.decode(payload, lim)
    except PayloadError:
        decoded = {}
    else:
        assert {k: v.shape for k, v in decoded.items()} == dict(lim.shapes)
        assert all(v.dtype == np.float32 for v in decoded.values())
        assert all(float(np.abs(v).max(initial=0)) <= lim.max_abs for v in decoded.values())
    return tracemalloc.get_traced_memory()[1] - before


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_no_payload_breaks_out(codec: Codec) -> None:
    rng = np.random.default_rng(11)
    tracemalloc.start()
    try:
        for shapes in (SHAPES, WIDE):
            digest = Layout.of(shapes).digest
            payload = codec.encode(codec.init(shapes), heavy(shapes))[1]
            lim = Limits(shapes, 4 * len(payload) + 4000, 1e3)
            values = 4 * Layout.of(shapes).total
            for i in range(MUTATIONS // len(CODECS) // 2):
                forged = _blind(payload, rng) if i % 2 else _aware(payload, rng, digest)
                assert _attack(codec, forged, lim) <= 16 * values + 80 * len(forged) + 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_memory_stays_within_a_few_times_the_arrays_of_a_large_model(codec: Codec) -> None:
    """Most when ternary sends every entry: some ten whole numbers of 8 bytes for each position."""
    rng = np.random.default_rng(13)
    digest = Layout.of(LARGE).digest
    payload = codec.encode(codec.init(LARGE), heavy(LARGE))[1]
    lim = Limits(LARGE, 4 * len(payload) + 4000, 1e3)
    forged = [payload, *(_aware(payload, rng, digest) for _ in range(3))]
    tracemalloc.start()
    try:
        for data in forged:
            assert _attack(codec, data, lim) <= 20 * 4 * Layout.of(LARGE).total + 80 * len(data) + 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_random_bytes_with_a_right_seal_do_not_break_out(codec: Codec) -> None:
    rng = np.random.default_rng(12)
    number = codec.encode(codec.init(SHAPES), heavy(SHAPES))[1][0] & 31
    digest = Layout.of(SHAPES).digest
    tracemalloc.start()
    try:
        for _ in range(MUTATIONS // len(CODECS) // 2):
            forged = seal(number, rng.bytes(int(rng.integers(0, 300))), digest)
            _attack(codec, forged, Limits(SHAPES, 1000, 1e3))
    finally:
        tracemalloc.stop()


def test_the_seal_of_a_forger_is_good_enough_to_reach_the_codecs() -> None:
    """Otherwise the structure-aware half would test the checksum alone."""
    for codec in CODECS.values():
        payload = codec.encode(codec.init(SHAPES), heavy(SHAPES))[1]
        sealed = seal(payload[0] & 31, payload[1:-4], Layout.of(SHAPES).digest)
        assert sealed == payload
