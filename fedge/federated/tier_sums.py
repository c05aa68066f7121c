"""What an edge server says for all of its clients together, and what it owes them."""

import math
from collections import Counter
from collections.abc import Mapping
from statistics import fmean

import numpy as np

from fedge.errors import UpdateError
from fedge.federated.checks import MOST_WINDOWS
from fedge.federated.coding import Weights
from fedge.federated.frames import Scores, Train, Verdict
from fedge.federated.strategy import discounted
from fedge.update import Update

NOBODY = "nobody"
"""The verdict on a release where no client is there to try it."""

_OWED, _WEIGHT, _ROUND = "owed/", "weight", "round"


def owed(change: Weights, weight: int, number: int) -> Weights:
    """What is to be added to a later answer, if that to round ``number`` does not count."""
    numbers = {_WEIGHT: np.array([weight], np.float32), _ROUND: np.array([number], np.float32)}
    return {_OWED + n: c for n, c in change.items()} | numbers


def with_owed(total: Update | None, memory: Weights, task: Train) -> Update | None:
    """The sum, with a mean that the parent did not count in it, for less the later it is.

    Where no update came there is nothing to add it to: it waits for the next round.
    """
    if total is None or _WEIGHT not in memory:
        return total
    change = {n.removeprefix(_OWED): c for n, c in memory.items() if n.startswith(_OWED)}
    weight = discounted(int(memory[_WEIGHT][0]), max(1, task.round - int(memory[_ROUND][0])))
    try:
        return total + Update.of(change, weight, task.version)
    except UpdateError:
        return total  # the sum would overflow: then the old one is let go


def mean(numbers: Mapping[str, float]) -> float:
    """Over the clients whose number is defined, in order of their names; NaN if it is for none."""
    known = [numbers[c] for c in sorted(numbers) if not math.isnan(numbers[c])]
    return fmean(known) if known else math.nan


def judged(scores: Mapping[str, Scores]) -> Scores | None:
    """The numbers of all judges as those of one: every judge has one vote."""
    if not scores:
        return None
    # where ``strategy.judge`` would compare: a score that is defined for one side only says nothing
    both = {c: s for c, s in scores.items() if not math.isnan(s.score_held + s.score_candidate)}
    return Scores(
        min(MOST_WINDOWS, sum(s.windows for s in scores.values())),
        mean({c: s.loss_held for c, s in scores.items()}),
        mean({c: s.score_held for c, s in both.items()}),
        mean({c: s.loss_candidate for c, s in scores.items()}),
        mean({c: s.score_candidate for c, s in both.items()}),
    )


def together(version: int, verdicts: Mapping[str, Verdict]) -> Verdict:
    """What all clients made of a release: taken if any took it, with the commonest reason.

    Args:
        version: of the release; 0 where the package brought none.
        verdicts: by client.
    """
    taken = {c: v for c, v in verdicts.items() if v.taken}
    codes = Counter(v.code for v in (taken or verdicts).values())
    return Verdict(
        version or max((v.version for v in taken.values()), default=0),
        bool(taken),
        max(sorted(codes), key=lambda code: codes[code]) if codes else NOBODY,
        mean({c: v.current for c, v in verdicts.items()}),
        mean({c: v.candidate for c, v in verdicts.items()}),
        min(MOST_WINDOWS, sum(v.windows for v in verdicts.values())),
    )
