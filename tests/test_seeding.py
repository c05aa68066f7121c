import hashlib
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.seeding import derive, derive_bytes

WORDS = st.lists(st.text(st.characters(exclude_characters="\x1f", codec="utf-8")), max_size=4)
SEEDS = st.integers(0, 2**31 - 1)


def test_a_seed_gives_the_same_run_in_every_release() -> None:
    assert derive(0) == 4246866556266386882
    assert derive(7, "batches", "p01-left", 3) == 1172571043230392953
    assert derive_bytes(0, "release key").hex()[:16] == "65a844a2017a896c"


@given(SEEDS, WORDS)
def test_a_seed_is_63_bits_of_blake2b_over_the_words(seed: int, words: list[str]) -> None:
    text = b"\x1f".join([str(seed).encode(), *(w.encode() for w in words)])
    low = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    assert derive(seed, *words) == low // 2 < 2**63
    assert derive_bytes(seed, *words) == hashlib.blake2b(text, digest_size=32).digest()


@given(SEEDS, WORDS, SEEDS, WORDS)
def test_two_purposes_never_share_their_random_numbers(
    a: int, words: list[str], b: int, more: list[str]
) -> None:
    assert (derive(a, *words) == derive(b, *more)) == ((a, words) == (b, more))


@pytest.mark.parametrize(("one", "other"), [(("a", "b"), ("ab",)), (("a", 1), ("a1",)), ((), ("",))])
def test_words_are_kept_apart(one: tuple[str | int, ...], other: tuple[str | int, ...]) -> None:
    assert derive(0, *one) != derive(0, *other)


def test_what_was_drawn_before_changes_nothing() -> None:
    first = derive(3, "teacher")
    random.seed(99)
    np.random.default_rng(0).random(100)
    assert derive(3, "teacher") == first


def test_every_bit_is_used() -> None:
    seeds = np.array([derive(0, "bits", i) for i in range(2000)], np.uint64)
    ones = [(seeds >> np.uint64(bit) & np.uint64(1)).mean() for bit in range(63)]
    assert min(ones) > 0.4
    assert max(ones) < 0.6
