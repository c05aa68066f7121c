"""When a run first came so far: rounds, seconds, bytes and energy until a score."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

SMOOTH = 3
"""Rounds that a score is averaged over, so that one lucky round does not count as having arrived."""

BELOW = (0.01, 0.02)
"""How far below the final score: in points; of an error, as a share of it."""

_COSTS = (("seconds", "virtual_seconds"), ("bytes", "bytes_per_client"), ("joules", "joules"))
_GROUPS = ("clients", "unseen")

Rows = Sequence[Mapping[str, Any]]


def smoothed(scores: Sequence[float | None]) -> list[float | None]:
    """Each score averaged with the two before it (fewer at the start); those not defined are left out."""
    windows = [scores[max(0, k + 1 - SMOOTH) : k + 1] for k in range(len(scores))]
    known = [[s for s in window if s is not None] for window in windows]
    return [sum(window) / len(window) if window else None for window in known]


def first_round(scores: Sequence[float | None], target: float) -> int | None:
    """Index of the first round whose smoothed score is ``target`` or higher; ``None``: there is none."""
    return next((k for k, s in enumerate(smoothed(scores)) if s is not None and s >= target), None)


def so_far(rows: Rows, key: str) -> list[float] | None:
    """The sums of ``key`` from the first round up to each; ``None`` where a round does not say it."""
    values = [row.get(key) for row in rows]
    if not all(isinstance(v, int | float) for v in values):
        return None
    return list(accumulate(float(v) for v in values if v is not None))


def allowed(metric: str, final: float, below: float) -> float:
    """The score that is so far below ``final``: in points, or for an error as a share of it."""
    return final - (below * abs(final) if metric == "negative_rmse" else below)


def cost_at(rows: Rows, place: int) -> dict[str, float | None]:
    """``seconds``, ``bytes`` and ``joules`` per client up to the round at index ``place``."""
    sums = {name: so_far(rows, key) for name, key in _COSTS}
    return {name: None if known is None else known[place] for name, known in sums.items()}


def time_to_accuracy(metric: str, rows: Rows) -> list[dict[str, Any]]:
    """What it took until the score first was 1 and 2 points below the final one.

    Args:
        metric: of the scores; higher is better, errors are negative.
        rows: a report's ``rounds_log``.

    Returns:
        One entry for each group of clients and each distance: ``who``, ``below``, ``score`` (the one to
        reach), ``round``, ``seconds`` (virtual), ``bytes`` and ``joules`` (mean per client); the costs are
        ``None`` where the run does not know them. A group without a score has no entry.
    """
    found = []
    for who in _GROUPS:
        scores = [row.get(f"score_{who}") for row in rows]
        final = smoothed(scores)[-1] if rows else None
        for below in BELOW if final is not None else ():
            target = allowed(metric, final or 0.0, below)
            place = first_round(scores, target)
            if place is not None:
                reached = {"who": who, "below": below, "score": target, "round": rows[place]["round"]}
                found.append(reached | cost_at(rows, place))
    return found


def same_score(metric: str, logs: Sequence[Rows], who: str = "clients") -> list[dict[str, Any]]:
    """What each of several runs needed to reach a score that all of them reach.

    The score is 1 point (of an error, 1 %) below the lowest of their final ones, each averaged over three
    rounds. Where a run has no score at all there is nothing to compare: an empty list.
    """
    scores = [[row.get(f"score_{who}") for row in rows] for rows in logs]
    finals = [found[-1] for one in scores if (found := smoothed(one))]
    known = [final for final in finals if final is not None]
    if not known or len(known) < len(logs):
        return []
    target = allowed(metric, min(known), BELOW[0])
    places = [first_round(one, target) for one in scores]
    return [
        {"score": target, "round": rows[place]["round"]} | cost_at(rows, place)
        for rows, place in zip(logs, places, strict=True)
        if place is not None
    ]
