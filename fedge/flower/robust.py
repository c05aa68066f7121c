"""Robust aggregation, as Flower has it, behind our checks: a few hostile clients cannot steer the mean.

MultiKrum (Blanchard et al. 2017), Bulyan (El Mhamdi et al. 2018) and the trimmed mean (Yin et al. 2018). They
need every update of a round at once, so memory grows with the clients; ``rounds.robust_most`` bounds it.
Updates come here checked and finite: distances to NaN would mean nothing.
"""

from collections.abc import Callable

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.serverapp.strategy.bulyan import aggregate_n_closest_weights
from flwr.serverapp.strategy.fedtrimmedavg import trim_mean
from flwr.serverapp.strategy.multikrum import select_multikrum

from fedge.config import Config
from fedge.errors import UpdateError
from fedge.federated.coding import Weights

Robust = Callable[[list[Weights], list[int]], Weights]

_KEY = "change"


def robust(config: Config) -> Robust | None:
    """What stands in for the mean; ``None`` for the mean itself."""
    hostile = config.rounds.hostile
    ways: dict[str, Robust] = {
        "multikrum": lambda changes, weights: _multikrum(changes, weights, hostile),
        "bulyan": lambda changes, _weights: _bulyan(changes, hostile),
        "trimmed_mean": lambda changes, _weights: _trimmed(changes, hostile),
    }
    return ways.get(config.rounds.robust)


def _multikrum(changes: list[Weights], weights: list[int], hostile: int) -> Weights:
    """The weighted mean of the ``n - f`` updates that lie nearest to the others."""
    _check_enough(len(changes), 2 * hostile + 3, "multikrum")
    chosen = _nearest(changes, hostile, len(changes) - hostile)
    total = sum(weights[i] for i in chosen)
    return {
        name: np.sum([changes[i][name] * np.float32(weights[i] / total) for i in chosen], axis=0)
        for name in changes[0]
    }


def _bulyan(changes: list[Weights], hostile: int) -> Weights:
    """Of the ``n - 2f`` that Krum takes one by one, the mean of the values nearest to each median."""
    _check_enough(len(changes), 4 * hostile + 3, "bulyan")
    left, taken = list(changes), []
    for _ in range(len(changes) - 2 * hostile):
        (best,) = _nearest(left, hostile, 1)
        taken.append(left.pop(best))
    median = [np.median([t[name] for t in taken], axis=0) for name in taken[0]]
    rows = [[t[name] for name in t] for t in taken]
    merged = aggregate_n_closest_weights(median, rows, beta=len(taken) - 2 * hostile)
    return {name: np.asarray(v, np.float32) for name, v in zip(taken[0], merged, strict=True)}


def _trimmed(changes: list[Weights], hostile: int) -> Weights:
    """Entry by entry, the mean without the ``f`` largest and the ``f`` smallest."""
    _check_enough(len(changes), 2 * hostile + 1, "trimmed_mean")
    cut = (hostile + 0.25) / len(changes)  # of which Flower takes the whole number below
    return {
        name: np.asarray(trim_mean(np.stack([c[name] for c in changes]), cut), np.float32)
        for name in changes[0]
    }


def _nearest(changes: list[Weights], hostile: int, count: int) -> list[int]:
    """Positions of the ``count`` updates that Krum likes best, ascending."""
    contents = [
        RecordDict({_KEY: ArrayRecord({n: Array(v) for n, v in change.items()})}) for change in changes
    ]
    chosen = select_multikrum(contents, hostile, count)
    return sorted(next(i for i, c in enumerate(contents) if c is content) for content in chosen)


def _check_enough(found: int, least: int, name: str) -> None:
    if found < least:
        raise UpdateError(f"{name} needs {least} updates with rounds.hostile as set; {found} counted")
