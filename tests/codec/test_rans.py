"""``_rans`` against a coder of one lane at a time in plain integers, and against the entropy of scipy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import entropy

from fedge.codec import _rans
from fedge.errors import PayloadError

TOTAL = 1 << _rans.PRECISION


def _table(rng: np.random.Generator, kinds: int) -> NDArray[np.uint32]:
    weights = rng.exponential(size=kinds) ** 3
    table = np.maximum((weights / weights.sum() * (TOTAL - kinds)).astype(np.int64), 1)
    table[0] += TOTAL - table.sum()
    return table.astype(np.uint32)


def _naive(symbols: list[int], table: list[int], lanes: int, spare: list[int]) -> bytes:
    """The textbook recurrence x -> (x // f) 2^p + x % f + start, on lists of Python integers."""
    starts = [sum(table[:s]) for s in range(len(table))]
    states, words = [(1 << 16) + w for w in spare], []
    rows = [symbols[at : at + lanes] for at in range(0, len(symbols), lanes)]
    for row in reversed(rows):
        out = []
        for lane, s in enumerate(row):
            if states[lane] >= table[s] << 17:
                out.append(states[lane] & 0xFFFF)
                states[lane] >>= 16
            q, r = divmod(states[lane], table[s])
            states[lane] = (q << _rans.PRECISION) + r + starts[s]
        words = out + words
    return b"".join(x.to_bytes(4, "little") for x in states) + b"".join(
        w.to_bytes(2, "little") for w in words
    )


@given(st.integers(0, 2**32), st.integers(1, 400), st.integers(1, 40), st.integers(1, 255))
def test_bytes_are_those_of_the_naive_coder_and_come_back(seed: int, n: int, lanes: int, kinds: int) -> None:
    rng = np.random.default_rng(seed)
    lanes = min(lanes, n)
    table = _table(rng, kinds)
    symbols = rng.integers(0, kinds, n).astype(np.uint8)
    spare = rng.integers(0, 1 << 16, lanes).astype(np.uint16)
    data = _rans.encode(symbols, table, lanes, spare)
    assert data == _naive(symbols.tolist(), table.tolist(), lanes, spare.tolist())
    decoded, left = _rans.decode(data, n, table, lanes)
    assert np.array_equal(decoded, symbols)
    assert np.array_equal(left, spare)


def test_symbols_drawn_from_the_table_cost_their_entropy() -> None:
    rng = np.random.default_rng(1)
    for kinds in (2, 7, 255):
        table = _table(rng, kinds)
        symbols = rng.choice(kinds, 50_000, p=table / TOTAL).astype(np.uint8)
        data = _rans.encode(symbols, table, 16, np.zeros(16, np.uint16))
        cost = 50_000 * float(entropy(np.bincount(symbols, minlength=kinds), table / TOTAL, base=2))
        cost += 50_000 * float(entropy(np.bincount(symbols, minlength=kinds), base=2))
        assert abs(len(data) - cost / 8) <= 0.001 * cost / 8 + 4 * 16


def test_a_table_of_one_symbol_costs_only_the_lanes() -> None:
    table = np.array([0, TOTAL, 0], np.uint32)
    data = _rans.encode(np.ones(1000, np.uint8), table, 3, np.zeros(3, np.uint16))
    assert len(data) == 12
    assert _rans.decode(data, 1000, table, 3)[0].tolist() == [1] * 1000


def test_damage_and_wrong_lengths_are_refused() -> None:
    rng = np.random.default_rng(2)
    table = _table(rng, 5)
    data = _rans.encode(rng.integers(0, 5, 300).astype(np.uint8), table, 4, np.zeros(4, np.uint16))
    low_state = b"\xff\xff\0\0" + data[4:]
    for broken in (data[:-2], data[:-1], data + b"\0\0", data[:12], b"", low_state):
        with pytest.raises(PayloadError):
            _rans.decode(broken, 300, table, 4)
