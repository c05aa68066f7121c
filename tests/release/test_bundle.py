import random
import struct
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.errors import FedgeError, PayloadError
from fedge.release.bundle import Bundle, parse_bundle
from fedge.release.manifest import MAX_MANIFEST_BYTES, MAX_MODEL_BYTES

from .build import NOW, RULES, signed

WHOLE = Bundle(*signed()).to_bytes()


def receive(content: bytes) -> None:
    bundle = parse_bundle(content)
    RULES.accept(bundle.manifest, bundle.signature, bundle.model, NOW)


@given(st.binary(min_size=1), st.binary(min_size=64, max_size=64), st.binary(min_size=1))
def test_round_trip_is_exact(manifest: bytes, signature: bytes, model: bytes) -> None:
    bundle = Bundle(manifest, signature, model)
    assert parse_bundle(bundle.to_bytes()) == bundle


def test_layout_is_the_documented_one() -> None:
    content = Bundle(b"MM", b"S" * 64, b"model").to_bytes()
    header = b"FDGR\x01\0\0\0" + b"\x02\0\0\0" + b"\x40\0\0\0" + b"\x05\0\0\0"
    assert content == header + b"MM" + b"S" * 64 + b"model"


def test_truncated_bundle_is_refused_at_every_length() -> None:
    for length in range(len(WHOLE)):
        with pytest.raises(PayloadError):
            parse_bundle(WHOLE[:length])


def test_bytes_after_the_end_are_refused() -> None:
    with pytest.raises(PayloadError, match="header"):
        parse_bundle(WHOLE + b"\0")


@pytest.mark.parametrize(
    "lengths",
    [
        (2**32 - 1, 64, 1),
        (1, 64, 2**32 - 1),
        (2**32 - 1, 2**32 - 1, 2**32 - 1),
        (MAX_MANIFEST_BYTES + 1, 64, 1),
        (1, 64, MAX_MODEL_BYTES + 1),
        (MAX_MANIFEST_BYTES, 64, MAX_MODEL_BYTES),  # allowed each, but not there
        (0, 64, 1),
        (1, 64, 0),
        (1, 63, 1),
        (1, 0, 1),
    ],
)
def test_oversized_or_empty_lengths_are_refused_before_memory_is_taken(lengths: tuple[int, int, int]) -> None:
    content = b"FDGR\x01\0\0\0" + struct.pack("<III", *lengths) + bytes(100)
    tracemalloc.start()
    try:
        with pytest.raises(PayloadError):
            parse_bundle(content)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "start", [b"FDGX\x01\0\0\0", b"\0\0\0\0\x01\0\0\0", b"FDGR\x02\0\0\0", b"FDGR\x01\0\0\x01"]
)
def test_another_magic_or_format_is_refused(start: bytes) -> None:
    with pytest.raises(PayloadError):
        parse_bundle(start + WHOLE[8:])


@pytest.mark.parametrize("parts", [(b"", b"s" * 64, b"m"), (b"m", b"s", b"m"), (b"m", b"s" * 64, b"")])
def test_impossible_bundle_cannot_be_written(parts: tuple[bytes, bytes, bytes]) -> None:
    with pytest.raises(PayloadError):
        Bundle(*parts).to_bytes()


@settings(max_examples=300, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 6))
def test_blind_mutation_is_refused_and_nothing_but_the_error_tree_escapes(
    rng: random.Random, changes: int
) -> None:
    content = bytearray(WHOLE)
    for _ in range(changes):
        at = rng.randrange(len(content)) if rng.random() < 0.5 else rng.randrange(24)
        content[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    if bytes(content) == WHOLE:
        return
    with pytest.raises(FedgeError):
        receive(bytes(content))


@given(st.binary(max_size=200))
def test_garbage_is_refused(content: bytes) -> None:
    with pytest.raises(PayloadError):
        parse_bundle(content)
    with pytest.raises(PayloadError):
        parse_bundle(b"FDGR\x01\0\0\0" + content)
