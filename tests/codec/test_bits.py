"""``_bits`` against strings of binary digits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.codec import _bits
from fedge.errors import PayloadError

fields = st.lists(st.integers(0, 40).flatmap(lambda w: st.tuples(st.integers(0, 2**w - 1), st.just(w))))


@given(fields)
def test_fields_are_the_binary_digits_one_after_the_other(pairs: list[tuple[int, int]]) -> None:
    values = np.array([v for v, _ in pairs], np.int64)
    widths = np.array([w for _, w in pairs], np.int64)
    bits = _bits.pack(values, widths)
    assert "".join(map(str, bits)) == "".join(f"{v:0{w}b}" if w else "" for v, w in pairs)
    assert np.array_equal(_bits.unpack(bits, widths), values)


def test_bits_that_end_early_are_refused() -> None:
    with pytest.raises(PayloadError, match="7 bits expected, 6 left"):
        _bits.unpack(np.ones(6, np.uint8), np.array([3, 4]))


@pytest.mark.parametrize("left", [[0, 0, 1], [0] * 8, [1]])
def test_filling_must_be_short_and_zero(left: list[int]) -> None:
    with pytest.raises(PayloadError, match="trailing"):
        _bits.end(np.array(left, np.uint8))
    _bits.end(np.zeros(7, np.uint8))
