from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedge.compress.quantize import (
    METHODS,
    Calibration,
    Scales,
    bounded,
    bounds,
    calibrate,
    fake_quantized,
    weight_scale,
    zero_point,
)
from fedge.errors import ConfigError, PayloadError
from fedge.models.student import Numerics, Params, StudentSpec, activations, forward

from . import integer
from .students import ALL, Windows, arrays, movement, noise, same_class, spec_for, student, weights

Make = Callable[[int, StudentSpec], Windows]
MIN_MAX = Calibration("minmax", headroom=1)


def fake(spec: StudentSpec, params: Params, scales: Scales, x: Windows) -> Windows:
    with torch.no_grad():
        logits: Windows = forward(spec, params, torch.from_numpy(x), fake_quantized(spec, scales)).numpy()
    return logits


@pytest.mark.parametrize(
    ("size", "channels", "time"), [("tiny", 6, 64), ("tiny", 1, 9), ("small", 3, 31), ("medium", 2, 4)]
)
@pytest.mark.parametrize("windows", [noise, movement])
def test_fake_quantization_computes_what_integers_compute(
    size: str, channels: int, time: int, windows: Make
) -> None:
    spec, params = student(size, channels, time)
    x = windows(400, spec)
    scales = calibrate(spec, params, torch.from_numpy(x[:100]), Calibration())
    got, reference = (
        fake(spec, params, scales, x),
        integer.outputs(spec, arrays(params), scales, x.astype(np.float64)),
    )
    assert same_class(got, reference.astype(np.float32)) >= 0.995
    # A value that lies between two steps may fall to either side; nothing else may differ.
    assert np.abs(got - reference).max() < 0.05 * reference.std()
    assert np.mean(np.abs(got - reference) < 1e-4 * reference.std()) > 0.9


@pytest.mark.parametrize(
    ("family", "size", "window", "rebuilds"), [k for k in ALL if k[1] in ("tiny", "small")]
)
def test_any_student_is_rounded_as_integers_round(
    family: str, size: str, window: tuple[int, ...], rebuilds: bool
) -> None:
    spec = spec_for(family, size, window, rebuilds)
    params, x = weights(spec), noise(16, spec)
    scales = calibrate(spec, params, torch.from_numpy(x), Calibration("mse"))
    reference = integer.outputs(spec, arrays(params), scales, x.astype(np.float64))
    got = fake(spec, params, scales, x)
    assert np.abs(got - reference).max() < 0.1 * reference.std()
    assert np.mean(np.abs(got - reference) < 1e-4 * reference.std()) > 0.8


def test_int8_stays_close_to_float() -> None:
    spec, params = student("small", 6, 64)
    x = movement(400, spec)
    scales = calibrate(spec, params, torch.from_numpy(x), Calibration())
    with torch.no_grad():
        exact = forward(spec, params, torch.from_numpy(x)).numpy()
    error = np.sqrt(np.mean((fake(spec, params, scales, x) - exact) ** 2))
    assert 0 < error < 0.05 * exact.std()


def _numerics() -> tuple[StudentSpec, Numerics, dict[str, float]]:
    spec, _ = student("tiny", 2, 16)
    scales = dict(zip(activations(spec), [0.05, 0.01, 0.02, 0.03, 0.04, 0.015], strict=True))
    return spec, fake_quantized(spec, scales), scales


@given(st.integers(0, 2**32 - 1), st.floats(0, 0.95))
def test_a_pruned_weight_stays_zero(seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 3, 4, generator=generator)
    weight[torch.rand(weight.shape, generator=generator) < share] = 0
    rounded, _ = _numerics()[1].weights("conv1", weight, torch.zeros(5))
    assert torch.equal(rounded[weight == 0], weight[weight == 0])


def test_a_weight_is_off_by_half_a_step_at_most_and_the_largest_by_nothing() -> None:
    weight = (
        torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 2, 6)[:, None]
    )
    rounded, _ = _numerics()[1].weights("head", weight, torch.zeros(6))
    step = weight_scale(weight)
    assert bool(((rounded - weight).abs() <= step[:, None] * 0.5001).all())
    torch.testing.assert_close(rounded.abs().amax(1), weight.abs().amax(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("place", range(6))
def test_zero_stays_zero_in_every_activation(place: int) -> None:
    spec, numerics, _ = _numerics()
    name = activations(spec)[place]
    assert zero_point(name) == (0 if name == "input" else -128)
    assert float(numerics.activation(name, torch.zeros(1))) == 0


@pytest.mark.parametrize("kind", [fake_quantized, bounded])
@pytest.mark.parametrize("place", range(6))
def test_the_gradient_is_one_inside_the_range_and_zero_where_a_value_is_clipped(
    place: int, kind: Callable[[StudentSpec, Scales], Numerics]
) -> None:
    spec, _, scales = _numerics()
    name, numerics = activations(spec)[place], kind(spec, scales)
    step, zero = scales[name], zero_point(name)
    lowest, highest = (-128 - zero) * step, (127 - zero) * step
    inside = torch.linspace(lowest + 0.01 * step, highest - 0.01 * step, 101)
    outside = torch.tensor([lowest - step, lowest - 100, highest + step, highest + 100])
    for values, slope in ((inside, 1.0), (outside, 0.0)):
        values.requires_grad_()
        out = numerics.activation(name, values)
        out.sum().backward()  # type: ignore[no-untyped-call]
        assert values.grad is not None
        assert bool((values.grad == slope).all())
        assert bool((out.detach() >= lowest - 1e-5).all())
        assert bool((out.detach() <= highest + 1e-5).all())


@pytest.mark.parametrize("place", range(6))
def test_the_float_student_keeps_to_the_range_of_int8_and_rounds_nothing(place: int) -> None:
    spec, numerics, scales = _numerics()
    name = activations(spec)[place]
    assert bounds(name, scales[name]) == pytest.approx(
        (-128 * scales[name], 127 * scales[name]) if name == "input" else (0, 255 * scales[name])
    )
    values = torch.linspace(-20, 20, 1001)
    held, rounded = bounded(spec, scales).activation(name, values), numerics.activation(name, values)
    assert float((held - rounded).abs().max()) <= 0.501 * scales[name]
    low, high = bounds(name, scales[name])
    torch.testing.assert_close(
        held, torch.from_numpy(np.clip(values.numpy(), np.float32(low), np.float32(high)))
    )


def test_gradients_pass_straight_through_weights_and_biases() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, 5, generator=generator, requires_grad=True)
    bias = torch.randn(4, generator=generator, requires_grad=True)
    slope_w, slope_b = torch.randn(weight.shape, generator=generator), torch.randn(4, generator=generator)
    rounded, b = _numerics()[1].weights("conv2", weight, bias)
    ((rounded * slope_w).sum() + (b * slope_b).sum()).backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    assert bias.grad is not None
    torch.testing.assert_close(weight.grad, slope_w)
    torch.testing.assert_close(bias.grad, slope_b)


def test_a_bias_is_rounded_to_the_step_of_the_sum() -> None:
    _, numerics, scales = _numerics()
    weight = torch.zeros(3, 2, 5)
    weight[:, 0, 0] = torch.tensor([127.0, 12.7, 1.27])  # steps 1, 0.1, 0.01
    bias = torch.tensor([0.33, 0.33, 0.33])
    _, rounded = numerics.weights("conv1", weight, bias)
    fine = [scales["input"] * s for s in (1, 0.1, 0.01)]  # of the layer's input, not of its output
    expected = torch.tensor([round(0.33 / f) * f for f in fine])
    torch.testing.assert_close(rounded, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("value", [None, 0.0, -0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("place", range(6))
def test_scales_that_cannot_be_used_are_refused(place: int, value: float | None) -> None:
    spec, _, scales = _numerics()
    name = activations(spec)[place]
    broken = {n: s for n, s in scales.items() if n != name} | ({} if value is None else {name: value})
    for kind in (fake_quantized, bounded):
        with pytest.raises(PayloadError, match=name):
            kind(spec, broken)


def _seen(spec: StudentSpec, params: Params, x: Tensor) -> dict[str, Windows]:
    """The float activations, through a forward pass of our own."""
    seen = {"input": x.numpy()}
    for c in spec.convs:
        x = torch.conv1d(
            x, params[f"{c.name}.weight"], params[f"{c.name}.bias"], c.stride, c.kernel // 2
        ).clamp_min(0)
        seen[c.name] = x.numpy()
    seen["mean"] = x.numpy().mean(axis=2)
    return seen


@pytest.mark.parametrize("percentile", [50, 90, 99, 99.9, 100])
@pytest.mark.parametrize("headroom", [1.0, 1.2])
def test_ranges_are_percentiles_of_the_magnitudes(percentile: float, headroom: float) -> None:
    spec, params = student("tiny", 2, 20)
    x = torch.from_numpy(movement(30, spec))
    scales = calibrate(spec, params, x, Calibration("percentile", percentile, headroom))
    assert list(scales) == activations(spec)
    for name, values in _seen(spec, params, x).items():
        magnitudes = np.abs(values).ravel()
        range_ = scales[name] * (127 if name == "input" else 255) / headroom
        # One rank more or less is a matter of convention; a range of zero gets a floor.
        low, high = (np.clip(percentile / 100 + d / len(magnitudes), 0, 1) for d in (-1, 1))
        lower, higher = (
            np.quantile(magnitudes, low, method="lower"),
            np.quantile(magnitudes, high, method="higher"),
        )
        assert lower * (1 - 1e-5) <= range_ <= higher * (1 + 1e-5) + 1e-5
        assert np.mean(magnitudes > range_ * (1 + 1e-5)) <= 1 - percentile / 100 + 1 / len(magnitudes)


def test_min_max_clips_nothing_it_was_calibrated_on() -> None:
    spec, params = student("tiny", 2, 20)
    x = torch.from_numpy(noise(20, spec))
    scales = calibrate(spec, params, x, MIN_MAX)
    numerics = fake_quantized(spec, scales)
    for name, values in _seen(spec, params, x).items():
        rounded = numerics.activation(name, torch.from_numpy(values)).numpy()
        assert np.abs(rounded - values).max() <= scales[name] * 0.501


def _squared_error(spec: StudentSpec, scales: Scales, name: str, values: Windows) -> float:
    rounded = fake_quantized(spec, scales).activation(name, torch.from_numpy(values)).numpy()
    return float(np.square(rounded.astype(np.float64) - values).sum())


@pytest.mark.parametrize("windows", [noise, movement])
@pytest.mark.parametrize("tail", [1.0, 30.0])
def test_mse_never_rounds_worse_than_minmax_and_much_better_with_outliers(windows: Make, tail: float) -> None:
    spec, params = student("tiny", 3, 30)
    x = windows(60, spec)
    x[0, :, 0] *= tail
    scales = {m: calibrate(spec, params, torch.from_numpy(x), Calibration(m, headroom=1)) for m in METHODS}
    for name, values in _seen(spec, params, torch.from_numpy(x)).items():
        mse, minmax = (_squared_error(spec, scales[m], name, values) for m in ("mse", "minmax"))
        assert mse <= minmax * (1 + 1e-6)
        assert scales["percentile"][name] <= scales["minmax"][name]
        assert scales["mse"][name] <= scales["minmax"][name]


def test_mse_finds_the_range_that_a_search_in_numpy_finds() -> None:
    spec, params = student("tiny", 1, 30)
    x = np.random.default_rng(0).standard_t(2, (50, 1, 30)).astype(np.float32)
    found = calibrate(spec, params, torch.from_numpy(x), Calibration("mse", headroom=1))["input"]
    largest = np.abs(x).max()

    def error(step: float) -> float:
        rounded = np.clip(np.rint(x / step), -128, 127) * step
        return float(np.square(rounded.astype(np.float64) - x).sum())

    best = min(error(float(largest * share / 127)) for share in np.linspace(0.01, 1, 400))
    assert best <= error(found) <= 1.1 * best
    assert error(found) < error(float(largest / 127))


def test_an_unknown_calibration_is_refused_with_those_that_there_are() -> None:
    spec, params = student("tiny", 2, 20)
    with pytest.raises(ConfigError, match="known: minmax, percentile, mse"):
        calibrate(spec, params, torch.zeros(1, 2, 20), Calibration("entropy"))


def test_a_scale_is_exactly_the_float32_that_the_model_will_hold() -> None:
    spec, params = student("tiny", 2, 20)
    scales = calibrate(spec, params, torch.from_numpy(noise(20, spec)), Calibration())
    assert all(float(np.float32(s)) == s for s in scales.values())


def test_a_layer_that_is_never_active_still_has_a_usable_scale() -> None:
    spec, params = student("tiny", 2, 20)
    params["conv2.bias"] -= 1000
    x = noise(20, spec)
    scales = calibrate(spec, params, torch.from_numpy(x), Calibration())
    assert scales["conv2"] > 0
    assert np.isfinite(fake(spec, params, scales, x)).all()
