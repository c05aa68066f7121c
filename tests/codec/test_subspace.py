"""``subspace`` against the dense basis, written out."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fedge.codec import subspace
from fedge.codec._flat import residual
from fedge.errors import ConfigError

from .cases import flat, heavy, limits, make


def _basis(n: int, d: int, seed: int, counter: int) -> NDArray[np.float64]:
    """``[d, n]``, signs taken bit by bit from the raw words."""
    words = [int(w) for w in np.random.Philox(key=[seed, counter]).random_raw(-(-n // 64))]
    basis = np.zeros((d, n))
    for i in range(n):
        basis[i % d, i] = -1 if words[i // 64] >> i % 64 & 1 else 1
    return basis


@pytest.mark.parametrize(("n", "d"), [(1, 1), (63, 64), (130, 7), (1000, 64), (1024, 32), (65, 1)])
def test_the_projection_is_that_of_least_squares(n: int, d: int) -> None:
    x = np.random.default_rng(n).normal(size=n).astype(np.float32)
    basis = _basis(n, min(d, n), 9, 4)
    gram = basis @ basis.T
    assert np.array_equal(gram, np.diag(np.diag(gram)))
    best = basis.T @ np.linalg.lstsq(basis.T, x, rcond=None)[0]
    assert np.allclose(subspace.project(x, d, 9, 4), best, atol=1e-6)


def test_what_is_sent_lies_in_the_subspace_and_near_the_projection() -> None:
    arrays = heavy({"a": (30, 40), "b": (17,)})
    codec = make("subspace", dimensions=48, seed=3)
    state, n = codec.init({"a": (30, 40), "b": (17,)}), 1217
    for counter in range(3):
        state, payload = codec.encode(state, arrays)
        y = flat(codec.decode(payload, limits(arrays)))
        assert len(payload) == 5 + 3 + 2 + 24
        assert np.allclose(subspace.project(y, 48, 3, counter), y, rtol=1e-6)
        projected = subspace.project(flat(arrays), 48, 3, counter)
        assert np.linalg.norm(y - projected) <= 0.15 * np.linalg.norm(projected)
        assert np.linalg.norm(flat(arrays) - y) < np.linalg.norm(flat(arrays))
        assert len(y) == n


def test_the_subspace_is_another_one_each_time_and_the_same_for_equal_counts() -> None:
    x = np.ones(500, np.float32)
    drawn = {subspace.project(x, 8, seed, counter).tobytes() for seed in (0, 1) for counter in range(20)}
    assert len(drawn) == 40
    assert subspace.project(x, 8, 1, 2).tobytes() in drawn


def test_projections_average_to_the_share_of_dimensions() -> None:
    """E[P] = d / n: what makes ``gain`` = n / d unbiased."""
    x = np.random.default_rng(0).standard_t(3, 400).astype(np.float32)
    mean = np.mean([subspace.project(x, 40, 0, c) for c in range(4000)], axis=0)
    assert np.linalg.norm(mean * 10 - x) < 0.1 * np.linalg.norm(x)


def test_gain_multiplies_and_error_feedback_takes_it_into_account() -> None:
    arrays = heavy({"a": (600,)})
    plain, strong = make("subspace", dimensions=30), make("subspace", dimensions=30, gain=20.0)
    one, two = (
        c.decode(c.encode(c.init({"a": (600,)}), arrays)[1], limits(arrays))["a"] for c in (plain, strong)
    )
    assert np.allclose(20 * one, two, rtol=0.02, atol=1e-9)
    fed = make("subspace", dimensions=30, error_feedback=True)
    state, payload = fed.encode(fed.init({"a": (600,)}), arrays)
    left = residual(state)["a"]
    assert np.allclose(left + fed.decode(payload, limits(arrays))["a"], arrays["a"], atol=1e-8)


def test_four_bits_lose_little_of_normal_coefficients() -> None:
    """A uniform quantizer of 16 levels has a relative error of 0.01154 (Max 1960) on a normal variable."""
    means = np.random.default_rng(0).normal(size=4096)
    code, levels = subspace._quantize(means)
    half = float(subspace.from_code(np.array([code], np.uint16))[0])
    error = float(np.square(means - half * (2.0 * levels - 15)).mean())
    assert error == pytest.approx(0.01154, rel=0.06)


def test_philox_is_the_published_one() -> None:
    """Known answer of Random123 (philox4x64, 10 rounds, counter and key zero); NumPy counts up first."""
    raw = np.random.Philox(counter=[2**64 - 1] * 4, key=[0, 0]).random_raw(4)
    assert [f"{int(w):016x}" for w in raw] == [
        "16554d9eca36314c",
        "db20fe9d672d0fdc",
        "d7e772cee186176b",
        "7e68b68aec7ba23b",
    ]


def test_settings_that_cannot_work_are_refused() -> None:
    for knobs in (
        {"dimensions": 0},
        {"dimensions": 4097},
        {"seed": -1},
        {"gain": 0.0},
        {"gain": float("nan")},
    ):
        with pytest.raises(ConfigError):
            make("subspace", **knobs)
