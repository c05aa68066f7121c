"""Levels, entropy and error against independent references."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedge.bench._entropy import entropy_bits, levels_of, relative_error


@given(st.lists(st.integers(-127, 127), min_size=1, max_size=60), st.floats(1e-6, 1e3))
def test_levels_are_found_whatever_the_unit(integers: list[int], unit: float) -> None:
    truth = np.array(integers)
    (found,) = levels_of({"a": (truth.astype(np.float32) * np.float32(unit))})
    common = int(np.gcd.reduce(truth))
    assert np.array_equal(found, truth // common if common else truth)


def test_each_array_has_its_own_unit() -> None:
    arrays = {"a": np.float32([[0.5, -1.0]]), "b": np.zeros(2, np.float32), "c": np.float32([3.0, 9.0])}
    assert [a.tolist() for a in levels_of(arrays)] == [[1, -2], [0, 0], [1, 3]]


def test_values_on_no_lattice_are_refused() -> None:
    with pytest.raises(ValueError, match="no multiples"):
        levels_of({"a": np.random.default_rng(0).normal(size=50).astype(np.float32)})


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=200))
def test_the_entropy_is_that_of_scipy(integers: list[int]) -> None:
    _, counts = np.unique(integers, return_counts=True)
    reference = len(integers) * stats.entropy(counts / len(integers), base=2)
    assert entropy_bits(np.array(integers, np.int8)) == pytest.approx(reference, abs=1e-9)


def test_the_error_is_that_of_a_plain_loop() -> None:
    random = np.random.default_rng(1)
    truth = [random.normal(size=(3, 4)).astype(np.float32), random.normal(size=5).astype(np.float32)]
    decoded = [t * np.float32(0.5) for t in truth]
    decoded[1][2] += np.float32(1.0)
    lost = whole = 0.0
    for t, d in zip(truth, decoded, strict=True):
        for a, b in zip(t.reshape(-1).tolist(), d.reshape(-1).tolist(), strict=True):
            lost, whole = lost + (a - b) ** 2, whole + a**2
    assert relative_error(truth, decoded) == pytest.approx((lost / whole) ** 0.5)


def test_nothing_sent_of_nothing_is_no_error_but_something_is() -> None:
    zero, one = np.zeros(2, np.float32), np.ones(2, np.float32)
    assert relative_error([zero], [zero]) == 0
    assert relative_error([one], [zero]) == 1
    assert relative_error([zero], [one]) == float("inf")
