"""``fedge bench communication``: bytes to the same score, fedge against Flower's FedAvg.

All methods share data, split, student, initial weights and the clients' training code. FedAvg's learning
rate, local epochs and rounds are tuned first, on windows that the participants hold back from training; the
unseen clients and everyone's later windows are looked at only to report. Then every method runs on every
seed. A method is at the target when the mean of three rounds is within one point of where the fp32
baseline ends, on the clients and on the unseen.

Bytes are counted as the payload handed to Flower: for FedAvg the arrays of each message
(``ArrayRecord.count_bytes``), for fedge whole frames, signatures included. What Flower adds on the wire is
counted for neither.
"""

import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

from fedge.bench._curves import Curve, stops_rising, trailing
from fedge.bench._fedavg import WIRES, fedavg, random_start
from fedge.bench._fedge import fedge
from fedge.bench._plot import write_plot
from fedge.bench._shared import make_bench, shared_world
from fedge.bench._summary import lines, summary
from fedge.config import Config, load_config
from fedge.errors import InputError
from fedge.federated.prepare import pack_prepared, prepare, unpack_prepared
from fedge.observe import Observer, Terminal, silent

__all__ = ["FEDAVG", "FEDGE", "Method", "Plan", "lines", "measure", "run"]


@dataclass(frozen=True)
class Method:
    """One line of the comparison.

    Attributes:
        name: key in the result.
        label: what the plot calls it.
        wire: of FedAvg: how arrays travel; empty for fedge.
        start: of FedAvg: ``student`` (as the clients decode it) or ``random``.
        settings: of fedge: what differs from the scenario in the rounds.
        student: of fedge: what differs in how the student is made.
    """

    name: str
    label: str
    wire: str = ""
    start: str = "student"
    settings: Mapping[str, Any] = field(default_factory=dict)
    student: Mapping[str, Any] = field(default_factory=dict)


FEDAVG = (
    Method("fedavg_fp32", "FedAvg fp32", "float32"),
    Method("fedavg_fp16", "FedAvg float16", "float16"),
    Method("fedavg_uint8", "FedAvg 8 bits", "uint8"),
    Method("fedavg_random", "FedAvg fp32 from random", "float32", "random"),
)
_TWO_BITS = {"quantize.download_bits": 2, "student.tune_epochs": 30}
_BRISK = {"rounds.server_learning_rate": 1.5}


def _shares(up: float, down: float, **more: Any) -> dict[str, Any]:
    return {"uplink.share": up, "downlink.share": down, **_BRISK, **more}


# Chosen on another split of the people (3 and 4 the server's, 7 and 8 unseen), seeds 0 and 1.
FEDGE = (
    Method("fedge", "fedge", settings=_shares(0.01, 0.02), student=_TWO_BITS),
    Method("fedge_4bit", "fedge 4-bit start", settings=_shares(0.01, 0.02)),
    Method("fedge_low", "fedge low", settings=_shares(0.005, 0.01), student=_TWO_BITS),
    Method("fedge_high", "fedge high", settings=_shares(0.02, 0.05), student=_TWO_BITS),
    Method(
        "fedge_6kb",
        "fedge 6 kB",
        settings={"uplink.share": 0.002, "downlink.share": 0.002, "local.epochs": 4, "rounds.rounds": 8},
        student=_TWO_BITS,
    ),
)


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        data: an ``.npz`` file or a folder; ``None`` for the scenario ``watch``.
        task: replaces the scenario's.
        seeds: how many, from 0.
        rounds: of fedge.
        most_rounds: of FedAvg.
        tuning_rounds: of each point of the grid.
        rates: learning rates of the grid.
        epochs: local epochs of the grid.
        methods: what runs.
        settings: changes to the scenario for all methods.
        workers: processes at a time; with 1 everything runs in this one.
    """

    data: str | None = None
    task: str | None = None
    seeds: int = 5
    rounds: int = 60
    most_rounds: int = 60
    tuning_rounds: int = 15
    rates: tuple[float, ...] = (0.01, 0.03, 0.1)
    epochs: tuple[int, ...] = (1, 2)
    methods: tuple[Method, ...] = FEDAVG + FEDGE
    settings: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 2


@dataclass(frozen=True)
class Recipe:
    """How FedAvg runs: learning rate, local epochs and rounds."""

    rate: float
    epochs: int
    rounds: int


@dataclass(frozen=True)
class Job:
    """One run of one method on one seed, from the prepared student in ``prepared``."""

    method: Method
    config: Config
    prepared: Path
    recipe: Recipe | None = None


def run(
    data: str | None, task: str | None, seeds: int, rounds: int | None, out: Path | None
) -> dict[str, Any]:
    """Measure, and write ``communication.svg`` to the folder ``out`` if there is one.

    Raises:
        InputError: ``seeds`` or ``rounds`` is too small, or the data cannot be used.
    """
    if seeds < 1 or (rounds is not None and rounds < 2):
        raise InputError(f"{seeds} seeds and {rounds} rounds asked for; give 1 and 2 or more")
    standard = Plan()
    plan = replace(standard, data=data, task=task, seeds=seeds)
    if rounds is not None:
        few = min(rounds, standard.tuning_rounds)
        plan = replace(plan, rounds=rounds, most_rounds=rounds, tuning_rounds=few)
    return measure(plan, out, Terminal(sys.stderr))


def measure(plan: Plan, out: Path | None = None, observer: Observer = silent) -> dict[str, Any]:
    """Everything that ``run`` does, for any plan; the result is what ``--json`` prints."""
    shared_world(_config(plan, 0, {}))  # refuses what cannot be used before any process is started
    with tempfile.TemporaryDirectory(prefix="fedge-bench-") as folder, _mapper(plan.workers) as each:
        students = _make_students(plan, Path(folder), each, observer)
        grid, recipes = _tune(plan, students, each, observer)
        jobs = [
            _job(plan, m, s, students, recipes[m.start] if m.wire else None)
            for s in range(plan.seeds)
            for m in plan.methods
        ]
        curves: dict[str, list[Curve]] = {m.name: [] for m in plan.methods}
        with observer.stage("methods") as stage:
            for done, (job, curve) in enumerate(zip(jobs, each(_run_job, jobs), strict=True), 1):
                curves[job.method.name].append(curve)
                observer.progress(done, len(jobs), f"run {done}/{len(jobs)}")
            stage.result = f"{len(jobs)} runs"
    about = {"data": plan.data or "watch", "task": jobs[0].config.task, "seeds": plan.seeds, "grid": grid}
    result = summary(about, {m.name: m.label for m in plan.methods}, curves)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_plot(result, out / "communication.svg")
    return result


_Job, _Result = TypeVar("_Job"), TypeVar("_Result")
Each = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]


@contextmanager
def _mapper(workers: int) -> Iterator[Each]:
    """``map`` over that many fresh processes, results in order; in this process for one."""
    if workers == 1:
        yield map
        return
    count = min(workers, os.cpu_count() or 1)
    with ProcessPoolExecutor(count, get_context("spawn"), _one_thread) as pool:
        yield pool.map
        pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def _config(plan: Plan, seed: int, settings: Mapping[str, Any]) -> Config:
    own = {} if plan.data is None else {"data.source": plan.data}
    base = {"redistill.mode": "none", "rounds.rounds": plan.rounds, "seed": seed}
    scenario = "watch" if plan.data is None else None
    return load_config(scenario, {**own, **base, **plan.settings, **settings}, task=plan.task)


def _job(
    plan: Plan, method: Method, seed: int, students: Mapping[Any, Path], recipe: Recipe | None = None
) -> Job:
    config = _config(plan, seed, {**method.student, **method.settings})
    return Job(method, config, students[_key(seed, method)], recipe)


def _key(seed: int, method: Method) -> tuple[int, tuple[tuple[str, Any], ...]]:
    return seed, tuple(sorted(method.student.items()))


def _make_students(plan: Plan, folder: Path, each: Each, observer: Observer) -> dict[Any, Path]:
    """Teacher and student of every seed, once for each way in which methods want it made."""
    wanted = {_key(s, m): (s, m) for m in plan.methods for s in range(plan.seeds)}
    paths = {key: folder / f"student-{i}" for i, key in enumerate(wanted)}
    jobs = [Job(m, _config(plan, s, m.student), paths[key]) for key, (s, m) in wanted.items()]
    with observer.stage("students") as stage:
        for done, _ in enumerate(each(_prepare, jobs), 1):
            observer.progress(done, len(jobs), f"student {done}/{len(jobs)}")
        stage.result = f"{len(jobs)} made"
    return paths


def _prepare(job: Job) -> None:
    world = shared_world(job.config)
    classes, channels = len(world.dataset.classes), world.dataset.channels
    made = prepare(job.config, world.task, world.server_data(), classes, channels, silent)
    job.prepared.write_bytes(pack_prepared(made))


def _run_job(job: Job) -> Curve:
    """One method on one seed."""
    world = shared_world(job.config)
    made = unpack_prepared(job.prepared.read_bytes(), job.config, world.task, world.server_data())
    bench = make_bench(job.config, world, made)
    with tempfile.TemporaryDirectory(prefix="fedge-bench-") as folder:
        if job.recipe is None:
            return fedge(bench, Path(folder))
        start = made.weights if job.method.start == "student" else random_start(bench)
        r = job.recipe
        return fedavg(bench, start, WIRES[job.method.wire], r.rate, r.epochs, r.rounds, Path(folder))


_SMOOTH, _CLOSE = 5, 0.005
"""Rounds of the mean by which grid points are compared, and what counts as the same score."""


def _tune(
    plan: Plan, students: Mapping[Any, Path], each: Each, observer: Observer
) -> tuple[list[dict[str, Any]], dict[str, Recipe]]:
    """Learning rate, epochs and rounds of FedAvg for each kind of start, on the first seed.

    Of the grid's points that come within half a point of the best, the one that gets there first; then as
    many rounds as its smoothed score on the judge windows still rises.
    """
    first = {m.start: m for m in plan.methods if m.wire == "float32"}
    points = [(s, Recipe(r, e, plan.tuning_rounds)) for s in first for r in plan.rates for e in plan.epochs]
    with observer.stage("tuning of FedAvg") as stage:
        jobs = [_job(plan, first[s], 0, students, recipe) for s, recipe in points]
        rows = []
        for done, ((start, r), curve) in enumerate(zip(points, each(_run_job, jobs), strict=True), 1):
            observer.progress(done, len(jobs) + len(first), f"run {done}")
            rows.append({"start": start, "rate": r.rate, "epochs": r.epochs, "judge": _smooth(curve)})
        best = {start: _best([row for row in rows if row["start"] == start]) for start in first}
        jobs = [_job(plan, m, 0, students, Recipe(*best[s], plan.most_rounds)) for s, m in first.items()]
        long = dict(zip(first, each(_run_job, jobs), strict=True))
        recipes = {s: Recipe(*best[s], stops_rising(long[s].judge, _SMOOTH, _CLOSE)) for s in first}
        stage.result = "; ".join(
            f"{s}: {r.rate:g}, {r.epochs} epochs, {r.rounds} rounds" for s, r in recipes.items()
        )
    chosen = [
        {"start": s, "rate": r.rate, "epochs": r.epochs, "rounds": r.rounds, "judge": _smooth(long[s])}
        for s, r in recipes.items()
    ]
    return [*rows, *chosen], recipes


def _smooth(curve: Curve) -> list[float]:
    return [trailing(curve.judge, r, _SMOOTH) for r in range(1, curve.rounds + 1)]


def _best(rows: list[dict[str, Any]]) -> tuple[float, int]:
    good = max(max(row["judge"]) for row in rows) - _CLOSE

    def arrives(row: dict[str, Any]) -> float:
        return next((r for r, score in enumerate(row["judge"]) if score >= good), float("inf"))

    winner = min(rows, key=arrives)
    return winner["rate"], winner["epochs"]
