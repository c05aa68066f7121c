"""``_scale``: sixteen bits for any scale."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.codec._scale import SMALLEST, from_code, to_code
from fedge.errors import PayloadError


def _value(code: int) -> float:
    return float(from_code(np.array([code], np.uint16))[0])


@given(st.floats(2.0**-126, 2.0**120))
def test_a_scale_comes_back_within_a_512th_and_rounds_up_when_asked(value: float) -> None:
    assert abs(_value(to_code(value)) - value) <= value / 512 * 1.0001
    assert value * (1 - 1e-7) <= _value(to_code(value, up=True)) <= value * (1 + 1 / 255)


def test_every_code_is_its_own_nearest_and_larger_codes_are_larger_scales() -> None:
    codes = np.arange(SMALLEST, to_code(np.inf) + 1, dtype=np.uint16)
    values = from_code(codes)
    assert (np.diff(values) > 0).all()
    assert [to_code(float(v)) for v in values[::17]] == codes[::17].tolist()


def test_what_is_too_small_is_zero_and_what_is_too_large_is_the_largest() -> None:
    assert to_code(0.0) == to_code(1e-40) == to_code(1e-39, up=True) == 0
    assert _value(to_code(1e300)) == _value(to_code(float("inf"), up=True)) == 2.0**120
    assert np.isfinite(np.float32(127) * from_code(np.array([to_code(1e300)])))


@pytest.mark.parametrize("code", [1, SMALLEST - 1, 0xFF00, 0x7F80 << 1, 0xFFFF])
def test_codes_that_no_encoder_gives_are_refused(code: int) -> None:
    with pytest.raises(PayloadError, match="scale"):
        from_code(np.array([0, code], np.uint16))
