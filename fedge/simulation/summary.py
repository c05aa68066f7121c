"""From what a run left behind to ``report.json`` and ``report.html``."""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedge import __version__
from fedge.compress.export import export_float, export_int8
from fedge.compress.export_module import export_module
from fedge.data.types import ClientData, Windows
from fedge.edge.latency import median_us
from fedge.edge.runtime import Runtime
from fedge.errors import SetupError
from fedge.federated.coding import Weights
from fedge.federated.prepare import Prepared
from fedge.federated.publish import NORMAL_SHARE
from fedge.federated.state import FederationState
from fedge.federated.teaching import ask, own
from fedge.federated.training import answers
from fedge.metrics import METRICS, f1_at, threshold
from fedge.models.student import scores as to_scores
from fedge.report import write_html
from fedge.simulation.world import Scorer, World, mean
from fedge.tasks import agreement

Record = dict[str, Any]
Predict = Callable[[NDArray[Any]], NDArray[np.float32]]
"""From windows ``[n, *size, channels]`` in the sensor's units to answers ``[n, scores]``."""


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run.

    Attributes:
        world: data, roles and settings.
        prepared: teacher and student before the rounds.
        state: the federation after them.
        rounds: the journal's records.
        without: records of the same rounds without re-distillation; ``None`` where they are the same.
        scorer: scores weights on everyone's held-out windows.
        out: the run's folder.
        engine: what ran the clients.
    """

    world: World
    prepared: Prepared
    state: FederationState
    rounds: list[Record]
    without: list[Record] | None
    scorer: Scorer
    out: Path
    engine: str


def make_report(run: Run) -> Record:
    """Everything that ``report.json`` says."""
    world, plan, config = run.world, run.prepared.plan, run.world.config
    spec = plan.spec
    before, after = run.scorer(run.prepared.weights), run.scorer(run.state.weights)
    int8 = export_int8(spec, run.state.weights, plan.scales, plan.preprocess)
    runtime = Runtime(int8)
    held = world.held_out()
    given = {c: runtime.predict(w.x) for c, w in held.items()}
    by_int8 = run.scorer.summary(given)
    releases = [r["release"] | {"round": r["round"]} for r in run.rounds if r["release"]]
    traffic = _traffic(run)
    return {
        "schema": 1,
        "fedge_version": __version__,
        "scenario": config.scenario,
        "task": config.task,
        "seed": config.seed,
        "clients": len(world.roles.participants),
        "rounds": len(run.rounds),
        "engine": run.engine,
        "metric": world.task.metric,
        "teacher": {
            "parameters": run.prepared.teacher_parameters,
            "bytes": 4 * run.prepared.teacher_parameters,
            "score_unseen": _teacher_score(run),
            "own": config.teacher.module or config.teacher.onnx or None,
        },
        "student": {
            "parameters": spec.parameters(),
            "multiply_adds": spec.multiply_adds(),
            "uncut": {"parameters": run.prepared.uncut[0], "multiply_adds": run.prepared.uncut[1]},
            "bytes_float32": 4 * spec.parameters(),
            "bytes_int8_onnx": len(int8),
            "nonzero": sum(int(np.count_nonzero(w)) for w in run.state.weights.values()),
        },
        "score": {
            "unseen_initial": before["unseen"],
            "clients_initial": before["clients"],
            "unseen": after["unseen"],
            "clients": after["clients"],
            "unseen_int8": by_int8["unseen"],
            "clients_int8": by_int8["clients"],
        },
        "more_scores": more_scores(world, given, runtime.predict),
        "personal": _personal(run),
        "bytes": _byte_means(traffic),
        "plain_fp32": _plain_fp32(run),
        "rounds_log": [_round_row(r) for r in run.rounds],
        "clients_log": _client_rows(run, before["each"], after["each"], by_int8["each"], traffic),
        "latency_us": _latencies(run, int8, next(iter(held.values())).x[:1]),
        "agreement": int8_agreement(run.scorer, run.state.weights, runtime, given),
        "pruning": _pruning(run),
        "redistillations": [r["redistillation"] for r in run.rounds if r["redistillation"]],
        "without_redistillation": _without(run, after),
        "releases": [_release_row(r, run) for r in releases],
        "release": {
            "version": releases[-1]["version"],
            "path": releases[-1]["path"],
            "sha256": releases[-1]["sha256"],
            "bytes_per_client": sum(r["bytes"] for r in releases),
        },
        "config": config.to_dict(),
        "dataset": _dataset(world),
    }


def write_report(report: Record, out: Path) -> None:
    """``report.json`` and ``report.html``, each written whole or not at all.

    Raises:
        SetupError: they cannot be written.
    """
    write_whole(out / "report.html", lambda path: write_html(report, path))
    write_whole(out / "report.json", lambda path: _write_json(report, path))  # last: it marks a finished run


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` write beside ``path``, then put it in place.

    Raises:
        SetupError: it cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(beside)
        beside.replace(path)
    except (OSError, SetupError) as error:
        why = error.strerror if isinstance(error, OSError) else error.__cause__ or error
        raise SetupError(f"cannot write {path}: {why}; make room, then --resume") from None
    finally:
        beside.unlink(missing_ok=True)


def _write_json(report: Record, path: Path) -> None:
    path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _traffic(run: Run) -> dict[str, tuple[int, int, int]]:
    """For each participant: bytes of the initial download, up, and down after it."""
    totals = {c: [0, 0, 0] for c in run.world.roles.participants}
    for record in run.rounds:
        for key, slot in (("initial_down", 0), ("initial_up", 1), ("up", 1), ("down", 2)):
            for client, amount in record[key].items():
                totals[client][slot] += amount
    return {c: (i, u, d) for c, (i, u, d) in totals.items()}


def _byte_means(traffic: Mapping[str, tuple[int, int, int]]) -> Record:
    count = len(traffic)
    initial, up, down = (sum(t[i] for t in traffic.values()) / count for i in range(3))
    return {"initial_download": initial, "uplink": up, "downlink": down}


def _dataset(world: World) -> Record:
    return {
        "name": world.dataset.name,
        "clients": len(world.dataset.clients),
        "classes": list(world.dataset.classes),
        "channels": list(world.dataset.channels),
        "window": list(world.dataset.window),
        "server": list(world.roles.server),
        "unseen": list(world.roles.unseen),
    }


def _plain_fp32(run: Run) -> Record:
    """What federated averaging of the same student in fp32 would send, mean per client, to whoever took part.

    The weights go down to, and come up from, each participant of each round; nothing else is counted.
    """
    each_way = 4 * run.prepared.plan.spec.parameters()
    visits = sum(r["participants"] for r in run.rounds) / len(run.world.roles.participants)
    return {"per_round_each_way": each_way, "total": 2 * each_way * visits}


def _round_row(record: Record) -> Record:
    tried = record["redistillation"]
    return {
        "round": record["round"],
        "seconds": record["seconds"],
        "uplink": mean(list(record["up"].values())),
        "downlink": mean(list(record["down"].values())),
        "score_unseen": record["scores"]["unseen"],
        "score_clients": record["scores"]["clients"],
        "redistilled": bool(tried and tried["accepted"]),
        "released_version": record["release"]["version"] if record["release"] else None,
        "participants": record["participants"],
        "counted": len(record["counted"]),
        "loss": record["loss"],
    }


def _client_rows(
    run: Run,
    before: Mapping[str, float],
    after: Mapping[str, float],
    int8: Mapping[str, float],
    traffic: Mapping[str, tuple[int, int, int]],
) -> list[Record]:
    rows = []
    roles = [(c, "participant") for c in run.world.roles.participants]
    for client, role in roles + [(c, "unseen") for c in run.world.roles.unseen]:
        part = run.world.parts.get(client)
        initial, up, down = traffic.get(client, (0, 0, 0))
        rows.append(
            {
                "id": client,
                "role": role,
                "windows_train": len(part.train) if part else 0,
                "windows_later": len(part.later) if part else len(run.world.dataset.clients[client]),
                "score_initial": before.get(client),
                "score_final": after.get(client),
                "score_int8": int8.get(client),
                "initial_download": initial,
                "uplink": up,
                "downlink": down,
            }
        )
    return rows


def _teacher_score(run: Run) -> float:
    """Mean over unseen clients."""
    scores, spec = [], run.prepared.plan.spec
    asked = ask(run.world.config, spec, run.prepared.teacher)
    with torch.no_grad():
        for client in run.world.roles.unseen:
            x = run.scorer.inputs[client]
            answered = to_scores(spec, x, asked(x).outputs).numpy()
            scores.append(run.world.task.score(answered, run.world.dataset.clients[client].y))
    return mean(scores)


def int8_agreement(
    scorer: Scorer, weights: Weights, runtime: Runtime, given: Mapping[str, NDArray[np.float32]]
) -> Record:
    """Share of windows on which the fake-quantized forward and the int8 ONNX model say the same.

    Args:
        scorer: holds everyone's windows.
        weights: global weights.
        runtime: the int8 model of these weights.
        given: its answers by client.
    """
    plan, world, edge = scorer.plan, scorer.world, 0.0
    if world.task.target == "anomaly":
        edge = threshold(runtime.predict(world.server_data().labelled.x)[:, 0], NORMAL_SHARE)
    same = total = 0
    for client, x in scorer.inputs.items():
        torch_says = answers(plan, weights, x, quantized=True)
        same += int(agreement(world.task, plan.spec, torch_says, given[client], edge).sum())
        total += len(x)
    return {"windows": total, "share": same / total}


def more_scores(world: World, given: Mapping[str, NDArray[np.float32]], predict: Predict) -> Record:
    """The task's further metrics of answers by client: means over participants and over unseen clients.

    For anomalies also the metrics over all unseen windows together (``*_pooled``), and F1 with each client's
    own threshold (``f1_own``), which is set on the windows that it trains on, or for an unseen client on the
    first half of its normal windows; F1 is then taken on the rest. A score that is not defined on a client's
    windows, such as F1 where none is anomalous, is left out of the mean.

    Args:
        world: data and roles.
        given: answers ``[n, scores]`` on the held-out windows, by client.
        predict: answers on further windows ``[n, *size, channels]``, by the same model.
    """
    held = world.held_out()
    found: Record = {}
    for name in world.task.also:
        each = {c: METRICS[name](scores, held[c].y) for c, scores in given.items()}
        found[name] = _by_role(world, each)
    if world.task.target == "anomaly":
        own_f1 = {c: _f1_own(held[c], world.parts.get(c), scores, predict) for c, scores in given.items()}
        found["f1_own"] = _by_role(world, own_f1)
        unseen = [c for c in world.roles.unseen if c in given]
        scores, y = (
            np.concatenate([part[c] for c in unseen]) for part in (given, {c: held[c].y for c in unseen})
        )
        for name in (world.task.metric, *world.task.also):
            pooled = METRICS[name](scores, y)
            found[f"{name}_pooled"] = {"unseen": pooled if pooled == pooled else None}
    return found


def _f1_own(
    windows: Windows, part: ClientData | None, scores: NDArray[np.float32], predict: Predict
) -> float:
    """F1 of a client's held-out ``windows`` at its own threshold; NaN where either is not defined.

    ``part`` is what the client itself holds, if it takes part; ``scores`` ``[n, 1]`` belong to ``windows``.
    """
    flat = scores[:, 0]
    if part is not None:
        train = part.train.x
        normal, rest = (predict(train)[:, 0] if len(train) else flat[:0]), np.ones(len(flat), np.bool_)
    else:
        usual = windows.y == 0 if windows.trainable is None else windows.trainable
        places = np.flatnonzero(usual)
        first = places[: max(1, len(places) // 2)]
        normal, rest = flat[first], ~np.isin(np.arange(len(flat)), first)
    if not len(normal) or not rest.any():
        return math.nan
    return f1_at(flat[rest], windows.y[rest], threshold(normal, NORMAL_SHARE))


def _by_role(world: World, each: Mapping[str, float]) -> Record:
    def over(clients: tuple[str, ...]) -> float | None:
        known = [each[c] for c in clients if c in each and each[c] == each[c]]
        return mean(known) if known else None

    return {"clients": over(world.roles.participants), "unseen": over(world.roles.unseen)}


def _personal(run: Run) -> float | None:
    """Mean score that the participants had with their own heads, in the last round; None without such."""
    own = run.rounds[-1]["own_scores"].values()
    known = [score for score in own if score is not None]
    return mean(known) if run.world.config.local.personal_head and known else None


def _pruning(run: Run) -> Record:
    weights = run.state.weights
    layers: list[Record] = []
    for name, alive in run.prepared.support.alive.items():
        if alive.ndim > 1:
            zeros = float((weights[name] == 0).mean())
            layers.append({"name": name, "parameters": int(alive.size), "zero_share": zeros})
    everything = sum(row["parameters"] for row in layers)
    zero = sum(row["zero_share"] * row["parameters"] for row in layers) / everything
    return {
        "stated_share": run.world.config.student.prune_share,
        "zero_share": zero,
        "layers": layers,
        "sensitivity": [{"name": r.name, "losses": list(r.losses)} for r in run.prepared.sensitivity],
    }


def _without(run: Run, after: Record) -> Record | None:
    if not any(r["redistillation"] for r in run.rounds):
        return None
    rounds = run.rounds if run.without is None else run.without
    last = after if run.without is None else rounds[-1]["scores"]
    return {
        "same_as_this_run": run.without is None,
        "score": {"unseen": last["unseen"], "clients": last["clients"]},
        "rounds_log": [
            {
                "round": r["round"],
                "score_unseen": r["scores"]["unseen"],
                "score_clients": r["scores"]["clients"],
            }
            for r in rounds
        ],
    }


def _release_row(release: Record, run: Run) -> Record:
    scores = run.rounds[release["round"] - 1]["scores"]
    return {
        "version": release["version"],
        "round": release["round"],
        "path": release["path"],
        "sha256": release["sha256"],
        "bytes": release["bytes"],
        "unseen": scores["unseen"],
        "clients": scores["clients"],
        "decisions": release["decisions"],
    }


def _latencies(run: Run, int8: bytes, window: NDArray[np.float32]) -> Record:
    """Median microseconds of one window through ONNX Runtime, one thread, preprocessing included."""
    plan = run.prepared.plan
    models = {
        "teacher_fp32": teacher_onnx(run),
        "student_fp32": export_float(plan.spec, run.state.weights, plan.scales, plan.preprocess),
        "student_int8": int8,
    }
    return {name: median_us(Runtime(model), window) for name, model in models.items() if model is not None}


def teacher_onnx(run: Run) -> bytes | None:
    """The teacher in float32, to measure it on the same runtime; never shipped.

    ``None`` for a user's own teacher, and for one that torch's exporter cannot write.
    """
    plan = run.prepared.plan
    if own(run.world.config):
        return None
    return export_module(run.prepared.teacher, plan.spec.window, plan.preprocess)
