"""``_step`` against a search that tries everything on every entry."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fedge.codec._step import best_step, level_counts, magnitudes


def _error(values: NDArray[np.float32], step: float, top: int, rounding: float) -> float:
    sizes = np.abs(values.astype(np.float64))
    return float(np.square(sizes - step * np.minimum(np.floor(sizes / step + rounding), top)).sum())


@pytest.mark.parametrize("entries", [5000, 40_000])
@pytest.mark.parametrize("top", [1, 3, 7, 127])
@pytest.mark.parametrize("rounding", [0.5, 0.3])
def test_the_step_is_within_three_percent_of_the_least_error(entries: int, top: int, rounding: float) -> None:
    rng = np.random.default_rng(entries)
    for values in (rng.laplace(size=entries), rng.standard_t(3, entries), rng.normal(size=entries)):
        values = (1e-3 * values).astype(np.float32)
        step = best_step(magnitudes(values), top, rounding)
        tried = np.geomspace(1e-7, float(np.abs(values).max()) / top * 1.2, 600)
        least = min(_error(values, s, top, rounding) for s in tried.tolist())
        assert _error(values, step, top, rounding) <= 1.03 * least + 1e-30


def test_zeros_have_a_step_of_zero() -> None:
    for n in (0, 1, 9000):
        assert best_step(magnitudes(np.zeros(n, np.float32)), 7, 0.5) == 0.0


def test_bins_hold_every_entry_once_and_the_peak() -> None:
    values = np.random.default_rng(0).standard_t(3, 30_000).astype(np.float32)
    values[:100] = 0
    sizes = magnitudes(values)
    assert sizes.weights.sum() == 30_000
    assert sizes.peak == float(np.abs(values).max())
    assert sizes.values[0] == 0
    assert sizes.weights[0] == 100
    assert len(sizes.values) < 6000


def test_expected_levels_are_those_that_come_out() -> None:
    values = np.random.default_rng(0).laplace(size=30_000).astype(np.float32)
    counts = level_counts(magnitudes(values), 0.5, 7, 0.4)
    levels = np.minimum(np.floor(np.abs(values) / 0.5 + 0.4), 7) * np.sign(values)
    real = np.bincount(levels.astype(int) + 7, minlength=15)
    assert np.abs(counts - real).max() < 0.02 * 30_000
    random = level_counts(magnitudes(values), 0.5, 7, None)
    mean = float(random @ np.abs(np.arange(-7, 8))) / 30_000 * 0.5
    assert abs(mean - float(np.minimum(np.abs(values), 3.5).mean())) < 0.005
