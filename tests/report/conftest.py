"""An example of a report: 12 participants, 4 unseen clients, 30 rounds, made up from a seed."""

import random
from typing import Any

import pytest

_CLASSES = ["still", "walking", "stairs up", "stairs down", "running", "cycling"]


def example_report(
    rounds: int = 30, participants: int = 12, unseen: int = 4, seed: int = 0
) -> dict[str, Any]:
    """Everything that a report can hold, with plausible numbers; the same for the same arguments."""
    dice = random.Random(seed)
    clients = _clients_log(dice, participants, unseen)
    means = _means(clients)
    log = _rounds_log(dice, rounds, participants, means)
    names = [one["id"] for one in clients if one["role"] == "participant"]
    up, down = (sum(one[key] for one in log) for key in ("uplink", "downlink"))
    dense, each = 19_846, 79_384
    return {
        "schema": 1,
        "fedge_version": "0.1.0",
        "scenario": "watch",
        "task": "har",
        "seed": seed,
        "clients": participants,
        "rounds": rounds,
        "engine": "local",
        "metric": "macro_f1",
        "teacher": {"parameters": 1_204_230, "bytes": 4_816_920, "score_unseen": 0.7412, "own": None},
        "student": {
            "parameters": dense,
            "multiply_adds": 390_592,
            "uncut": {"parameters": 41_003, "multiply_adds": 801_280},
            "bytes_float32": each,
            "bytes_int8_onnx": 27_904,
            "nonzero": 9_923,
        },
        "score": {
            **means,
            "unseen_int8": means["unseen"] - 0.0013,
            "clients_int8": means["clients"] - 0.0021,
        },
        "more_scores": {"accuracy": {"clients": 0.9177, "unseen": 0.8266}},
        "personal": 0.9343,
        "bytes": {"initial_download": 3_911.0, "uplink": up, "downlink": down},
        "plain_fp32": {"per_round_each_way": each, "total": each * (2 * rounds + 1)},
        "rounds_log": log,
        "clients_log": clients,
        "latency_us": {"teacher_fp32": 412.7, "student_fp32": 28.4, "student_int8": 14.1},
        "agreement": {"windows": 4210, "share": 0.9971},
        "pruning": _pruning(),
        "redistillations": _redistillations(names),
        "without_redistillation": _without(log),
        "releases": _releases(dice, names),
        "release": {"version": 3, "path": "releases/3", "sha256": "c" * 64, "bytes_per_client": 27_904},
        "config": {
            "run": {"rounds": rounds, "seed": seed, "engine": "local"},
            "codec": {"name": "ternary", "share": 0.01, "error_feedback": True},
            "train": {"epochs": 4, "learning_rate": 0.005, "batch": 32, "momentum": 0.9},
            "redistill": {"every": 10, "mode": "ensemble", "judges": 4, "interpolation": 0.3},
        },
        "dataset": {
            "name": "smartwatch",
            "clients": participants + unseen + 2,
            "classes": _CLASSES,
            "channels": ["ax", "ay", "az", "gx", "gy", "gz"],
            "window": [128, 6],
        },
        "seconds": {"data": 2.1, "teacher": 48.3, "distillation": 31.7, "rounds": 71.2, "release": 3.4},
    }


def _rounds_log(
    dice: random.Random, rounds: int, participants: int, means: dict[str, float]
) -> list[dict[str, Any]]:
    log = []
    for at in range(1, rounds + 1):
        done = (1 - 0.88**at) / (1 - 0.88**rounds)
        left = (rounds - at) / rounds
        score = {
            key: means[f"{key}_initial"]
            + done * (means[key] - means[f"{key}_initial"])
            + left * dice.gauss(0, 0.008)
            for key in ("unseen", "clients")
        }
        log.append(
            {
                "round": at,
                "seconds": round(2.1 + dice.random() * 0.6, 3),
                "uplink": round(230 + 60 * dice.random(), 1),
                "downlink": round(190 + 50 * dice.random() + (2100 if at in (10, 20) else 0), 1),
                "score_unseen": round(score["unseen"], 4),
                "score_clients": round(score["clients"], 4),
                "redistilled": at == 10,
                "released_version": {10: 1, 20: 2, 30: 3}.get(at),
                "participants": participants,
                "loss": round(0.9 - 0.6 * done, 4),
            }
        )
    return log


def _clients_log(dice: random.Random, participants: int, unseen: int) -> list[dict[str, Any]]:
    log = []
    for k in range(participants + unseen):
        role = "participant" if k < participants else "unseen"
        initial = min(0.95, max(0.4, dice.gauss(0.66, 0.08)))
        gain = 0.26 if role == "participant" else 0.17
        final = initial - 0.014 if k == 4 else min(0.991, initial + gain * dice.uniform(0.6, 1.2))
        log.append(
            {
                "id": f"{101 + k}",
                "role": role,
                "windows_train": dice.randint(180, 420) if role == "participant" else 0,
                "windows_later": dice.randint(60, 140),
                "score_initial": round(initial, 4),
                "score_final": round(final, 4),
                "score_int8": round(final - 0.002, 4),
                "uplink": 7_800 if role == "participant" else 0,
                "downlink": 10_650 if role == "participant" else 0,
            }
        )
    return log


def _means(clients: list[dict[str, Any]]) -> dict[str, float]:
    means = {}
    for key, role in (("unseen", "unseen"), ("clients", "participant")):
        for suffix, field in (("_initial", "score_initial"), ("", "score_final")):
            values = [one[field] for one in clients if one["role"] == role]
            means[f"{key}{suffix}"] = round(sum(values) / len(values), 4)
    return means


def _pruning() -> dict[str, Any]:
    layers = [
        ("conv1", 1_344, 0.211),
        ("conv2", 6_208, 0.514),
        ("conv3", 10_304, 0.552),
        ("head", 1_990, 0.402),
    ]
    return {
        "stated_share": 0.5,
        "zero_share": 0.5001,
        "layers": [{"name": n, "parameters": p, "zero_share": z} for n, p, z in layers],
    }


def _redistillations(names: list[str]) -> list[dict[str, Any]]:
    def judges(shift: float) -> list[dict[str, Any]]:
        return [
            {
                "client": name,
                "windows": 64,
                "aggregate": 0.84 + 0.01 * k,
                "candidate": 0.84 + 0.01 * k + shift,
                "aggregate_loss": 0.52,
                "candidate_loss": 0.52 - shift,
            }
            for k, name in enumerate(names[:4])
        ]

    reasons = ("3 of 4 judges score the candidate higher", "the candidate is 2.1 points below the aggregate")
    return [
        {
            "round": at,
            "judged_in_round": at + 1,
            "judges": judges(shift),
            "aggregate": aggregate,
            "candidate": round(aggregate + shift, 4),
            "accepted": shift > 0,
            "reason": reason,
            "mode": "ensemble",
            "bytes": 2_106.0,
        }
        for at, shift, aggregate, reason in ((10, 0.0154, 0.855, reasons[0]), (20, -0.021, 0.894, reasons[1]))
    ]


def _without(log: list[dict[str, Any]]) -> dict[str, Any]:
    lower = [
        {
            "round": one["round"],
            "score_unseen": round(one["score_unseen"] - 0.013 * (one["round"] > 10), 4),
            "score_clients": round(one["score_clients"] - 0.004 * (one["round"] > 10), 4),
        }
        for one in log
    ]
    last = {"unseen": lower[-1]["score_unseen"], "clients": lower[-1]["score_clients"]} if lower else {}
    return {"same_as_this_run": False, "score": last, "rounds_log": lower}


def _releases(dice: random.Random, names: list[str]) -> list[dict[str, Any]]:
    releases = []
    for version, at in ((1, 10), (2, 20), (3, 30)):
        decisions = []
        for k, name in enumerate(names):
            current = round(0.62 + 0.08 * version + dice.uniform(-0.04, 0.04), 4)
            taken = not (k == 4 and version > 1)
            candidate = round(current + (0.05 if taken else -0.031), 4)
            reason = "not worse on its own data" if taken else "worse on its own data beyond the margin"
            decisions.append(
                {
                    "client": name,
                    "taken": taken,
                    "reason": reason,
                    "current": current,
                    "candidate": candidate,
                    "windows": 96,
                }
            )
        releases.append(
            {
                "version": version,
                "round": at,
                "path": f"releases/{version}",
                "sha256": "abc"[version - 1] * 64,
                "bytes": 27_904,
                "unseen": 0.74 + 0.03 * version,
                "clients": 0.8 + 0.035 * version,
                "decisions": decisions,
            }
        )
    return releases


def example_of_errors() -> dict[str, Any]:
    """The same run with an error as its metric: each score of the example, times 50, is an RMSE."""
    report = example_report()
    report["metric"], report["task"] = "negative_rmse", "remaining_life"
    report["more_scores"], report["dataset"]["classes"] = {}, []
    report = _as_error(report)
    report["personal"] = -50 * report["personal"]
    for one in report["redistillations"]:
        one["reason"] = "loss +0.0021 (standard error 0.0010) on 256 windows of 4 judges"
    return report


_SCORES = {
    "unseen", "clients", "unseen_initial", "clients_initial", "unseen_int8", "clients_int8", "score_unseen",
    "score_clients", "score_initial", "score_final", "score_int8", "aggregate", "candidate", "current",
}  # fmt: skip


def _as_error(value: Any) -> Any:
    """Scores in a part of a report, wherever they stand, as negative errors."""
    if isinstance(value, dict):
        return {
            k: -50 * v if k in _SCORES and isinstance(v, float) else _as_error(v) for k, v in value.items()
        }
    return [_as_error(item) for item in value] if isinstance(value, list) else value


@pytest.fixture
def report() -> dict[str, Any]:
    """A fresh copy of the example for each test."""
    return example_report()
