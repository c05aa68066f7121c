"""From what a run left behind to ``report.json`` and ``report.html``."""

import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedge import __version__
from fedge.compress.export import export_float, export_int8
from fedge.edge.runtime import Runtime
from fedge.errors import SetupError
from fedge.federated.prepare import Prepared
from fedge.federated.state import FederationState
from fedge.federated.training import logits
from fedge.report import write_html
from fedge.simulation.world import Scorer, World, mean

Record = dict[str, Any]


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
    int8 = export_int8(spec, run.state.weights, plan.scales)
    runtime = Runtime(int8, plan.preprocess)
    held = world.held_out()
    answers = {c: runtime.predict(w.x) for c, w in held.items()}
    by_int8 = run.scorer.summary(answers)
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
        },
        "student": {
            "parameters": spec.parameters(),
            "multiply_adds": spec.multiply_adds(),
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
        "bytes": _byte_means(traffic),
        "plain_fp32": _plain_fp32(run),
        "rounds_log": [_round_row(r) for r in run.rounds],
        "clients_log": _client_rows(run, before["each"], after["each"], by_int8["each"], traffic),
        "latency_us": _latencies(run, int8, next(iter(held.values())).x[:1]),
        "agreement": _agreement(run, answers),
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
    scores = []
    with torch.no_grad():
        for client in run.world.roles.unseen:
            answers = run.prepared.teacher(run.scorer.inputs[client]).numpy()
            scores.append(run.world.task.score(answers, run.world.dataset.clients[client].y))
    return mean(scores)


def _agreement(run: Run, answers: Mapping[str, NDArray[np.float32]]) -> Record:
    """Share of windows on which the fake-quantized forward and the int8 ONNX model name the same class."""
    same = total = 0
    for client, x in run.scorer.inputs.items():
        torch_says = logits(run.prepared.plan, run.state.weights, x, quantized=True).argmax(axis=1)
        same += int((torch_says == answers[client].argmax(axis=1)).sum())
        total += len(x)
    return {"windows": total, "share": same / total}


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
        "student_fp32": export_float(plan.spec, run.state.weights, plan.scales),
        "student_int8": int8,
    }
    return {name: _median_us(Runtime(model, plan.preprocess), window) for name, model in models.items()}


def _median_us(runtime: Runtime, window: NDArray[np.float32], repeats: int = 200) -> float:
    for _ in range(20):
        runtime.predict(window)
    times = []
    for _ in range(repeats):
        start = time.perf_counter_ns()
        runtime.predict(window)
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times) / 1000


def teacher_onnx(run: Run) -> bytes:
    """The teacher in float32, to measure it on the same runtime. Torch's own exporter; never shipped."""
    spec, buffer = run.prepared.plan.spec, BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            run.prepared.teacher,
            (torch.zeros(1, spec.channels, spec.time),),
            buffer,  # type: ignore[arg-type] # the older exporter writes to any file object
            dynamo=False,  # the newer exporter needs another package
            input_names=["window"],
            output_names=["scores"],
            dynamic_axes={"window": {0: "batch"}, "scores": {0: "batch"}},
            opset_version=17,
        )
    return buffer.getvalue()
