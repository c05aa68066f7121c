import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from fedge.errors import DataError, PayloadError
from fedge.preprocess import MAX_CHANNELS, Preprocess, fit, from_dict

any_float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def windows(rng: np.random.Generator, n: int = 5, time: int = 7, channels: int = 3) -> NDArray[np.float32]:
    shift = rng.normal(0, 100, channels)
    return (rng.normal(0, 3, (n, time, channels)) + shift).astype(np.float32)


def naive(p: Preprocess, x: NDArray[Any]) -> NDArray[np.float32]:
    """Scalar float32 arithmetic, one value after the other."""
    n, time, channels = x.shape
    out = np.zeros((n, channels, time), np.float32)
    clip = np.float32(p.clip)
    for i, t, c in np.ndindex(n, time, channels):
        with np.errstate(over="ignore"):
            z = (np.float32(x[i, t, c]) - p.mean[c]) / p.scale[c]
        out[i, c, t] = -clip if z < -clip else clip if z > clip else z
    return out


@given(
    arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 5), st.just(2)), elements=any_float32),
    arrays(np.float32, 2, elements=any_float32),
    arrays(np.float32, 2, elements=st.floats(2.0**-126, 2.0**100, width=32)),
    st.floats(0.125, 1000, width=32),
)
def test_every_way_gives_the_bits_of_scalar_arithmetic(
    x: NDArray[np.float32], mean: NDArray[np.float32], scale: NDArray[np.float32], clip: float
) -> None:
    p = Preprocess(mean, scale, clip)
    expected = naive(p, x)
    assert p.apply(x).tobytes() == expected.tobytes()
    assert p.apply(np.asfortranarray(x)).tobytes() == expected.tobytes()
    out = np.empty_like(expected)
    assert p.apply(x, out) is out
    assert out.tobytes() == expected.tobytes()


def naive_image(p: Preprocess, x: NDArray[Any]) -> NDArray[np.float32]:
    """An image is a window whose times are its pixels, row by row."""
    n, height, width, channels = x.shape
    return naive(p, x.reshape(n, height * width, channels)).reshape(n, channels, height, width)


pixel_types = st.sampled_from([np.uint8, np.int8, np.uint16, np.int64, np.float32, np.float64])


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4)),
    pixel_types,
    st.floats(0.125, 100, width=32),
)
def test_every_way_of_an_image_gives_the_bits_of_scalar_arithmetic(
    seed: int, shape: tuple[int, ...], kind: type, clip: float
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 128 if kind is np.int8 else 256, shape).astype(kind)
    mean, scale = rng.uniform(0, 255, shape[-1]), rng.uniform(0.5, 90, shape[-1])
    p = Preprocess(mean.astype(np.float32), scale.astype(np.float32), clip)
    expected = naive_image(p, x)
    result = p.apply(x)
    assert result.flags.c_contiguous
    assert result.dtype == np.float32
    assert result.tobytes() == expected.tobytes()
    assert p.apply(np.asfortranarray(x)).tobytes() == expected.tobytes()


def test_bytes_of_a_camera_do_not_wrap_around() -> None:
    """In uint8, 0 - 200 would be 56."""
    p = Preprocess(np.array([200], np.float32), np.array([100], np.float32))
    x = np.array([0, 200, 255], np.uint8).reshape(1, 1, 3, 1)
    expected = np.array([-2, 0, 0.55], np.float32)
    assert np.array_equal(p.apply(x).ravel(), expected)


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_fit_on_images_is_per_channel_over_all_pixels(kind: type) -> None:
    rng = np.random.default_rng(8)
    x = rng.integers(0, [40, 90, 250], (20, 8, 6, 3)).astype(kind)
    p = fit(x)
    for c in range(3):
        pixels = [float(v) for v in x[..., c].ravel()]
        mean = sum(pixels) / len(pixels)
        assert p.mean[c] == pytest.approx(mean, rel=1e-6)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in pixels) / len(pixels))
        assert p.scale[c] == pytest.approx(deviation, rel=1e-6)
    z = p.apply(x).astype(np.float64)
    np.testing.assert_allclose(z.mean(axis=(0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(z.std(axis=(0, 2, 3)), 1, atol=1e-5)


def test_constant_channel_of_images_comes_out_as_zeros() -> None:
    x = np.random.default_rng(9).integers(0, 256, (4, 5, 6, 2), np.uint8)
    x[..., 1] = 255
    p = fit(x)
    assert p.scale[1] == 1.0
    assert not p.apply(x)[:, 1].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_broken_pixel_is_refused(bad: float) -> None:
    x = np.random.default_rng(10).normal(size=(2, 4, 5, 3)).astype(np.float32)
    p = fit(x)
    x[1, 2, 3, 1] = bad
    for use in (fit, p.apply):
        with pytest.raises(DataError, match="finite"):
            use(x)


def test_result_is_channels_first_float32_contiguous_and_clipped() -> None:
    rng = np.random.default_rng(0)
    x = windows(rng)
    x[0, 0, 0] = 1e9
    p = fit(windows(rng), clip=4.0)
    z = p.apply(x)
    assert z.shape == (5, 3, 7)
    assert z.dtype == np.float32
    assert z.flags.c_contiguous
    assert z[0, 0, 0] == 4.0


def test_fit_gives_zero_mean_and_unit_deviation_per_channel() -> None:
    x = windows(np.random.default_rng(1), n=50)
    z = fit(x).apply(x).astype(np.float64)
    np.testing.assert_allclose(z.mean(axis=(0, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(z.std(axis=(0, 2)), 1, atol=1e-5)


@pytest.mark.parametrize("constant", [0.0, 0.1, -9.80665, 1e6, 3e38, 1e-40])
def test_constant_channel_comes_out_as_zeros(constant: float) -> None:
    x = windows(np.random.default_rng(2))
    x[:, :, 1] = constant
    p = fit(x)
    assert p.scale[1] == 1.0
    np.testing.assert_allclose(p.apply(x)[:, 1], 0, atol=1e-6 * max(1.0, abs(constant)))


def test_nearly_constant_channel_is_not_blown_up_by_its_rounding() -> None:
    x = windows(np.random.default_rng(3))
    x[:, :, 0] = 1e6
    x[0, 0, 0] = np.nextafter(np.float32(1e6), np.float32(2e6))
    assert fit(x).scale[0] == 1.0


def test_integers_and_float64_are_rounded_to_float32_first() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(0, 1, (4, 5, 2)) * 1e3
    p = fit(x)
    assert p.apply(x).tobytes() == p.apply(x.astype(np.float32)).tobytes()
    whole = x.astype(np.int16)
    assert p.apply(whole).tobytes() == p.apply(whole.astype(np.float32)).tobytes()
    long = np.full((1, 5, 2), 2**24 + 1)  # float32 has no such number
    big = Preprocess(np.full(2, 2.0**24, np.float32), np.full(2, 0.5, np.float32))
    assert not big.apply(long).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_values_that_are_not_finite_float32_are_refused(bad: float) -> None:
    good = windows(np.random.default_rng(5))
    x = good.astype(np.float64)
    x[2, 3, 1] = bad
    with pytest.raises(DataError, match="finite"):
        fit(x)
    p = fit(good)
    for wrong in (x, x.astype(np.float32) if abs(bad) != 1e39 else x):
        with pytest.raises(DataError, match="finite"):
            p.apply(wrong)


@pytest.mark.parametrize(
    "shape", [(7, 3), (2, 7, 4), (2, 3, 7), (2, 7, 3, 1), (2, 3, 7, 7), (2, 1, 1, 7, 3), (0,), (7,), ()]
)
def test_windows_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    p = fit(windows(np.random.default_rng(6)))
    with pytest.raises(DataError, match="windows must be"):
        p.apply(np.zeros(shape, np.float32))


@pytest.mark.parametrize("kind", ["<U3", "complex64", "bool", "object"])
def test_windows_that_are_no_numbers_are_refused(kind: str) -> None:
    p = fit(windows(np.random.default_rng(6)))
    with pytest.raises(DataError, match="numbers"):
        p.apply(np.zeros((2, 7, 3), kind))


@pytest.mark.parametrize(
    "shape",
    [
        (0, 7, 3),
        (5, 0, 3),
        (5, 7, 0),
        (5, 7),
        (2, 0, 7, 3),
        (2, 7, 7, 0),
        (1, 2, 3, 4, 5),
        (),
        (1, 1, MAX_CHANNELS + 1),
    ],
)
def test_nothing_to_fit_on_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError):
        fit(np.zeros(shape, np.float32))


def test_no_windows_are_no_error_to_apply() -> None:
    p = fit(windows(np.random.default_rng(7)))
    assert p.apply(np.zeros((0, 7, 3), np.float32)).shape == (0, 3, 7)
    assert p.apply(np.zeros((0, 4, 5, 3), np.uint8)).shape == (0, 3, 4, 5)


def test_arrays_inside_cannot_be_changed() -> None:
    mean = np.zeros(2, np.float32)
    p = Preprocess(mean, np.ones(2, np.float32))
    mean[0] = 5
    assert p.mean[0] == 0
    with pytest.raises(ValueError, match="read-only"):
        p.scale[0] = 3


@given(
    st.lists(st.tuples(any_float32, st.floats(2.0**-126, 2.0**127, width=32)), min_size=1, max_size=5),
    st.floats(1e-3, 1e6),
)
def test_round_trip_through_json_keeps_every_bit(values: list[tuple[float, float]], clip: float) -> None:
    mean, scale = (np.array(v, np.float32) for v in zip(*values, strict=True))
    p = Preprocess(mean, scale, clip)
    q = from_dict(json.loads(json.dumps(p.to_dict())))
    assert q.mean.tobytes() == p.mean.tobytes()
    assert q.scale.tobytes() == p.scale.tobytes()
    assert q.clip == p.clip


GOOD = {"mean": [0.0, 1.0], "scale": [1.0, 2.0], "clip": 10.0}


@pytest.mark.parametrize(
    "raw",
    [
        None,
        [],
        {},
        GOOD | {"more": 1},
        {"mean": [0.0], "scale": [1.0]},
        GOOD | {"mean": [0.0]},
        GOOD | {"mean": []},
        GOOD | {"mean": "01"},
        GOOD | {"mean": [0.0, "1"]},
        GOOD | {"mean": [0.0, True]},
        GOOD | {"mean": [0.0, None]},
        GOOD | {"mean": [[0.0], [1.0]]},
        GOOD | {"mean": [0.0, math.nan]},
        GOOD | {"mean": [0.0, math.inf]},
        GOOD | {"mean": [0.0, 1e39]},
        GOOD | {"mean": [0.0, 10**400]},
        GOOD | {"scale": [1.0, 0.0]},
        GOOD | {"scale": [1.0, -1.0]},
        GOOD | {"scale": [1.0, 1e-50]},
        GOOD | {"clip": 0},
        GOOD | {"clip": -1.0},
        GOOD | {"clip": math.nan},
        GOOD | {"clip": math.inf},
        GOOD | {"clip": [1.0]},
        {"mean": [0.0] * (MAX_CHANNELS + 1), "scale": [1.0] * (MAX_CHANNELS + 1), "clip": 1.0},
    ],
)
def test_malformed_preprocessing_is_refused(raw: object) -> None:
    from_dict(GOOD)
    with pytest.raises(PayloadError):
        from_dict(raw)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200)
@given(st.fixed_dictionaries({key: json_values | st.just(GOOD[key]) for key in GOOD}))
def test_nothing_but_payload_error_escapes_the_parser(raw: dict[str, Any]) -> None:
    try:
        p = from_dict(raw)
    except PayloadError:
        return
    assert np.isfinite(p.mean).all()
    assert (p.scale > 0).all()
