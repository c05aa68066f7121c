"""From the runs of ``fedge bench learning`` to the JSON object: means, spreads and paired differences."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedge.bench._learning_runs import End, Pair, Start

Record = dict[str, Any]
Case = tuple[int, int]
"""Fold and seed."""

SCORES = ("unseen", "clients")
HALF = 0.5
"""Share of the multiply-adds that is kept in the part ``pruning``."""


@dataclass(frozen=True, eq=False)
class Runs:
    """Everything that ran.

    Attributes:
        own: the scenario's own mode.
        keep: the scenario's own share of the multiply-adds.
        distilled: by case and share.
        scratch: students that only saw labels, by case.
        ends: rounds, by mode, case and share.
        central: students trained centrally, by case.
        official: rounds without the official test clients, by seed.
        speedups: of the half student, by case.
    """

    own: str
    keep: float
    distilled: Mapping[tuple[Case, float], Start]
    scratch: Mapping[Case, Start]
    ends: Mapping[tuple[str, Case, float], End]
    central: Mapping[Case, Pair]
    official: Mapping[int, End]
    speedups: Mapping[Case, float]

    def of(self, mode: str, keep: float | None = None) -> dict[Case, End]:
        """The rounds of one mode, by case."""
        share = self.keep if keep is None else keep
        return {case: e for (m, case, k), e in self.ends.items() if m == mode and k == share}

    def modes(self) -> list[str]:
        """The modes that ran with the scenario's own student, in the order in which they started."""
        return list(dict.fromkeys(m for m, _, keep in self.ends if keep == self.keep))


def spread(name: str, values: Iterable[float | None]) -> Record:
    """Mean and standard deviation of the sample under ``name`` and ``name_std``; null where not defined."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    return {
        name: statistics.fmean(known) if known else None,
        f"{name}_std": statistics.stdev(known) if len(known) > 1 else None,
    }


def paired(name: str, one: Mapping[Case, float | None], other: Mapping[Case, float | None]) -> Record:
    """Mean of ``one - other`` over the cases that both have, with its standard error."""
    both = ((a, other.get(case)) for case, a in one.items())
    gaps = [a - b for a, b in both if a is not None and b is not None]
    error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else None
    return {name: statistics.fmean(gaps) if gaps else None, f"{name}_se": error}


def _scores(pairs: Mapping[Case, Pair], suffix: str = "") -> Record:
    row: Record = {}
    for which in SCORES:
        row |= spread(which + suffix, (getattr(p, which) for p in pairs.values()))
    return row


def _gaps(name: str, one: Mapping[Case, Pair], other: Mapping[Case, Pair]) -> Record:
    row: Record = {}
    for which in SCORES:
        mine, theirs = ({c: getattr(p, which) for c, p in pairs.items()} for pairs in (one, other))
        row |= paired(f"{name}_{which}", mine, theirs)
    return row


def summary(about: Mapping[str, Any], parts: Sequence[str], runs: Runs) -> Record:
    """The JSON object: ``about``, ``modes`` of whatever ran, and an entry for each part asked for."""
    result: Record = {**about, "modes": {m: _mode(runs, m) for m in runs.modes()}}
    own = runs.of(runs.own)
    if any(e.missing for e in runs.ends.values()):
        result["missing_classes"] = {m: _missing(runs, m) for m in runs.modes()}
    if "ceiling" in parts:
        central = runs.central
        result["ceiling"] = _scores(central)
        result |= _gaps("gap", central, {c: e.score for c, e in own.items()})
    if "server_only" in parts:
        result["student"] = _student(runs)
    if "int8" in parts:
        result["int8"] = _int8(own)
    if "pruning" in parts:
        result["pruning"] = _pruning(runs)
    if "anomaly" in parts:
        result["anomaly"] = _anomaly(own)
    if "rmse" in parts:
        result["rmse"] = _rmse(own, runs.official)
    return {**result, "runs": [_run(key, end) for key, end in runs.ends.items()]}


def _mode(runs: Runs, mode: str) -> Record:
    ends, none = runs.of(mode), runs.of("none")
    row = _scores({c: e.score for c, e in ends.items()})
    for name in ("uplink", "downlink", "tried", "accepted"):
        row[name] = statistics.fmean(getattr(e, name) for e in ends.values())
    if none:
        row |= _gaps("gain", {c: e.score for c, e in ends.items()}, {c: e.score for c, e in none.items()})
    return row


def _missing(runs: Runs, mode: str) -> Record:
    mine, none = (
        {c: e.missing for c, e in runs.of(m).items() if e.missing is not None} for m in (mode, "none")
    )
    return _scores(mine) | (_gaps("gain", mine, none) if none else {})


def _student(runs: Runs) -> Record:
    distilled = {case: s.score for (case, keep), s in runs.distilled.items() if keep == runs.keep}
    scratch = {case: s.score for case, s in runs.scratch.items()}
    gains = _gaps("gain", distilled, scratch)
    return {
        "distilled": _scores(distilled),
        "scratch": _scores(scratch),
        **gains,
        "se": gains["gain_unseen_se"],
    }


def _int8(own: Mapping[Case, End]) -> Record:
    in_float, in_int8 = ({c: getattr(e, which) for c, e in own.items()} for which in ("score", "int8"))
    return {
        **_gaps("gap", in_float, in_int8),
        **spread("agreement", (e.agreement for e in own.values())),
        "agreement_least": min(e.agreement for e in own.values()),
    }


def _pruning(runs: Runs) -> Record:
    full, half = runs.of(runs.own, 1.0), runs.of(runs.own, HALF)
    scores = [{c: e.score for c, e in ends.items()} for ends in (full, half)]
    kept = (half[c].multiply_adds / e.multiply_adds for c, e in full.items())
    return {
        **_scores(scores[0], "_full"),
        **_scores(scores[1], "_half"),
        **_gaps("loss", *scores),
        "multiply_adds_kept": statistics.fmean(kept),
        **spread("speedup_batch32", runs.speedups.values()),
    }


def _anomaly(own: Mapping[Case, End]) -> Record:
    row: Record = {}
    for metric in ("auroc", "auprc"):
        row |= spread(f"{metric}_pooled", (e.more[f"{metric}_pooled"]["unseen"] for e in own.values()))
    auroc = {c: e.int8 for c, e in own.items()}
    f1 = {c: Pair(e.more["f1_own"]["unseen"], e.more["f1_own"]["clients"]) for c, e in own.items()}
    return {**row, "auroc": _scores(auroc), "f1_own": _scores(f1)}


def _rmse(own: Mapping[Case, End], official: Mapping[int, End]) -> Record:
    errors = {c: Pair(*(-v if v is not None else None for v in _both(e.score))) for c, e in own.items()}
    return _scores(errors) | spread("official", (e.official for e in official.values()))


def _both(pair: Pair) -> tuple[float | None, float | None]:
    return pair.unseen, pair.clients


def _run(key: tuple[str, Case, float], end: End) -> Record:
    mode, (fold, seed), keep = key
    scores = {"unseen": end.score.unseen, "clients": end.score.clients}
    return {"mode": mode, "fold": fold, "seed": seed, "keep": keep, **scores, "accepted": end.accepted}
