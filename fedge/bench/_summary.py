"""From the curves of all methods and seeds to the JSON object and the table."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedge.bench._curves import TRAILING, Curve, mean_curve, spread, target_of
from fedge.bench._shared import LOCAL_EPOCHS

BASELINE, OURS, FROM_RANDOM = "fedavg_fp32", "fedge", "fedavg_random"

COUNTED = (
    "bytes per client, counted as the payload handed to Flower: arrays of FedAvg's messages, whole frames of "
    "fedge; what Flower adds on the wire is counted for neither"
)


def summary(
    about: Mapping[str, Any], labels: Mapping[str, str], curves: Mapping[str, Sequence[Curve]]
) -> dict[str, Any]:
    """The JSON object.

    The numbers of a method are those of its mean curve over seeds, up to the first round at the target, or
    to its end where it does not get there (``reached``). ``seeds`` holds the same from each seed's own
    curve against that seed's own baseline.
    """
    means = {name: mean_curve(runs) for name, runs in curves.items()}
    target = target_of(means[BASELINE])
    methods = {name: _row(labels[name], means[name], target) for name in means}
    for name, runs in curves.items():
        methods[name]["seeds"] = _over_seeds(runs, curves[BASELINE])
    return {
        **about,
        "counted": COUNTED,
        "target": target,
        "methods": methods,
        "ratio": _ratios(methods),
        "score_gap": _gap(means[BASELINE], methods[OURS]),
        "local_epochs_at_the_end": {
            "epochs": LOCAL_EPOCHS,
            "clients": {n: {"before": c.clients[-1], "after": c.tuned} for n, c in means.items()},
        },
        "curves": {name: curve.to_dict() for name, curve in means.items()},
    }


def _row(label: str, curve: Curve, target: dict[str, float]) -> dict[str, Any]:
    at = curve.reaches(target)
    number = curve.rounds if at is None else at
    return {
        "label": label,
        "reached": at is not None,
        "score": curve.score(number),
        "rounds": number,
        "uplink": curve.uplink[number],
        "downlink": curve.downlink[number],
        "initial": curve.initial,
        "total": curve.total(number),
        "end": {
            "score": curve.score(curve.rounds),
            "rounds": curve.rounds,
            "total": curve.total(curve.rounds),
        },
    }


def _over_seeds(runs: Sequence[Curve], baselines: Sequence[Curve]) -> dict[str, Any]:
    at = [run.reaches(target_of(baseline)) for run, baseline in zip(runs, baselines, strict=True)]
    reached = [(run, number) for run, number in zip(runs, at, strict=True) if number is not None]
    ends = [run.score(run.rounds) for run in runs]
    return {
        "reached": len(reached),
        "of": len(runs),
        "rounds": spread([number for _, number in reached]) if reached else None,
        "total": spread([run.total(number) for run, number in reached]) if reached else None,
        "clients_end": spread([e["clients"] for e in ends]),
        "unseen_end": spread([e["unseen"] for e in ends]),
        "clients_after_local_epochs": spread([run.tuned for run in runs]),
    }


def _ratios(methods: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """How many times fewer bytes fedge needs; ``None`` where it, or the baseline, misses the target.

    A start from random weights that misses it counts with all of its bytes: a lower bound.
    """
    base, ours, random = methods[BASELINE], methods[OURS], methods.get(FROM_RANDOM)
    if not ours["reached"] or not base["reached"]:
        return {"rounds": None, "total": None, "total_from_random": None}
    traffic = [row["uplink"] + row["downlink"] for row in (base, ours)]
    return {
        "rounds": traffic[0] / traffic[1],
        "total": base["total"] / ours["total"],
        "total_from_random": random["total"] / ours["total"] if random else None,
        "total_from_random_is_lower_bound": bool(random and not random["reached"]),
    }


def _gap(baseline: Curve, ours: Mapping[str, Any]) -> float:
    end = baseline.score(baseline.rounds)
    return max(end[k] - float(ours["score"][k]) for k in end)


_HEAD = (
    "method", "clients", "unseen", "rounds", "initial", "up", "down", "total", "ratio", "at the end", "own"
)  # fmt: skip


def lines(result: Mapping[str, Any]) -> list[str]:
    """The table for people."""
    target, ratio, gap = result["target"], result["ratio"], 100 * result["score_gap"]
    tuned = [
        f"FedAvg, {r['start']} start, tuned: rate {r['rate']:g}, {r['epochs']} epochs, {r['rounds']} rounds"
        for r in result["grid"]
        if "rounds" in r
    ]
    return [
        f"{result['data']}, {result['seeds']} seed(s). Target: clients {target['clients']:.3f} and unseen "
        f"{target['unseen']:.3f}, one point below where {BASELINE} ends, as means of {TRAILING} rounds",
        *tuned,
        *_table([_HEAD, *(_cells(name, result) for name in result["methods"])]),
        f"* not at the target: whole run. at the end: clients, unseen. own: clients after {LOCAL_EPOCHS} "
        "local epochs at the end",
        result["counted"],
        f"fedge against {BASELINE}: rounds {_times(ratio['rounds'])}, all in {_times(ratio['total'])}; "
        f"against a random start {_times(ratio['total_from_random'])}; score gap {gap:.1f} points",
    ]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width, the first flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def _cells(name: str, result: Mapping[str, Any]) -> tuple[str, ...]:
    row, base = result["methods"][name], result["methods"][BASELINE]
    end, own = row["end"]["score"], result["local_epochs_at_the_end"]["clients"][name]["after"]
    return (
        row["label"],
        f"{row['score']['clients']:.3f}",
        f"{row['score']['unseen']:.3f}",
        f"{row['rounds']}" if row["reached"] else f"{row['rounds']}*",
        *(size(row[k]) for k in ("initial", "uplink", "downlink", "total")),
        _times(base["total"] / row["total"]) if row["reached"] else "-",
        f"{end['clients']:.3f} {end['unseen']:.3f}",
        f"{own:.3f}",
    )


def _times(ratio: float | None) -> str:
    return "not reached" if ratio is None else f"{ratio:.3g}x" if ratio < 100 else f"{ratio:.0f}x"


def size(amount: float) -> str:
    """Bytes for people: ``7.3 kB``."""
    for unit, scale in (("MB", 1e6), ("kB", 1e3)):
        if amount >= scale:
            return f"{amount / scale:.3g} {unit}"
    return f"{amount:.0f} B"
