"""``_golomb`` against a coder that goes bit by bit, as in the textbook."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.codec import _golomb
from fedge.errors import PayloadError

gaps_and_divisors = st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 300)), max_size=60)


def _textbook(gap: int, m: int) -> tuple[str, str]:
    """Quotient in unary (ended by a 1) and remainder in truncated binary of one Golomb code word."""
    unary = "0" * (gap // m) + "1"
    rest, width = gap % m, (m - 1).bit_length()
    short = 2**width - m
    if width == 0:
        return unary, ""
    if rest < short:
        return unary, f"{rest:0{width - 1}b}" if width > 1 else ""
    return unary, f"{rest + short:0{width}b}"


def _leading(m: int) -> int:
    return max((m - 1).bit_length() - 1, 0)


@given(gaps_and_divisors)
def test_the_bits_are_those_of_the_textbook_only_sorted(pairs: list[tuple[int, int]]) -> None:
    gaps, divisors = (np.array([p[i] for p in pairs], np.int64) for i in (0, 1))
    words = [_textbook(g, m) for g, m in pairs]
    expected = (
        "".join(u for u, _ in words)
        + "".join(r[: _leading(m)] for (_, r), (_, m) in zip(words, pairs, strict=True))
        + "".join(r[_leading(m) :] for (_, r), (_, m) in zip(words, pairs, strict=True))
    )
    assert "".join(map(str, _golomb.encode(gaps, divisors))) == expected
    assert _golomb.cost(gaps, divisors) == len(expected)


@given(gaps_and_divisors, st.binary(max_size=4))
def test_gaps_come_back_and_what_follows_is_left(pairs: list[tuple[int, int]], after: bytes) -> None:
    gaps, divisors = (np.array([p[i] for p in pairs], np.int64) for i in (0, 1))
    tail = np.unpackbits(np.frombuffer(after, np.uint8))
    bits = np.concatenate([_golomb.encode(gaps, divisors), tail])
    decoded, left = _golomb.decode(bits, divisors, 3000)
    assert np.array_equal(decoded, gaps)
    assert np.array_equal(left, tail)


def test_the_example_of_wikipedia() -> None:
    """Golomb coding with M = 10: 42 is 1111 0 010 (there, unary counts ones)."""
    bits = "".join(map(str, _golomb.encode(np.array([42]), np.array([10]))))
    assert bits == "00001" + "010"


@pytest.mark.parametrize(
    ("bits", "count", "words"), [("0000", 1, "0 positions"), ("", 1, "early"), ("01", 1, "early")]
)
def test_bits_that_end_early_are_refused(bits: str, count: int, words: str) -> None:
    with pytest.raises(PayloadError, match=words):
        _golomb.decode(np.array(list(bits), np.uint8), np.full(count, 10), 100)


def test_a_gap_beyond_the_end_is_refused_before_it_overflows() -> None:
    bits = np.array([0] * 11 + [1] + [0] * 6, np.uint8)
    for most, divisor in ((100, 10), (109, 10), (2**31 - 1, 2**31 - 1)):
        with pytest.raises(PayloadError, match="a gap above"):
            _golomb.decode(bits, np.array([divisor]), most)


@given(st.integers(1, 3000), st.integers(1, 10**6))
def test_the_divisor_is_near_the_best_for_positions_spread_evenly(count: int, gap: int) -> None:
    """At most 2 % over the best of all divisors, for the mean of geometric gaps."""
    total = count * (gap + 1)
    chosen = _golomb.divisor(count, total)
    p = count / total
    best = min(
        _expected_bits(p, m)
        for m in {chosen, *(max(1, round(chosen * f)) for f in (0.5, 0.8, 0.9, 1.1, 1.25, 2))}
    )
    assert _expected_bits(p, chosen) <= 1.02 * best


def _expected_bits(p: float, m: int) -> float:
    """Mean length of a Golomb code word for gaps with P(g) = p (1 - p)^g: geometric sums in closed form."""
    q = 1 - p
    width = (m - 1).bit_length()
    short = 2**width - m if m > 1 else 1
    below_short = (1 - q**short) / (1 - q**m)
    return 1 / (1 - q**m) + width - (below_short if m > 1 else 0)


@given(gaps_and_divisors.filter(bool))
def test_the_bound_on_bits_holds(pairs: list[tuple[int, int]]) -> None:
    m = pairs[0][1]
    gaps = np.array([g for g, _ in pairs], np.int64)
    bound = _golomb.most_bits(np.array([len(gaps)]), np.array([int(gaps.sum())]), np.array([m]))
    assert _golomb.cost(gaps, np.full(len(gaps), m)) <= bound
