"""Peers must give back what they were given, or their sizes mean nothing; a missing one must be named."""

import sys

import numpy as np
import pytest

from fedge.bench._entropy import entropy_bits
from fedge.bench._peers import bytewise, ideal

LEVELS = np.random.default_rng(0).choice(np.array([-1, 0, 1], np.int8), 20_000, p=[0.02, 0.95, 0.03])


def test_coders_of_bytes_are_lossless() -> None:
    coders, _ = bytewise()
    for coder in coders:
        packed = coder.compress(LEVELS.tobytes())
        assert len(packed) < len(LEVELS)
        assert coder.decompress(packed) == LEVELS.tobytes()


@pytest.mark.parametrize("levels", [LEVELS, np.zeros(9, np.int8), np.int8([-127, 127, 5])], ids=len)
def test_the_entropy_coder_is_lossless(levels: np.ndarray) -> None:
    pytest.importorskip("constriction")
    coder, missing = ideal()
    assert coder is not None
    assert not missing
    assert np.array_equal(coder.decode(coder.encode(levels), levels), levels)


def test_the_entropy_coder_is_at_the_entropy() -> None:
    pytest.importorskip("constriction")
    coder, _ = ideal()
    assert coder is not None
    assert 1 <= 8 * len(coder.encode(LEVELS)) / entropy_bits(LEVELS) < 1.02


def test_what_is_not_installed_is_named_and_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("compression.zstd", "zstandard", "constriction"):
        monkeypatch.setitem(sys.modules, name, None)
    coders, missing = bytewise()
    assert [c.name for c in coders] == ["zlib"]
    assert missing == ["zstd: needs Python 3.14 or the package zstandard"]
    assert ideal() == (None, ["constriction: needs the package constriction"])
