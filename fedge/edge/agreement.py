"""How much a new model's answers are like the current one's, on windows that nobody has labelled.

That a new model answers otherwise does not say that it is worse. But between two releases of one federation
most answers stay, and a model that answers at random, always the same, or as if to other windows does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedge.release.manifest import Manifest

_FAR = 1e9
Answers = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Likeness:
    """How two models compare on the same windows.

    Attributes:
        agreement: 1 for the same answers. Classes: the share of windows with the same one. A number: the
            share with about the same one, that is within a quarter of a unit. An anomaly score: the rank
            correlation (Spearman), 0 where that is negative or not defined.
        drift: 0 for the same answers on the whole. Classes: the total variation distance of their shares,
            0..1. A number: how far the medians are apart, in units. An anomaly score: the difference between
            the shares of windows above each one's threshold, 0..1.
    """

    agreement: float
    drift: float


def likeness(old: Manifest, new: Manifest, before: Answers, after: Answers) -> Likeness:
    """Compare two releases' answers, each ``[n, outputs]``, finite, to the same ``n`` windows, 1 or more.

    A unit, for numbers, is the range of the old answers without the highest and the lowest 5 %, and four
    tenths of their median's size: so a constant answer has one, too.
    """
    if old.target != new.target:
        return Likeness(0.0, 1.0)
    if new.target == "class":
        return _classes(_named(old.classes, before), _named(new.classes, after))
    was, now = before[:, 0].astype(np.float64), after[:, 0].astype(np.float64)
    if new.target == "number":
        return _numbers(was, now)
    alarms = [_alarms(scores, m.threshold) for scores, m in ((was, old), (now, new))]
    return Likeness(max(0.0, _rank_correlation(was, now)), abs(alarms[0] - alarms[1]))


def _named(classes: Sequence[str], answers: Answers) -> NDArray[np.str_]:
    """The class of each window, by name: two releases may have them in another order."""
    named: NDArray[np.str_] = np.array(classes)[answers.argmax(axis=1)]
    return named


def _classes(was: NDArray[np.str_], now: NDArray[np.str_]) -> Likeness:
    names = np.union1d(was, now)
    shares = [np.array([np.mean(told == name) for name in names]) for told in (was, now)]
    return Likeness(float(np.mean(was == now)), float(np.abs(shares[0] - shares[1]).sum() / 2))


def _numbers(was: NDArray[np.float64], now: NDArray[np.float64]) -> Likeness:
    low, middle, high = np.quantile(was, (0.05, 0.5, 0.95))
    unit, apart = float(high - low + 0.4 * abs(middle)), abs(float(np.median(now) - middle))
    near = float(np.mean(np.abs(now - was) <= unit / 4))
    return Likeness(near, min(apart / unit, _FAR) if unit else _FAR * (apart > 0))


def _alarms(scores: NDArray[np.float64], threshold: float | None) -> float:
    return 0.0 if threshold is None else float(np.mean(scores > threshold))


def _rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Spearman's: Pearson's correlation of the ranks, ties sharing their mean rank; 0 if one has one rank."""
    first, second = (_ranks(x) for x in (a, b))
    spread = float(first @ first) * float(second @ second)
    return float(first @ second) / spread**0.5 if spread else 0.0


def _ranks(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks about their mean."""
    _, place, ties = np.unique(x, return_inverse=True, return_counts=True)
    rank: NDArray[np.float64] = (np.cumsum(ties) - (ties - 1) / 2)[place]
    centred: NDArray[np.float64] = rank - rank.mean()
    return centred
