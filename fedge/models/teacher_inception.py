"""InceptionTime (Fawaz et al. 2020, section 3): one network, where the paper averages five."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

FILTERS: dict[str, int] = {"small": 22, "base": 40, "large": 74, "huge": 148}
"""Filters of each of a module's four branches; 32 in the paper."""

_KERNELS = (39, 19, 9)  # the paper's 40, 20 and 10, made odd so that they have a middle
_DEPTH, _EVERY = 6, 3  # modules, and modules that one shortcut skips


class _Module(nn.Module):
    """Convolutions of three lengths behind a bottleneck, beside a maximum; four branches, put together."""

    def __init__(self, inputs: int, filters: int) -> None:
        super().__init__()
        self.bottleneck = nn.Conv1d(inputs, filters, 1, bias=False)
        self.convs = nn.ModuleList(
            nn.Conv1d(filters, filters, k, padding=k // 2, bias=False) for k in _KERNELS
        )
        self.pooled = nn.Conv1d(inputs, filters, 1, bias=False)
        self.norm = nn.BatchNorm1d(4 * filters)

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.bottleneck(x)
        branches = [conv(narrow) for conv in self.convs]
        branches.append(self.pooled(F.max_pool1d(x, 3, 1, 1)))
        return F.relu(self.norm(torch.cat(branches, dim=1)))


class _Shortcut(nn.Module):
    """What is added to the output of every third module."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, 1, bias=False)
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))  # type: ignore[no-any-return]


class Inception(nn.Module):
    """``[n, outputs]`` of windows ``[n, channels, time]``.

    It never halves the time, so it sees every sample at every depth, and costs several times what a residual
    network with as many parameters does.
    """

    def __init__(self, filters: int, channels: int, outputs: int) -> None:
        super().__init__()
        inputs = [channels] + [4 * filters] * (_DEPTH - 1)
        self.blocks = nn.ModuleList(_Module(i, filters) for i in inputs)
        self.shortcuts = nn.ModuleList(_Shortcut(i, 4 * filters) for i in inputs[::_EVERY])
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(4 * filters, outputs)

    def features(self, x: Tensor) -> Tensor:
        """What the head sees, ``[n, d]``; in training with dropout."""
        start = x
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i % _EVERY == _EVERY - 1:
                x = start = F.relu(x + self.shortcuts[i // _EVERY](start))
        return self.drop(x.mean(dim=2))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``[n, outputs]`` of ``x``."""
        return self.head(self.features(x))  # type: ignore[no-any-return]
