"""The named students: plain convolutions, or depthwise-separable ones (Howard et al. 2017)."""

from dataclasses import dataclass

from fedge.errors import ConfigError
from fedge.models.student import Conv, StudentSpec, checked

_Widths = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Family:
    """Output channels of the four stages by size, for windows and for images."""

    windows: dict[str, _Widths]
    images: dict[str, _Widths]


FAMILIES: dict[str, _Family] = {
    "plain": _Family(
        windows={
            "tiny": (12, 16, 24, 32),
            "small": (24, 32, 48, 64),
            "medium": (48, 64, 80, 96),
            "large": (88, 120, 152, 184),
        },
        images={
            "tiny": (8, 12, 16, 20),
            "small": (12, 20, 30, 44),
            "medium": (24, 40, 52, 72),
            "large": (40, 72, 96, 136),
        },
    ),
    "separable": _Family(
        windows={
            "tiny": (16, 28, 40, 56),
            "small": (32, 56, 88, 112),
            "medium": (48, 96, 160, 224),
            "large": (96, 192, 288, 416),
        },
        images={
            "tiny": (16, 28, 40, 56),
            "small": (32, 56, 88, 112),
            "medium": (48, 96, 160, 224),
            "large": (96, 192, 288, 416),
        },
    ),
}
"""About 5 k, 20 k, 60 k and 200 k parameters, with six channels or three."""

SIZES = ("tiny", "small", "medium", "large")

_KERNELS = (5, 5, 3, 3)
_SHORTEST = {1: 8, 2: 4}  # samples, or pixels a side, at which a convolution no longer strides
_LARGE_IMAGE = 16  # pixels a side above which the first convolution strides too


def build_spec(family: str, size: str, window: tuple[int, ...], outputs: int) -> StudentSpec:
    """The student of one family and size.

    Convolutions halve the time (or each side) while enough is left, so short windows and small images work.

    Args:
        family: a key of ``FAMILIES``.
        size: one of ``SIZES``.
        window: ``(time, channels)`` or ``(height, width, channels)``.
        outputs: numbers in the dense layer.

    Raises:
        ConfigError: no such family or size.
    """
    if family not in FAMILIES:
        raise ConfigError(f"student.family: unknown family {family!r}; known: {', '.join(FAMILIES)}")
    if size not in SIZES:
        raise ConfigError(f"student.size: unknown size {size!r}; known: {', '.join(SIZES)}")
    *extent, channels = window
    flat = len(extent) == 1
    widths = (FAMILIES[family].windows if flat else FAMILIES[family].images)[size]
    convs: list[Conv] = []
    for i, (width, stride) in enumerate(zip(widths, _strides(tuple(extent)), strict=True)):
        before = convs[-1].outputs if convs else channels
        kernel = _KERNELS[i] if flat else 3
        if family == "separable" and i > 0:
            convs.append(Conv(f"depth{i + 1}", before, before, kernel, stride, before))
            convs.append(Conv(f"point{i + 1}", before, width, 1, 1))
        else:
            convs.append(Conv(f"conv{i + 1}", before, width, kernel, stride))
    return checked(StudentSpec(channels, tuple(extent), outputs, tuple(convs)))


def _strides(extent: tuple[int, ...]) -> list[int]:
    """Of the four stages: 2 for three of them while enough is left of the shorter side, else 1."""
    left, flat = min(extent), len(extent) == 1
    strides: list[int] = []
    for i in range(4):
        may = i < 3 if flat or left > _LARGE_IMAGE or strides[:1] == [2] else i > 0
        strides.append(2 if may and left > _SHORTEST[len(extent)] else 1)
        left = -(-left // strides[-1])
    return strides
