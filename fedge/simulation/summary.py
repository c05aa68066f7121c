"""From what a run left behind to ``report.json`` and ``report.html``."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fedge import __version__
from fedge.compress.export import export_int8
from fedge.edge.runtime import Runtime
from fedge.errors import SetupError
from fedge.report import write_html
from fedge.report.reach import time_to_accuracy
from fedge.simulation.finished import Record, Run
from fedge.simulation.summary_rows import (
    byte_means,
    client_rows,
    dataset,
    plain_fp32,
    release_row,
    releases_of,
    round_rows,
    tiers,
    traffic_of,
    virtual,
    without,
)
from fedge.simulation.summary_scores import (
    int8_agreement,
    latencies,
    more_scores,
    personal,
    pruning,
    teacher_score,
)

__all__ = [
    "Run",
    "int8_agreement",
    "make_report",
    "more_scores",
    "write_json",
    "write_report",
    "write_whole",
]


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
    releases = releases_of(run)
    traffic, rows = traffic_of(run), round_rows(run)
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
            "score_unseen": teacher_score(run),
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
        "personal": personal(run),
        "bytes": byte_means(traffic),
        "plain_fp32": plain_fp32(run),
        "rounds_log": rows,
        "time_to_accuracy": time_to_accuracy(world.task.metric, rows),
        "clients_log": client_rows(run, before["each"], after["each"], by_int8["each"], traffic),
        "latency_us": latencies(run, int8, next(iter(held.values())).x[:1]),
        "agreement": int8_agreement(run.scorer, run.state.weights, runtime, given),
        "pruning": pruning(run),
        "redistillations": [r["redistillation"] for r in run.rounds if r["redistillation"]],
        "without_redistillation": without(run, after),
        "releases": [release_row(r, run) for r in releases],
        "release": {
            "version": releases[-1]["version"],
            "path": releases[-1]["path"],
            "sha256": releases[-1]["sha256"],
            "bytes_per_client": sum(r["bytes"] for r in releases),
        },
        "config": config.to_dict(),
        "dataset": dataset(world),
        **tiers(run),
        **virtual(run),
    }


def write_report(report: Record, out: Path) -> None:
    """``report.json`` and ``report.html``, each written whole or not at all.

    Raises:
        SetupError: they cannot be written.
    """
    write_whole(out / "report.html", lambda path: write_html(report, path))
    write_whole(out / "report.json", lambda path: write_json(report, path))  # last: it marks a finished run


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


def write_json(report: Record, path: Path) -> None:
    """As text; numbers that are not finite are refused."""
    path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
