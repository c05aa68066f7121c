"""Pruning by sensitivity: how many weights each layer can lose, measured, then which ones.

Unstructured magnitude pruning (Han et al. 2015) with one share per layer. The shares come from a
measurement: each layer alone is pruned to several levels and the loss on the server's data is taken
(sensitivity analysis; Han et al. 2015, section 3.1). Then zeros are dealt out, a step at a time, to the
layer where the next step raises the loss least per weight, until the stated share of all weights is zero.
Biases are never pruned. A mask stays for good: masked weights are zero in training, traffic and release.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Loss = Callable[[Mapping[str, Tensor]], float]
"""The loss of a set of weights on some fixed data."""

LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class LayerSensitivity:
    """One layer: its name, number of weights, and the loss when it alone is pruned to each of ``LEVELS``."""

    name: str
    weights: int
    losses: tuple[float, ...]


def prunable(params: Mapping[str, Tensor]) -> list[str]:
    """Names of the weights that pruning may touch: everything but biases."""
    return [name for name, value in params.items() if value.dim() > 1]


def magnitude_mask(weight: Tensor, share: float) -> Tensor:
    """1 where a weight stays, 0 for the ``round(share * n)`` smallest magnitudes; ties by position."""
    mask = torch.ones(weight.numel())
    mask[weight.abs().flatten().argsort(stable=True)[: round(share * weight.numel())]] = 0
    return mask.view_as(weight)


def measure(params: Mapping[str, Tensor], loss: Loss) -> list[LayerSensitivity]:
    """Prune each layer alone to each of ``LEVELS`` and take the loss."""
    rows = []
    for name in prunable(params):
        weight = params[name]
        losses = tuple(loss({**params, name: weight * magnitude_mask(weight, s)}) for s in LEVELS)
        rows.append(LayerSensitivity(name, weight.numel(), losses))
    return rows


def allocate(rows: list[LayerSensitivity], share: float) -> dict[str, float]:
    """Share of zeros for each layer, so that ``share`` of all weights are zero and the loss rises least.

    Greedy in steps between ``LEVELS``; the last step is cut to hit the stated number exactly. Shares never
    pass the highest level, and a loss that falls (noise) counts as no rise.
    """
    most = sum(round(LEVELS[-1] * r.weights) for r in rows)
    wanted = min(round(share * sum(r.weights for r in rows)), most)
    level = dict.fromkeys((r.name for r in rows), 0)
    zeros = dict.fromkeys((r.name for r in rows), 0)
    while wanted > sum(zeros.values()):
        open_rows = [r for r in rows if level[r.name] + 1 < len(LEVELS)]
        best = min(open_rows, key=lambda r: _price(r, level[r.name]))
        level[best.name] += 1
        target = round(LEVELS[level[best.name]] * best.weights)
        missing = wanted - sum(zeros.values())
        zeros[best.name] += min(target - zeros[best.name], missing)
    return {r.name: zeros[r.name] / r.weights for r in rows}


def _price(row: LayerSensitivity, level: int) -> float:
    """Rise of the loss per weight of the next step; exact where a layer's losses rise ever faster."""
    highest = max(row.losses[: level + 1])
    rise = max(0.0, row.losses[level + 1] - highest)
    return rise / ((LEVELS[level + 1] - LEVELS[level]) * row.weights)


def masks(params: Mapping[str, Tensor], shares: Mapping[str, float]) -> dict[str, Tensor]:
    """A mask for every parameter: by magnitude where a share is given, all ones elsewhere."""
    return {
        name: magnitude_mask(value, shares[name]) if name in shares else torch.ones_like(value)
        for name, value in params.items()
    }
