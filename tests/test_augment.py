import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from fedge.augment import (
    ImageVariation,
    WindowVariation,
    corrupted,
    rotations,
    triples_of,
    vary_images,
    vary_windows,
)
from fedge.errors import ConfigError

STILL = WindowVariation(scale=0, jitter=0, offset=0, shift=0)
"""Nothing but the shift by one sample, which is the least there is."""
PLAIN = ImageVariation(shift=0, brightness=0, contrast=0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed))


# What every function obeys.

VARIATIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "windows": lambda x, g: vary_windows(x, g, WindowVariation()),
    "windows, rotated": lambda x, g: vary_windows(x, g, WindowVariation(rotation=20, triples=((0, 1, 2),))),
    "images": lambda x, g: vary_images(x, g, ImageVariation()),
    "corrupted": corrupted,
}
SHAPES = {"windows": (4, 50), "windows, rotated": (4, 50), "images": (3, 12, 10), "corrupted": (4, 50)}

every_variation = pytest.mark.parametrize("kind", list(VARIATIONS))


@every_variation
def test_what_comes_out_follows_from_the_generator_only(kind: str) -> None:
    x = noise(6, *SHAPES[kind])
    kept = x.clone()
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = VARIATIONS[kind](x, seeded(1))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(9)
    assert torch.equal(VARIATIONS[kind](x, seeded(1)), first)
    assert not torch.equal(VARIATIONS[kind](x, seeded(2)), first)
    assert torch.equal(x, kept)


@every_variation
@pytest.mark.parametrize("n", [1, 7])
def test_shape_and_dtype_stay_and_nothing_becomes_infinite(kind: str, n: int) -> None:
    channels, *size = SHAPES[kind]
    for shape in ((n, channels, *size), (n, channels, *([1] * len(size))), (0, channels, *size)):
        for scale in (0.0, 1.0, 1e3):
            varied = VARIATIONS[kind](scale * noise(*shape), seeded(3))
            assert (varied.shape, varied.dtype) == (shape, torch.float32)
            assert bool(torch.isfinite(varied).all())


@every_variation
def test_each_of_a_batch_varies_in_its_own_way(kind: str) -> None:
    varied = VARIATIONS[kind](noise(1, *SHAPES[kind]).expand(4, *SHAPES[kind]), seeded(1))
    assert all(not torch.allclose(a, b, atol=1e-2) for a, b in pairwise(varied))


# Windows.


def as_measured(x: Tensor, generator: torch.Generator) -> Tensor:
    """What the smartwatch results were measured with: scale, offset, noise, shift, in this order."""
    n, channels, time = x.shape
    scale = 1 + 0.15 * torch.randn(n, channels, 1, generator=generator)
    offset = 0.2 * torch.randn(n, channels, 1, generator=generator)
    added = 0.05 * torch.randn(x.shape, generator=generator)
    most = max(1, round(0.08 * time))
    shift = torch.randint(-most, most + 1, (n, 1), generator=generator)
    source = (torch.arange(time) + shift).clamp(0, time - 1)
    return (x * scale + offset + added).gather(2, source[:, None].expand_as(x))


@pytest.mark.parametrize("shape", [(16, 6, 128), (3, 1, 4), (1, 2, 1)])
@pytest.mark.parametrize(
    "how",
    [WindowVariation(), WindowVariation(rotation=15.0), WindowVariation(triples=((0, 0, 0),))],
    ids=["default", "no triples", "no angle"],
)
def test_without_rotation_the_bits_are_those_of_the_measured_results(
    shape: tuple[int, int, int], how: WindowVariation
) -> None:
    one, other = seeded(5), seeded(5)
    x = noise(*shape)
    for _ in range(3):  # and the generator is left where it was left then
        assert torch.equal(vary_windows(x, one, how), as_measured(x, other))


def test_scale_offset_and_noise_are_as_stated() -> None:
    """Independent from channel to channel."""
    x = torch.zeros(4000, 2, 50)
    varied = vary_windows(x, seeded(), WindowVariation()).numpy()
    offset = varied.mean(axis=2)
    np.testing.assert_allclose(offset.std(axis=0), np.hypot(0.2, 0.05 / 50**0.5), rtol=0.05)
    np.testing.assert_allclose((varied - offset[:, :, None]).std(), 0.05 * (49 / 50) ** 0.5, rtol=0.05)
    assert abs(np.corrcoef(offset.T)[0, 1]) < 0.05
    scale = vary_windows(x + 1000, seeded(), WindowVariation()).numpy().mean(axis=2) / 1000
    np.testing.assert_allclose(scale.std(axis=0), 0.15, rtol=0.05)
    assert abs(scale.mean() - 1) < 0.01


def test_the_shift_is_small_the_same_for_all_channels_and_repeats_the_edge() -> None:
    ramp = torch.arange(100.0).expand(500, 2, 100)
    varied = vary_windows(ramp, seeded(), WindowVariation(scale=0, jitter=0, offset=0))
    shift = varied[:, :, 50] - 50
    assert torch.equal(shift[:, 0], shift[:, 1])
    assert set(shift[:, 0].tolist()) == set(range(-8, 9))
    for window, s in zip(varied, shift[:, 0].tolist(), strict=True):
        np.testing.assert_array_equal(window[0].numpy(), np.clip(np.arange(100) + s, 0, 99))


# Rotation.


@pytest.mark.parametrize("largest", [1.0, 15.0, 180.0])
def test_a_rotation_keeps_lengths_and_hands_and_its_angle_is_limited(largest: float) -> None:
    turn = rotations(3000, largest, seeded()).double()
    torch.testing.assert_close(turn @ turn.mT, torch.eye(3).double().expand(3000, 3, 3), atol=1e-5, rtol=0)
    assert bool((torch.linalg.det(turn) > 0.999).all())
    cosine = ((turn.diagonal(dim1=1, dim2=2).sum(dim=1) - 1) / 2).clamp(-1, 1)
    angle = torch.rad2deg(torch.arccos(cosine))
    assert float(angle.max()) <= largest + 0.1
    # Evenly drawn up to the limit.
    np.testing.assert_allclose(np.quantile(angle, [0.25, 0.5, 0.75]) / largest, [0.25, 0.5, 0.75], atol=0.05)


def test_no_direction_is_preferred() -> None:
    """The axis is the antisymmetric part: R v - v for small angles is axis x v."""
    turn = rotations(20_000, 10.0, seeded())
    axis = torch.stack(
        [turn[:, 2, 1] - turn[:, 1, 2], turn[:, 0, 2] - turn[:, 2, 0], turn[:, 1, 0] - turn[:, 0, 1]]
    )
    axis = torch.nn.functional.normalize(axis, dim=0)
    assert float(axis.mean(dim=1).abs().max()) < 0.02
    torch.testing.assert_close(axis @ axis.T / 20_000, torch.eye(3) / 3, atol=0.02, rtol=0)


def test_a_rotation_turns_each_sample_of_its_triples_and_nothing_else() -> None:
    """Two sensors in one case turn together, in whatever order their channels stand."""
    steady = noise(20, 7, 1).expand(20, 7, 9)
    triples = ((1, 2, 3), (6, 4, 5))
    how = WindowVariation(0, 0, 0, 0, rotation=30, triples=triples)
    generator = seeded(4)
    vary_windows(steady, generator, STILL)
    turn = rotations(20, 30, generator)  # the rotation is drawn after everything else
    varied = vary_windows(steady, seeded(4), how)
    assert torch.equal(varied[:, 0], steady[:, 0])
    for i in range(20):
        for triple in triples:
            for t in range(9):
                expected = turn[i] @ steady[i, list(triple), t]
                torch.testing.assert_close(varied[i, list(triple), t], expected)
    assert not torch.allclose(varied[:, 1:], steady[:, 1:], atol=0.05)


def test_the_other_numbers_are_the_same_with_and_without_rotation() -> None:
    x = noise(8, 4, 40)
    triples = ((0, 1, 2),)
    turned = vary_windows(x, seeded(2), WindowVariation(rotation=20, triples=triples))
    plain = vary_windows(x, seeded(2), WindowVariation())
    assert torch.equal(turned[:, 3], plain[:, 3])
    assert not torch.allclose(turned[:, :3], plain[:, :3], atol=0.1)


def test_triples_are_found_by_their_names() -> None:
    channels = ("temperature", "gx", "gy", "gz", "ay", "az", "ax")
    assert triples_of(channels, [("ax", "ay", "az"), ("gx", "gy", "gz")]) == ((6, 4, 5), (1, 2, 3))
    assert triples_of(channels, []) == ()


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ([("x", "y")], "three channels"),
        ([("x", "y", "z", "w")], "three channels"),
        ([("x", "y", "zz")], "no channel 'zz'"),
        ([("x", "y", "y")], "named twice"),
        ([("x", "y", "z"), ("w", "v", "x")], "named twice"),
    ],
)
def test_triples_that_cannot_turn_are_refused(named: list[tuple[str, ...]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        triples_of(("x", "y", "z", "w", "v"), named)


# Images.


def test_an_image_is_shifted_by_whole_pixels_and_its_edge_repeated() -> None:
    x = torch.arange(12 * 10.0).view(1, 1, 12, 10).repeat(400, 2, 1, 1)
    x[:, 1] += 500
    varied = vary_images(x, seeded(), ImageVariation(3, 0, 0))
    seen = set()
    for image in varied.round():
        dy, dx = divmod(int(image[0, 6, 5]) - 65 + 35, 10)  # 35: makes both parts positive
        down, right = dy - 3, dx - 5
        seen.add((down, right))
        rows = np.clip(np.arange(12) + down, 0, 11)
        columns = np.clip(np.arange(10) + right, 0, 9)
        expected = rows[:, None] * 10 + columns
        np.testing.assert_array_equal(image.numpy(), np.stack([expected, expected + 500]))
    assert seen == {(a, b) for a in range(-3, 4) for b in range(-3, 4)}


def test_left_stays_left() -> None:
    x = torch.zeros(300, 1, 8, 16)
    x[..., :6] = 1
    varied = vary_images(x, seeded(), ImageVariation())
    assert bool((varied[..., 0].mean(dim=(1, 2)) > varied[..., -1].mean(dim=(1, 2))).all())


def test_brightness_and_contrast_are_one_each_for_an_image_and_limited() -> None:
    x = noise(2000, 3, 8, 8) + noise(2000, 1, 1, 1, seed=1)
    varied = vary_images(x, seeded(), ImageVariation(shift=0, brightness=0.2, contrast=0.3))
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    light = (varied - x).mean(dim=(1, 2, 3), keepdim=True)
    factor = (varied - mean - light).flatten(1).norm(dim=1) / (x - mean).flatten(1).norm(dim=1)
    factor = factor[:, None, None, None]
    torch.testing.assert_close(varied, (x - mean) * factor + mean + light, atol=1e-4, rtol=0)
    for values, middle, most in ((light, 0.0, 0.2), (factor, 1.0, 0.3)):
        assert float((values - middle).abs().max()) <= most + 1e-4
        np.testing.assert_allclose(values.std(), most / math.sqrt(3), rtol=0.05)
        assert abs(float(values.mean()) - middle) < 0.02


def test_an_image_without_variation_is_that_image() -> None:
    x = noise(4, 3, 8, 8)
    torch.testing.assert_close(vary_images(x, seeded(), PLAIN), x)


# Faults.


def test_half_of_the_windows_are_faulty_and_the_rest_only_jitters() -> None:
    x = noise(4000, 3, 20)
    change = corrupted(x, seeded(1)) - x
    faulty = change.abs().amax(dim=(1, 2)) > 0.4  # eight standard deviations of the noise
    assert abs(float(faulty.float().mean()) - 0.5) < 0.06
    rest = change[~faulty & (change.mean(dim=2).abs().amax(dim=1) < 0.06)]
    assert len(rest) > 1700
    np.testing.assert_allclose(rest.std(), 0.05, rtol=0.03)


def test_a_fault_is_a_level_or_a_straight_drift_on_some_channels() -> None:
    """Exactly, without the noise: every changed channel is one line, all of a window's of one kind."""
    time, channels = 30, 4
    x = torch.zeros(4000, channels, time)
    change = corrupted(x, seeded(2), jitter=0.0)
    end = change[:, :, -1]
    level = end[:, :, None].expand_as(change)
    drift = level * torch.arange(1, time + 1) / time
    levels = torch.isclose(change, level, atol=1e-5).all(dim=2).all(dim=1)
    drifts = torch.isclose(change, drift, atol=1e-5).all(dim=2).all(dim=1)
    assert bool((levels | drifts).all())
    hit = end != 0
    faulty = hit.any(dim=1)
    assert abs(float(drifts[faulty].float().mean()) - 0.5) < 0.05
    assert {int(n) for n in hit[faulty].sum(dim=1)} == {1, 2, 3, 4}
    sizes = end[hit]
    assert 3.9 < float(sizes.abs().max()) <= 4
    assert abs(float((sizes > 0).float().mean()) - 0.5) < 0.03
    both = (
        faulty & hit[:, 0] & hit[:, 1]
    )  # signs and sizes of two channels have nothing to do with each other
    assert abs(np.corrcoef(end[both][:, :2].T.numpy())[0, 1]) < 0.1


def test_a_fault_is_added_to_whatever_the_window_is() -> None:
    x = 5 * noise(50, 3, 40)
    bare = corrupted(torch.zeros_like(x), seeded(3))
    torch.testing.assert_close(corrupted(x, seeded(3)), x + bare)
