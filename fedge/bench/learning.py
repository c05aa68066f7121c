"""``fedge bench learning``: what re-distillation, distillation, rounding and cutting do to the scores.

Every mode of re-distillation runs from the same prepared student, on the same windows, with the same seeds
and for the same number of rounds; then come the student without a teacher, the same student trained
centrally, int8 and half the channels. Nothing is tuned here: settings are those of the scenario and of
``--set``. Differences are taken run by run before they are averaged.
"""

import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from fedge.bench._learning_lines import lines
from fedge.bench._learning_pool import Each, workers
from fedge.bench._learning_roles import fold_roles, official_clients, official_roles, with_roles
from fedge.bench._learning_runs import (
    End,
    Job,
    Pair,
    Start,
    equal_world,
    federate,
    make_student,
    train_centrally,
)
from fedge.bench._learning_speed import speedup
from fedge.bench._learning_summary import HALF, Case, Runs, summary
from fedge.config import Config
from fedge.errors import InputError
from fedge.observe import Observer, Terminal, silent
from fedge.plugins import nearest
from fedge.simulation.world import CONFIG, World, config_of, to_run_config

__all__ = ["MODES", "PARTS", "Plan", "lines", "measure", "run"]

MODES = ("none", "teacher", "ensemble", "gradient")
PARTS = ("modes", "ceiling", "server_only", "int8", "pruning")
_OF_TARGET = {"class": (), "anomaly": ("anomaly",), "number": ("rmse",)}
_OFFICIAL = -1  # the fold of runs for a published test set
_ENDS = {"modes", "ceiling", "int8", "anomaly", "rmse"}  # parts that look at the scenario's own rounds

_Key = TypeVar("_Key", bound=Hashable)
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        config: the scenario with everything that was set.
        seeds: how many, from that of ``config``.
        folds: 1 for the scenario's roles, else how many rotations (``fold_roles``).
        only: the parts; empty for all that fit the task.
        workers: processes at a time; with 1 everything runs in this one.
    """

    config: Config
    seeds: int = 3
    folds: int = 1
    only: tuple[str, ...] = ()
    workers: int = 2


def run(config: Config, seeds: int, folds: int, only: str | None) -> dict[str, Any]:
    """Measure; ``only`` is a list of parts with commas between.

    Raises:
        InputError: the plan makes no sense, or the data cannot be used.
    """
    parts = tuple(p.strip() for p in only.split(",")) if only is not None else ()
    return measure(Plan(config, seeds, folds, parts), Terminal(sys.stderr))


def measure(plan: Plan, observer: Observer = silent) -> dict[str, Any]:
    """Everything that ``run`` does, for any plan; the result is what ``--json`` prints."""
    if plan.seeds < 1 or plan.folds < 1 or plan.config.rounds.rounds < 2:
        raise InputError(
            f"{plan.seeds} seeds, {plan.folds} folds and {plan.config.rounds.rounds} rounds asked for; give "
            "1, 1 and 2 or more"
        )
    world = equal_world(_checked(plan.config))  # refuses what cannot be used before any process is started
    parts = _parts(plan, world)
    with TemporaryDirectory(prefix="fedge-bench-") as folder, workers(plan.workers) as each:
        found = _Bench(plan, parts, world, Path(folder), each, observer).runs()
    about = {
        "data": world.dataset.name,
        "task": plan.config.task,
        "metric": world.task.metric,
        "split": plan.config.data.split,
        "mode": plan.config.redistill.mode,
        "rounds": plan.config.rounds.rounds,
        "seeds": plan.seeds,
        "folds": plan.folds,
    }
    return {**summary(about, parts, found), "config": plan.config.to_dict()}


def _parts(plan: Plan, world: World) -> tuple[str, ...]:
    """The parts that were asked for, or all that fit the task."""
    fitting = PARTS + _OF_TARGET[world.task.target]
    for part in plan.only:
        if part not in fitting:
            raise InputError(f"no part {part!r} for task {world.task.name!r}; {nearest(part, list(fitting))}")
    return plan.only or fitting


def _checked(config: Config) -> Config:
    """``config`` with all its modes, refused where a combination cannot work."""
    for mode in MODES:
        changed = replace(config, redistill=replace(config.redistill, mode=mode))
        config_of({CONFIG: to_run_config(changed)})
    return config


@dataclass(frozen=True, eq=False)
class _Bench:
    """Everything that runs, in order.

    Attributes:
        plan: what is measured.
        parts: of it.
        world: that of the first seed, with the scenario's roles.
        folder: prepared students are written there.
        each: does the jobs.
        observer: is told how far it is.
    """

    plan: Plan
    parts: tuple[str, ...]
    world: World
    folder: Path
    each: Each
    observer: Observer

    def runs(self) -> Runs:
        """Students first, then rounds, then central training."""
        own, keep = self.plan.config.redistill.mode, self.plan.config.student.keep
        seeds = [self.plan.config.seed + i for i in range(self.plan.seeds)]
        cases = [(fold, seed) for fold in range(self.plan.folds) for seed in seeds]
        wanted = self._wanted(own, keep, cases)
        shares = list(dict.fromkeys([keep, *(share for _, _, share in wanted)]))
        distilled = self._students(cases, shares)
        scratch = self._scratch(cases) if "server_only" in self.parts else {}
        ends = self._each("rounds", federate, {k: self._job(*k) for k in wanted})
        central: dict[Case, Pair] = {}
        if "ceiling" in self.parts:
            jobs = {case: self._job(own, case, keep) for case in cases}
            central = self._each("central training", train_centrally, jobs)
        official = self._official(own, seeds) if "rmse" in self.parts else {}
        speedups = {}
        if "pruning" in self.parts:
            pairs = {c: (ends[own, c, 1.0].model, ends[own, c, HALF].model) for c in cases}
            speedups = {c: speedup(*pair) for c, pair in pairs.items()}
        return Runs(own, keep, distilled, scratch, ends, central, official, speedups)

    def _wanted(self, own: str, keep: float, cases: Sequence[Case]) -> list[tuple[str, Case, float]]:
        """Mode, case and share of every run of rounds."""
        modes = MODES if "modes" in self.parts else (own,) if _ENDS & set(self.parts) else ()
        kinds = [(mode, keep) for mode in modes]
        if "pruning" in self.parts:
            kinds += [(own, 1.0), (own, HALF)]
        return [(mode, case, share) for case in cases for mode, share in dict.fromkeys(kinds)]

    def _students(self, cases: Sequence[Case], shares: Sequence[float]) -> dict[tuple[Case, float], Start]:
        """One after the other the shares, so that no two processes train the same teacher."""
        made: dict[tuple[Case, float], Start] = {}
        for share in shares:
            jobs = {(case, share): self._job("none", case, share) for case in cases}
            name = "students" if share == shares[0] else f"students with {share:.0%} of the multiply-adds"
            made |= self._each(name, make_student, jobs)
        return made

    def _scratch(self, cases: Sequence[Case]) -> dict[Case, Start]:
        """The same students by the same steps, from labels alone: the teacher has no weight in the loss."""
        jobs = {}
        for case in cases:
            job = self._job("none", case, self.plan.config.student.keep)
            student = replace(job.config.student, hard_weight=1.0, loss="")
            path = self.folder / f"{job.prepared.name}-scratch"
            jobs[case] = Job(replace(job.config, student=student), path)
        return self._each("students from scratch", make_student, jobs)

    def _official(self, own: str, seeds: Sequence[int]) -> dict[int, End]:
        """Rounds without the clients of a published test set, where the data mark one."""
        names = official_clients(self.plan.config)
        if not names:
            return {}
        roles = official_roles(self._clients(), names)
        jobs = {}
        for seed in seeds:
            job = self._job(own, (_OFFICIAL, seed), self.plan.config.student.keep)
            config = with_roles(job.config, *roles)
            config = replace(config, data=replace(config.data, later_share=0.0))  # nobody else is scored
            jobs[seed] = Job(config, job.prepared, names)
        self._each("students for the published test set", make_student, jobs)
        return self._each("rounds for the published test set", federate, jobs)

    def _job(self, mode: str, case: Case, keep: float) -> Job:
        """The work on one case: its settings, and where its student is."""
        fold, seed = case
        config = replace(self.plan.config, seed=seed)
        config = replace(config, redistill=replace(config.redistill, mode=mode))
        config = replace(config, student=replace(config.student, keep=keep))
        if self.plan.folds > 1 and fold != _OFFICIAL:
            config = with_roles(config, *fold_roles(self._clients(), self.plan.folds)[fold])
        return Job(config, self.folder / f"student-{fold}-{seed}-{keep}")

    def _clients(self) -> tuple[str, ...]:
        """Everyone, in sorted order, but those whose windows the server has without labels."""
        return tuple(c for c in self.world.dataset.clients if c not in self.world.roles.unlabelled)

    def _each(
        self, name: str, work: Callable[[Job], _Result], jobs: Mapping[_Key, Job]
    ) -> dict[_Key, _Result]:
        """The result of every job, by its key."""
        found = self.each(name, work, list(jobs.values()), self.observer)
        return dict(zip(jobs, found, strict=True))
