"""The one-bit peer: its transform against scipy's matrix, its error against the theory."""

import numpy as np
import pytest
from scipy.linalg import hadamard as matrix

from fedge.bench import _eden


@pytest.mark.parametrize("size", [1, 2, 8, 64])
def test_the_transform_is_that_of_the_matrix(size: int) -> None:
    x = np.random.default_rng(size).normal(size=size).astype(np.float32)
    np.testing.assert_allclose(_eden.hadamard(x), matrix(size) @ x / np.sqrt(size), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [0, 1, 127, 128, 129, 11_474, 65_536])
def test_blocks_hold_everything_and_waste_little(count: int) -> None:
    sizes = _eden.blocks(count)
    assert all(s & (s - 1) == 0 for s in sizes)
    assert count <= sum(sizes) < count + 128


def test_the_error_is_that_of_one_bit_on_a_gaussian_whatever_the_input_was() -> None:
    heavy = np.random.default_rng(0).standard_t(3, 20_000).astype(np.float32)
    decoded = _eden.decode(_eden.encode(heavy, 7), len(heavy), 7)
    error = np.linalg.norm(decoded - heavy) / np.linalg.norm(heavy)
    assert error == pytest.approx(np.sqrt(1 - 2 / np.pi), abs=0.01)


def test_a_payload_is_one_bit_an_entry_and_a_scale_a_block() -> None:
    payload = _eden.encode(np.ones(1000, np.float32), 0)
    assert len(payload) == 1024 // 8 + 4 * len(_eden.blocks(1000))


def test_another_seed_is_another_rotation() -> None:
    x = np.random.default_rng(2).normal(size=512).astype(np.float32)
    assert _eden.encode(x, 0) != _eden.encode(x, 1)
    assert _eden.encode(x, 0) == _eden.encode(x, 0)
