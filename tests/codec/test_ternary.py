"""``ternary`` against a full sort, and under budgets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedge.codec import Limits, ternary
from fedge.codec._flat import Layout
from fedge.errors import ConfigError, PayloadError

from .cases import Named, any_arrays, flat, heavy, limits, make

MODEL = {"c1": (32, 3, 5), "b1": (32,), "c2": (48, 32, 5), "b2": (48,), "c3": (64, 48, 3), "fc": (12, 64)}


def _sent(arrays: Named, **knobs: object) -> tuple[int, Named]:
    codec = make("ternary", **knobs)
    _, payload = codec.encode(codec.init({k: v.shape for k, v in arrays.items()}), arrays)
    return len(payload), codec.decode(payload, limits(arrays))


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 1.0])
def test_what_is_sent_are_the_largest_of_all_arrays_and_their_mean(share: float) -> None:
    arrays = heavy(MODEL)
    x, y = flat(arrays), flat(_sent(arrays, share=share)[1])
    k = round(share * len(x))
    largest = np.sort(np.argsort(-np.abs(x), kind="stable")[:k])
    assert np.array_equal(np.flatnonzero(y), largest)
    assert np.array_equal(np.sign(y[largest]), np.sign(x[largest]))
    mean = float(np.abs(x[largest]).mean(dtype=np.float64))
    assert np.unique(np.abs(y[largest])).tolist() == [pytest.approx(mean, rel=1 / 500)]


def test_of_equal_magnitudes_the_first_are_sent() -> None:
    x = np.array([0, 1, -1, 1, 0, -1, 1, 1, 0, 0], np.float32)
    y = _sent({"a": x}, share=0.3)[1]["a"]
    assert y.tolist() == [0, 1, -1, 1, 0, 0, 0, 0, 0, 0]


def test_zeros_are_never_sent() -> None:
    x = np.zeros(1000, np.float32)
    assert _sent({"a": x}, share=0.5)[0] == 6
    x[7] = -2.0
    size, y = _sent({"a": x}, share=0.5)
    assert y["a"][7] == -2.0
    assert np.count_nonzero(y["a"]) == 1
    assert size <= 12


def test_a_percent_of_twenty_thousand_entries_takes_two_hundred_and_some_bytes() -> None:
    """The entropy of the positions and signs, a magnitude, and seven bytes around them."""
    arrays = heavy({"a": (20_000,)})
    p = 200 / 20_000
    entropy = -20_000 * (p * np.log2(p) + (1 - p) * np.log2(1 - p)) / 8 + 200 / 8
    assert _sent(arrays)[0] <= 1.02 * entropy + 2 + 7


def test_entries_that_gather_in_one_array_cost_less() -> None:
    """Counting each array on its own is chosen where it is shorter, and only there."""
    even = heavy({"a": (2000,), "b": (18_000,)})
    gathered = {"a": even["a"], "b": even["b"] * np.float32(1e-3)}
    assert _sent(gathered, share=0.05)[0] < 0.9 * _sent(even, share=0.05)[0]
    for arrays in (even, gathered):
        y = flat(_sent(arrays, share=0.05)[1])
        assert np.count_nonzero(y) == 1000


@settings(max_examples=60, deadline=None)
@given(any_arrays(), st.integers(24, 200))
def test_a_budget_is_never_exceeded(arrays: Named, budget: int) -> None:
    assert _sent(arrays, budget_bytes=budget)[0] <= budget


def test_a_budget_is_used_and_more_of_it_is_never_worse() -> None:
    x, errors = np.random.default_rng(4).laplace(size=16_000).astype(np.float32), []
    arrays = {"a": x[:5000], "b": x[5000:]}
    for budget in (24, 50, 100, 220, 500, 1000, 2000):
        size, y = _sent(arrays, budget_bytes=budget)
        assert budget - 3 <= size <= budget
        errors.append(float(np.linalg.norm(x - flat(y))))
    assert errors == sorted(errors, reverse=True)


def test_entries_that_would_add_error_are_not_sent_however_much_there_is_to_spend() -> None:
    """With one magnitude for all, an entry below half of it is better left at zero."""
    x = np.concatenate([np.full(10, 1.0), np.full(1000, 0.01)]).astype(np.float32)
    y = _sent({"a": x}, budget_bytes=5000)[1]["a"]
    assert np.array_equal(np.flatnonzero(y), np.arange(10))


def test_settings_that_cannot_work_are_refused() -> None:
    for knobs in (
        {"share": 0.0},
        {"share": 1.5},
        {"share": float("nan")},
        {"budget_bytes": 23},
        {"budget_bytes": -1},
    ):
        with pytest.raises(ConfigError):
            make("ternary", **knobs)


def _forge(k: int, split: bool, counts: list[int], bits: bytes, shapes: dict[str, tuple[int, ...]]) -> bytes:
    from fedge.codec._container import seal, varint

    fields = b"".join(varint(n) for n in [k << 1 | split, *counts])
    return seal(2, fields + b"\x80\x3f" + bits, Layout.of(shapes).digest)


@pytest.mark.parametrize(
    ("k", "split", "counts", "bits"),
    [
        (1001, False, [], b"\xff" * 300),
        (1000, False, [], b""),
        (1000, False, [], b"\xff" * 10),
        (1, False, [], b"\xff" * 5000),
        (4, True, [5], b"\xff" * 8),
        (900, True, [10], b"\xff" * 400),
        (2, True, [1], b"\0" * 2),
        (3, False, [], b"\xff" * 3 + b"\1"),
    ],
)
def test_forged_counts_and_positions_are_refused(k: int, split: bool, counts: list[int], bits: bytes) -> None:
    shapes: dict[str, tuple[int, ...]] = {"a": (500,), "b": (500,)}
    with pytest.raises(PayloadError):
        make("ternary").decode(_forge(k, split, counts, bits, shapes), Limits(shapes, 10_000))


def test_positions_beyond_the_end_are_refused() -> None:
    gaps: NDArray[np.int64] = np.array([9, 0])
    for spans, counts in (([10], [2]), ([5, 5], [1, 1]), ([10, 10], [2, 0])):
        with pytest.raises(PayloadError, match="beyond the end"):
            ternary._positions(gaps, np.array(counts), np.array(spans))
    assert ternary._positions(gaps, np.array([1, 1]), np.array([10, 5])).tolist() == [9, 10]
