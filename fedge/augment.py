"""Variations of windows and images that leave the answer as it is, and faults that change it.

Every function takes a batch of standardised inputs, channels first, and a seeded generator; it draws from
that generator only, returns a new tensor of the same shape and dtype, and leaves its input alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedge.errors import ConfigError

Triple = tuple[int, int, int]
"""Indices of the x, y and z channel of one sensor."""

_LARGEST_FAULT = 4.0
"""In standard deviations of a channel."""


@dataclass(frozen=True)
class WindowVariation:
    """How much windows vary, in standard deviations of a channel where nothing else is said.

    Attributes:
        scale: standard deviation of the factor on a channel, around 1 (no unit).
        jitter: standard deviation of the noise on each sample.
        offset: standard deviation of what is added to a channel.
        shift: largest shift in time, as a share of the window; at least one sample.
        rotation: largest angle by which the sensors turn, in degrees; 0 for none.
        triples: channels that turn together, see ``triples_of``.
    """

    scale: float = 0.15
    jitter: float = 0.05
    offset: float = 0.2
    shift: float = 0.08
    rotation: float = 0.0
    triples: tuple[Triple, ...] = ()


@dataclass(frozen=True)
class ImageVariation:
    """How much images vary.

    Attributes:
        shift: largest shift up, down, left and right, in pixels.
        brightness: largest value that is added to an image, in standard deviations.
        contrast: largest change of the factor on an image's distance from its own mean, below 1.
    """

    shift: int = 3
    brightness: float = 0.2
    contrast: float = 0.2


def vary_windows(x: Tensor, generator: torch.Generator, how: WindowVariation) -> Tensor:
    """Another wearer, mounting or moment of windows ``[n, channels, time]``.

    Rotation, then scale and offset per channel, noise, and a shift in time that repeats the sample at the
    window's edge: the usual augmentations of wearable data (Um et al. 2017).
    """
    n, channels, time = x.shape
    scale = 1 + how.scale * torch.randn(n, channels, 1, generator=generator)
    offset = how.offset * torch.randn(n, channels, 1, generator=generator)
    noise = how.jitter * torch.randn(x.shape, generator=generator)
    most = max(1, round(how.shift * time))
    shift = torch.randint(-most, most + 1, (n, 1), generator=generator)
    source = (torch.arange(time) + shift).clamp(0, time - 1)
    if how.rotation > 0 and how.triples:  # drawn last: the numbers above are the same with and without it
        x = _turned(x, rotations(n, how.rotation, generator), how.triples)
    return (x * scale + offset + noise).gather(2, source[:, None].expand_as(x))


def rotations(n: int, largest: float, generator: torch.Generator) -> Tensor:
    """``[n, 3, 3]`` rotations about axes of any direction by up to ``largest`` degrees, evenly drawn.

    By Rodrigues' formula, ``R = I + sin(a) K + (1 - cos(a)) K^2`` with ``K v = axis x v``.
    """
    axis = torch.nn.functional.normalize(torch.randn(n, 3, generator=generator), dim=1)
    angle = math.radians(largest) * (2 * torch.rand(n, 1, 1, generator=generator) - 1)
    cross = torch.linalg.cross(torch.eye(3).expand(n, 3, 3), axis[:, None].expand(n, 3, 3))
    turn: Tensor = torch.eye(3) + angle.sin() * cross + (1 - angle.cos()) * (cross @ cross)
    return turn


def _turned(x: Tensor, rotation: Tensor, triples: tuple[Triple, ...]) -> Tensor:
    """Turn every triple of a window by that window's one rotation, as sensors in one case turn together.

    This turns *standardised* values about their mean, which stands for turning the sensor under two
    conditions. The three channels must have been scaled alike (by one common factor): where each has its
    own, a rotation here mixes the axes like a shear. And the mean itself (of an accelerometer: the mean
    direction of gravity) does not turn with the rest; the error is a constant per channel, at most
    ``2 sin(angle / 2)`` times the mean, such as the offset already varies. So keep the angle small.
    """
    index = torch.tensor(triples).flatten()
    n, _, time = x.shape
    turned = rotation[:, None] @ x[:, index].view(n, len(triples), 3, time)
    return x.index_copy(1, index, turned.view(n, len(index), time))


def triples_of(channels: Sequence[str], named: Sequence[Sequence[str]]) -> tuple[Triple, ...]:
    """The indices of named triples, each the x, y and z channel of one sensor.

    Raises:
        ConfigError: not three names, a channel that does not exist, or one that is named twice.
    """
    for triple in named:
        if len(triple) != 3:
            raise ConfigError(f"a rotation turns three channels (x, y, z), not {len(triple)}: {list(triple)}")
    flat = [name for triple in named for name in triple]
    for name in flat:
        if name not in channels:
            raise ConfigError(f"no channel {name!r} to rotate; channels: {', '.join(channels)}")
    if len(set(flat)) < len(flat):
        raise ConfigError(f"a channel can turn with one sensor only, and one is named twice: {flat}")
    return tuple((channels.index(a), channels.index(b), channels.index(c)) for a, b, c in named)


def vary_images(x: Tensor, generator: torch.Generator, how: ImageVariation) -> Tensor:
    """The same thing seen from nearby, in other light: images ``[n, channels, height, width]``.

    Contrast and brightness, one of each per image, then a shift by whole pixels that repeats the edge. An
    image is never mirrored: left and right can be classes.
    """
    n, channels, height, width = x.shape
    factor = 1 + how.contrast * (2 * torch.rand(n, 1, 1, 1, generator=generator) - 1)
    light = how.brightness * (2 * torch.rand(n, 1, 1, 1, generator=generator) - 1)
    shift = torch.randint(-how.shift, how.shift + 1, (2, n, 1), generator=generator)
    rows = (torch.arange(height) + shift[0]).clamp(0, height - 1)
    columns = (torch.arange(width) + shift[1]).clamp(0, width - 1)
    image, channel = torch.arange(n)[:, None, None, None], torch.arange(channels)[:, None, None]
    moved = x[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (moved - mean) * factor + mean + light


def corrupted(x: Tensor, generator: torch.Generator, jitter: float = 0.05) -> Tensor:
    """Windows ``[n, channels, time]`` as a fault would change them, to train a denoising model.

    A window is faulty with probability 1/2. A fault is a level shift of the whole window or a slow drift that
    grows in a straight line to its full size at the window's end, on a random set of at least one channel:
    per channel of a random sign and a size evenly drawn up to 4 standard deviations. Every window, faulty or
    not, gets noise of standard deviation ``jitter`` (Vincent et al. 2008: reconstruct the clean from the
    corrupted).
    """
    n, channels, time = x.shape
    faulty, drifts = torch.rand(2, n, 1, 1, generator=generator) < 0.5
    draw = torch.rand(n, channels, 1, generator=generator)
    hit = (draw < 0.5) | (draw == draw.amin(dim=1, keepdim=True))
    size = _LARGEST_FAULT * (2 * torch.rand(n, channels, 1, generator=generator) - 1)
    ramp = torch.arange(1, time + 1) / time
    course = torch.where(drifts, ramp, torch.ones(time))
    noise = jitter * torch.randn(x.shape, generator=generator)
    changed: Tensor = x + noise + (faulty & hit) * size * course
    return changed
