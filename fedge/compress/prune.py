"""Pruning by sensitivity: how many weights each layer can lose, and which ones.

Unstructured pruning with one share of zeros per layer, in one of two ways.

``magnitude`` (Han et al. 2015): the smallest weights of a layer go. The shares come from a measurement: each
layer alone is pruned to several levels and the loss on the server's data is taken (sensitivity analysis,
section 3.1 there). Then zeros are dealt out, a step at a time, to the layer where the next step raises the
loss least per weight, until the stated share of all weights is zero.

``taylor`` (Molchanov et al. 2019, equation 8): the importance of a weight is the squared change of the loss,
to first order, when it becomes zero: ``(gradient * weight)^2``, averaged over batches. The square is taken
batch by batch, because where training has ended the gradients of the batches cancel in their mean. All
weights stand in one ranking and the least important go, whatever layer they are in; no layer loses more than
the highest of ``LEVELS``.

Biases are never pruned. A mask stays for good: masked weights are zero in training, traffic and release.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedge.errors import ConfigError

Loss = Callable[[Mapping[str, Tensor]], float]
"""The loss of a set of weights on some fixed data."""

Importance = Mapping[str, Tensor]
"""For each prunable weight tensor, how much each of its weights matters: same shape, 0 or above."""

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
    return least_mask(weight.abs(), share)


def least_mask(importance: Tensor, share: float) -> Tensor:
    """1 where a weight stays, 0 for the ``round(share * n)`` least important; ties by position."""
    mask = torch.ones(importance.numel())
    mask[importance.flatten().argsort(stable=True)[: round(share * importance.numel())]] = 0
    return mask.view_as(importance)


def measure(params: Mapping[str, Tensor], loss: Loss) -> list[LayerSensitivity]:
    """Prune each layer alone to each of ``LEVELS`` and take the loss."""
    rows = []
    for name in prunable(params):
        weight = params[name]
        losses = tuple(loss({**params, name: weight * magnitude_mask(weight, s)}) for s in LEVELS)
        rows.append(LayerSensitivity(name, weight.numel(), losses))
    return rows


def gradient(
    params: Mapping[str, Tensor], loss: Callable[[Mapping[str, Tensor]], Tensor]
) -> dict[str, Tensor]:
    """The gradient of ``loss`` (a scalar, of one batch) at ``params``, which stay as they are.

    A parameter that the loss does not depend on has a gradient of zeros.
    """
    leaves = {n: p.detach().clone().requires_grad_() for n, p in params.items()}
    found = torch.autograd.grad(loss(leaves), list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def taylor(params: Mapping[str, Tensor], gradients: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Importance of each prunable weight: the mean of ``(gradient * weight)^2`` over the batches.

    Args:
        params: the weights.
        gradients: of the loss, one of each batch (``gradient``).

    Raises:
        ConfigError: there is not a single gradient.
    """
    total, count = {n: torch.zeros_like(params[n]) for n in prunable(params)}, 0
    for one in gradients:
        count += 1
        for name, sum_ in total.items():
            sum_ += (one[name] * params[name]).square()
    if count == 0:
        raise ConfigError("student.sensitivity: taylor needs the gradient of at least one batch")
    return {name: sum_ / count for name, sum_ in total.items()}


def allocate(found: list[LayerSensitivity] | Importance, share: float) -> dict[str, float]:
    """Share of zeros for each layer, so that ``share`` of all weights are zero and the loss rises least.

    From a measurement: greedy in steps between ``LEVELS``; the last step is cut to hit the stated number
    exactly; a loss that falls (noise) counts as no rise. From importances: as many as a layer has among the
    least important of all. Shares never pass the highest level.
    """
    if isinstance(found, Mapping):
        return _ranked(found, share)
    most = sum(round(LEVELS[-1] * r.weights) for r in found)
    wanted = min(round(share * sum(r.weights for r in found)), most)
    level = dict.fromkeys((r.name for r in found), 0)
    zeros = dict.fromkeys((r.name for r in found), 0)
    while wanted > sum(zeros.values()):
        open_rows = [r for r in found if level[r.name] + 1 < len(LEVELS)]
        best = min(open_rows, key=lambda r: _price(r, level[r.name]))
        level[best.name] += 1
        target = round(LEVELS[level[best.name]] * best.weights)
        missing = wanted - sum(zeros.values())
        zeros[best.name] += min(target - zeros[best.name], missing)
    return {r.name: zeros[r.name] / r.weights for r in found}


def _price(row: LayerSensitivity, level: int) -> float:
    """Rise of the loss per weight of the next step; exact where a layer's losses rise ever faster."""
    highest = max(row.losses[: level + 1])
    rise = max(0.0, row.losses[level + 1] - highest)
    return rise / ((LEVELS[level + 1] - LEVELS[level]) * row.weights)


def _ranked(importance: Importance, share: float) -> dict[str, float]:
    """How much of each layer is among the least important weights of all; ties by layer, then position."""
    sizes = {name: value.numel() for name, value in importance.items()}
    most = {name: round(LEVELS[-1] * n) for name, n in sizes.items()}
    wanted = min(round(share * sum(sizes.values())), sum(most.values()))
    lines = [value.flatten().sort(stable=True).values[: most[name]] for name, value in importance.items()]
    owner = torch.cat([torch.full((len(line),), i) for i, line in enumerate(lines)])
    gone = owner[torch.cat(lines).argsort(stable=True)[:wanted]]
    zeros = torch.bincount(gone, minlength=len(lines)).tolist()
    return {name: z / n for (name, n), z in zip(sizes.items(), zeros, strict=True)}


def masks(
    params: Mapping[str, Tensor], shares: Mapping[str, float], importance: Importance | None = None
) -> dict[str, Tensor]:
    """A mask for every parameter: where a share is given, the least important go; all ones elsewhere.

    Without ``importance`` the magnitude is what counts.
    """
    ranks = importance if importance is not None else {name: params[name].abs() for name in shares}
    return {
        name: least_mask(ranks[name], shares[name]) if name in shares else torch.ones_like(value)
        for name, value in params.items()
    }
