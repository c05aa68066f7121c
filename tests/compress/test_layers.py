"""Convolutions laid out otherwise give the same sums."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.compress._layers import Stack, as_described, as_images, side_by_side
from fedge.models.student import Conv, StudentSpec
from fedge.models.student_families import build_spec

from .students import Windows, arrays, weights


def ran(stack: Stack, x: Windows) -> Windows:
    """Results of all layers in float64, for windows ``[n, time, channels]`` or images."""
    y = torch.from_numpy(x.reshape(len(x), *stack.window)).double().movedim(-1, 1)
    flat = y.dim() - 2
    for layer in stack.layers:
        pads = [p for axis in reversed(range(flat)) for p in (layer.pads[axis], layer.pads[axis + flat])]
        convolve = F.conv1d if flat == 1 else F.conv2d
        weight, bias = torch.from_numpy(layer.weight).double(), torch.from_numpy(layer.bias).double()
        y = convolve(F.pad(y, pads), weight, bias, stride=layer.strides, groups=layer.groups).relu()
        assert y.shape[1:] == layer.shape
    made: Windows = y.flatten(2).numpy()
    return made


@settings(deadline=None, max_examples=60)
@given(
    channels=st.integers(1, 15),
    steps=st.integers(1, 12),
    stride=st.integers(1, 4),
    kernel=st.sampled_from([1, 3, 5, 7]),
    seed=st.integers(0, 2**32 - 1),
)
def test_samples_side_by_side_give_the_same_sums(
    channels: int, steps: int, stride: int, kernel: int, seed: int
) -> None:
    time = steps * stride
    spec = StudentSpec(channels, (time,), 3, (Conv("conv1", channels, 4, kernel, stride),))
    stack = as_described(spec, arrays(weights(spec)))
    made = side_by_side(stack)
    fours = channels % 4 != 0 and channels * stride % 4 == 0
    assert made.window == ((steps, stride * channels) if fours else (time, channels))
    x = np.random.default_rng(seed).normal(size=(2, time, channels)).astype(np.float32)
    np.testing.assert_allclose(ran(made, x), ran(stack, x), rtol=1e-12, atol=1e-12)


def test_a_time_that_strides_do_not_divide_is_left_alone() -> None:
    for time, changed in ((31, False), (32, True)):
        spec = build_spec("plain", "tiny", (time, 6), 3)
        made = side_by_side(as_described(spec, arrays(weights(spec))))
        assert (made.window != spec.window) == changed
        assert made.input == made.window[::-1]


@pytest.mark.parametrize("family", ["plain", "separable"])
def test_a_window_as_an_image_of_one_row_gives_the_same_sums(family: str) -> None:
    spec = build_spec(family, "tiny", (30, 6), 3)
    stack = as_described(spec, arrays(weights(spec)))
    x = np.random.default_rng(0).normal(size=(2, 30, 6)).astype(np.float32)
    made = as_images(stack)
    assert made.window == (1, 30, 6)
    np.testing.assert_allclose(ran(made, x), ran(stack, x), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(ran(side_by_side(stack), x), ran(stack, x), rtol=1e-12, atol=1e-12)


def test_images_are_left_as_they_are() -> None:
    spec = build_spec("plain", "tiny", (16, 16, 2), 3)
    stack = as_described(spec, arrays(weights(spec)))
    assert as_images(stack) is side_by_side(stack) is stack


def test_a_depthwise_first_convolution_is_left_as_it_is() -> None:
    spec = StudentSpec(6, (32,), 3, (Conv("conv1", 6, 6, 3, 2, 6),))
    stack = as_described(spec, arrays(weights(spec)))
    assert side_by_side(stack) is stack
    assert side_by_side(replace(stack, layers=(replace(stack.layers[0], groups=6),))).window == (32, 6)
