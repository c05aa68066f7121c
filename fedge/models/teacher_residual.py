"""Residual networks (He et al. 2016) for windows, as in Wang et al. 2017, and for images."""

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

WIDTHS: dict[int, dict[str, tuple[int, ...]]] = {
    1: {
        "small": (64, 96, 128),
        "base": (96, 160, 256),
        "large": (128, 192, 320, 448),
        "huge": (192, 384, 640, 896),
    },
    2: {
        "small": (32, 64, 96),
        "base": (48, 96, 192),
        "large": (64, 128, 256, 256),
        "huge": (96, 224, 416, 640),
    },
}
"""Channels of the blocks, by the number of dimensions (1: time, 2: height and width) and the size."""

_KERNELS = {1: (7, 5, 3), 2: (5, 3, 3)}  # of the stem, and of a block's two convolutions
_SHORTEST = {1: (0, 0), 2: (8, 4)}  # the stem and the blocks halve a side that is longer than this


class _Block(nn.Module):
    """Two convolutions and a shortcut; halves the sides where ``stride`` is 2."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, ...]) -> None:
        super().__init__()
        rank = len(stride)
        _, wide, narrow = _KERNELS[rank]
        self.first = _conv(inputs, outputs, wide, stride)
        self.norm1 = _norm(rank, outputs)
        self.second = _conv(outputs, outputs, narrow, (1,) * rank)
        self.norm2 = _norm(rank, outputs)
        self.shortcut = _conv(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.second(F.relu(self.norm1(self.first(x)))))
        return F.relu(y + self.shortcut(x))


class Residual(nn.Module):
    """``[n, outputs]`` of windows ``[n, channels, time]`` or images ``[n, channels, height, width]``.

    The time is halved by the stem and by each block. An image's sides are halved while they are long
    (above 8 pixels by the stem, above 4 by a block), so that an image of 8x8 still reaches the last block
    with 4x4.
    """

    def __init__(
        self, widths: tuple[int, ...], window: tuple[int, ...], outputs: int, parts: int = 1
    ) -> None:
        """Make one with fresh weights.

        Args:
            widths: channels of the blocks.
            window: ``(time, channels)`` or ``(height, width, channels)``.
            outputs: numbers that the head gives.
            parts: into how many parts a side is averaged before the head; 1 is the mean of everything.
        """
        super().__init__()
        *size, channels = window
        sides, self.parts = tuple(size), parts
        stem, later = _SHORTEST[len(sides)]
        stride, sides = _halved(sides, stem)
        self.stem = _conv(channels, widths[0], _KERNELS[len(sides)][0], stride)
        self.norm = _norm(len(sides), widths[0])
        blocks = []
        for before, after in zip((widths[0], *widths[:-1]), widths, strict=True):
            stride, sides = _halved(sides, later)
            blocks.append(_Block(before, after, stride))
        self.blocks = nn.Sequential(*blocks)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(widths[-1] * parts ** len(sides), outputs)

    def features(self, x: Tensor) -> Tensor:
        """What the head sees, ``[n, d]``; in training with dropout."""
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        if self.parts == 1:
            pooled = x.flatten(2).mean(dim=2)
        else:
            pool = F.adaptive_avg_pool1d if x.dim() == 3 else F.adaptive_avg_pool2d
            pooled = pool(x, self.parts).flatten(1)
        return self.drop(pooled)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[n, outputs]`` of ``x``, channels first."""
        return self.head(self.features(x))  # type: ignore[no-any-return]


def _halved(sides: tuple[int, ...], shortest: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The stride that halves every side above ``shortest``, and the sides after it."""
    stride = tuple(2 if s > shortest else 1 for s in sides)
    return stride, tuple(-(-s // t) for s, t in zip(sides, stride, strict=True))


def _conv(inputs: int, outputs: int, kernel: int, stride: tuple[int, ...]) -> nn.Module:
    if len(stride) == 1:
        return nn.Conv1d(inputs, outputs, kernel, stride[0], kernel // 2, bias=False)
    return nn.Conv2d(inputs, outputs, kernel, (stride[0], stride[1]), kernel // 2, bias=False)


def _norm(rank: int, channels: int) -> nn.Module:
    return nn.BatchNorm1d(channels) if rank == 1 else nn.BatchNorm2d(channels)
