"""The teacher: a 1-D residual network (He et al. 2016, on windows as in Wang et al. 2017), server only."""

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from fedge.errors import ConfigError

SIZES: dict[str, tuple[int, ...]] = {
    "base": (64, 96, 128),
    "large": (96, 160, 256),
}
"""Channels of the residual blocks: about 0.23 and 0.7 million parameters."""


class _Block(nn.Module):
    """Two convolutions and a shortcut; halves the time where ``stride`` is 2."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(inputs, outputs, 5, stride, 2, bias=False)
        self.norm1 = nn.BatchNorm1d(outputs)
        self.second = nn.Conv1d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm1d(outputs)
        self.shortcut = nn.Conv1d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.second(F.relu(self.norm1(self.first(x)))))
        return F.relu(y + self.shortcut(x))


class Teacher(nn.Module):
    """Logits ``[n, classes]`` of windows ``[n, channels, time]``."""

    def __init__(self, widths: tuple[int, ...], channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv1d(channels, widths[0], 7, 2, 3, bias=False)
        self.norm = nn.BatchNorm1d(widths[0])
        pairs = zip((widths[0], *widths[:-1]), widths, strict=True)
        self.blocks = nn.Sequential(*(_Block(i, o, 2) for i, o in pairs))
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of windows ``x [n, channels, time]``."""
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.head(self.drop(x.mean(dim=2)))  # type: ignore[no-any-return]


def build_teacher(size: str, channels: int, classes: int) -> Teacher:
    """A fresh teacher of one size.

    Raises:
        ConfigError: no such size.
    """
    if size not in SIZES:
        raise ConfigError(f"teacher.size: unknown size {size!r}; known: {', '.join(SIZES)}")
    return Teacher(SIZES[size], channels, classes)
