"""``_table``: tables come back, never lose a symbol that occurs, and cost little."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from fedge.codec import _table
from fedge.codec._container import Reader
from fedge.codec._rans import PRECISION
from fedge.errors import PayloadError

tops = st.sampled_from([1, 3, 7, 15, 31, 63, 127])


@given(tops, st.integers(0, 2**32), st.sampled_from([0.05, 1.0, 4.0]), st.floats(0, 1))
def test_tables_come_back_sum_up_and_miss_nothing(top: int, seed: int, power: float, present: float) -> None:
    rng = np.random.default_rng(seed)
    counts = (1 + 1000 * rng.random(2 * top + 1) ** power).astype(np.int64)
    counts *= rng.random(2 * top + 1) < present
    counts[rng.integers(2 * top + 1)] += 1
    fit = _table.fit(counts, top)
    reader = Reader(fit.data)
    table = _table.read(reader, fit.kind, top)
    reader.end()
    assert np.array_equal(table, fit.table)
    assert int(table.sum()) == 1 << PRECISION
    assert (table[counts > 0] > 0).all()


@pytest.mark.parametrize("kind", [_table.FULL, _table.MIRRORED, _table.KNOTS])
def test_each_kind_of_table_is_the_best_for_something(kind: int) -> None:
    x = np.arange(-31, 32)
    counts = {
        _table.FULL: np.where(x > 0, 10_000 >> np.minimum(x, 20), 0),
        _table.MIRRORED: 1000 * (1 + np.abs(x) % 2 * 3),
        _table.KNOTS: np.ceil(40 * np.exp(-np.abs(x) / 9)),
    }[kind]
    assert _table.fit(counts.astype(np.int64), 31).kind == kind


def test_levels_of_a_quarter_octave_cost_half_a_percent_at_most() -> None:
    rng = np.random.default_rng(3)
    for top in (1, 7, 127):
        counts = rng.integers(1, 10**6, 2 * top + 1)
        fit = _table.fit(counts, top)
        ideal = float(counts.sum()) * float(entropy(counts, base=2))
        assert ideal <= fit.bits <= 1.005 * ideal + 8 * len(fit.data)


@pytest.mark.parametrize("data", ["", "00", "3c", "c0", "ff" + "00" * 80, "3d" + "ff" * 40, "00" + "ff" * 40])
def test_tables_that_end_early_or_have_levels_that_do_not_exist_are_refused(data: str) -> None:
    with pytest.raises(PayloadError):
        _table.read(Reader(bytes.fromhex(data)), _table.FULL, 127)


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(PayloadError, match="empty"):
        _table.read(Reader(bytes.fromhex("00c0")), _table.FULL, 1)
