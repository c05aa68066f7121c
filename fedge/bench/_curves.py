"""Scores against bytes: one curve a run, their mean over seeds, and where a curve reaches a target."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

TRAILING = 3
"""Rounds in the trailing mean that is held against the target."""

TOLERANCE = 0.01
"""How far below the baseline's end, on the clients and on the unseen, the target lies: one point."""


@dataclass(frozen=True)
class Curve:
    """One run, or the mean of several. Index ``r`` of each tuple is round ``r``; 0 is before the first.

    Attributes:
        initial: bytes that a client downloads before its first round.
        uplink: bytes a client has sent when the clients hold the weights of round ``r``.
        downlink: bytes a client has then received beside the initial download.
        clients: mean score over participants, each on its own later windows.
        unseen: mean score over clients that never take part.
        judge: score on the pooled windows that participants hold back from training; empty if not measured.
        tuned: ``clients`` after the last round and a few local epochs, which cost no bytes.
    """

    initial: float
    uplink: tuple[float, ...]
    downlink: tuple[float, ...]
    clients: tuple[float, ...]
    unseen: tuple[float, ...]
    judge: tuple[float, ...]
    tuned: float

    @property
    def rounds(self) -> int:
        """Rounds after which the scores were taken."""
        return len(self.clients) - 1

    def traffic(self, number: int) -> float:
        """Bytes per client up to round ``number``, both ways, without the initial download."""
        return self.uplink[number] + self.downlink[number]

    def total(self, number: int) -> float:
        """Bytes per client up to round ``number``, all in."""
        return self.initial + self.traffic(number)

    def score(self, number: int) -> dict[str, float]:
        """Trailing means at round ``number``; round 0 counts only for itself."""
        return {
            "clients": trailing(self.clients, number, TRAILING),
            "unseen": trailing(self.unseen, number, TRAILING),
        }

    def reaches(self, target: dict[str, float]) -> int | None:
        """The first round whose trailing means are at the target on both counts."""
        for number in range(min(TRAILING, self.rounds), self.rounds + 1):
            score = self.score(number)
            if all(score[k] >= target[k] for k in target):
                return number
        return None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def trailing(values: Sequence[float], number: int, window: int) -> float:
    """Mean of the last ``window`` values up to index ``number``, none of them from index 0 unless it is 0."""
    return statistics.fmean(values[max(min(number, 1), number - window + 1) : number + 1])


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Round by round over runs of equal length."""

    def each(pick: Callable[[Curve], Sequence[float]]) -> tuple[float, ...]:
        return tuple(statistics.fmean(values) for values in zip(*map(pick, curves), strict=True))

    return Curve(
        initial=statistics.fmean(c.initial for c in curves),
        uplink=each(lambda c: c.uplink),
        downlink=each(lambda c: c.downlink),
        clients=each(lambda c: c.clients),
        unseen=each(lambda c: c.unseen),
        judge=each(lambda c: c.judge),
        tuned=statistics.fmean(c.tuned for c in curves),
    )


def target_of(baseline: Curve) -> dict[str, float]:
    """What a method has to reach: the baseline's end less the tolerance."""
    return {k: v - TOLERANCE for k, v in baseline.score(baseline.rounds).items()}


def stops_rising(scores: Sequence[float], window: int = 5, margin: float = 0.005) -> int:
    """The first round after which no trailing mean is more than ``margin`` higher.

    ``scores[r]`` is the score after round ``r``; that before the first round does not count.
    """
    smooth = [trailing(scores, r, window) for r in range(len(scores))]
    best = max(smooth[1:])
    return next(r for r in range(1, len(smooth)) if smooth[r] >= best - margin)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation (of the sample; 0 for a single value)."""
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0}
