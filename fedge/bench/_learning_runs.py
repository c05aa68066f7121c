"""What the worker processes of ``fedge bench learning`` do: make a student, run rounds, train centrally."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedge.bench._learning_roles import last_windows
from fedge.compress.export import export_int8
from fedge.config import Config
from fedge.edge.runtime import Runtime
from fedge.errors import FedgeError
from fedge.federated.coding import Weights
from fedge.federated.journal import Journal
from fedge.federated.prepare import Prepared, pack_prepared, prepare, unpack_prepared
from fedge.federated.server import Federation, run_rounds
from fedge.federated.strategy import learning_rate
from fedge.federated.training import answers, fine_tune
from fedge.flower.client_app import ContextStore, make_client_app
from fedge.flower.grid_clients import GridClients
from fedge.metrics import accuracy
from fedge.observe import silent
from fedge.seeding import derive
from fedge.simulation.local import LocalGrid
from fedge.simulation.scoring import Scorer, mean
from fedge.simulation.summary import int8_agreement, more_scores
from fedge.simulation.world import World, build_world

Answers = Mapping[str, NDArray[np.float32]]
Records = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Job:
    """One piece of work for one process.

    Attributes:
        config: everything: roles, seed, student and mode.
        prepared: the file of teacher and student.
        official: clients of a published test set, to be scored on their last windows; or none.
    """

    config: Config
    prepared: Path
    official: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """A score as a mean over unseen clients and as a mean over participants; None where it is not defined."""

    unseen: float | None
    clients: float | None


@dataclass(frozen=True)
class Start:
    """A student before any round.

    Attributes:
        score: of its weights as the clients decode them, in float.
        multiply_adds: for one window.
    """

    score: Pair
    multiply_adds: int


@dataclass(frozen=True, eq=False)
class End:
    """What the rounds led to.

    Attributes:
        score: of the global weights, in float.
        int8: of the exported model in ONNX Runtime.
        agreement: share of the windows on which that and the fake-quantized forward say the same.
        uplink: bytes, mean per client over the whole run.
        downlink: likewise; the first download is not in it.
        tried: re-distilled students that were judged.
        accepted: those that were taken.
        more: the task's further scores of the int8 model, as in a report.
        missing: accuracy on windows of the classes that the server lacks, in float; None without such.
        official: error on the published test set; None without one.
        model: the int8 model.
        multiply_adds: for one window.
    """

    score: Pair
    int8: Pair
    agreement: float
    uplink: float
    downlink: float
    tried: int
    accepted: int
    more: Mapping[str, Mapping[str, float | None]]
    missing: Pair | None
    official: float | None
    model: bytes
    multiply_adds: int


def equal_world(config: Config) -> World:
    """The same data for every mode: windows, or people, are held back for judges even where nobody judges."""
    settings = replace(config.redistill, mode="ensemble", every=1)
    rounds = replace(config.rounds, rounds=max(2, config.rounds.rounds))
    return build_world(replace(config, redistill=settings, rounds=rounds))


def make_student(job: Job) -> Start:
    """Teacher (from the cache, if it is there) and student; they go to ``job.prepared``."""
    world = equal_world(job.config)
    classes, channels = len(world.dataset.classes), world.dataset.channels
    made = prepare(world.config, world.task, world.server_data(), classes, channels, silent)
    job.prepared.write_bytes(pack_prepared(made))
    return Start(_score(Scorer.of(world, made.plan)(made.weights)), made.plan.spec.multiply_adds())


def _open(job: Job) -> tuple[World, Prepared]:
    world = equal_world(job.config)
    return world, unpack_prepared(job.prepared.read_bytes(), world.config, world.task, world.server_data())


def federate(job: Job) -> End:
    """The rounds of ``job.config``, as ``fedge simulate`` runs them, and what is to be said of their end.

    Raises:
        FedgeError: a client's answer was refused, so that the run says nothing about learning.
    """
    world, prepared = _open(job)
    with TemporaryDirectory(prefix="fedge-bench-") as folder:
        weights, records = _rounds(job.config, world, prepared, Path(folder))
    return _end(job, world, prepared, weights, records)


def _rounds(config: Config, world: World, prepared: Prepared, folder: Path) -> tuple[Weights, Records]:
    participants = world.roles.participants
    app = make_client_app(lambda c: world.device(int(c.node_config["partition-id"]), ContextStore(c)))
    with (
        Journal(folder / "journal.sqlite") as journal,
        LocalGrid(app, len(participants), {}, folder / "clients.sqlite") as grid,
    ):
        state = run_rounds(
            Federation(
                config=config,
                task=world.task,
                prepared=prepared,
                clients=GridClients(grid),
                enrolled={c: world.key(c).public for c in participants},
                publisher=None,
                journal=journal,
                observer=silent,
                score=lambda _: {},
            )
        )
        records = journal.rounds()
    if refused := [name for r in records for name in r["refused"]]:
        raise FedgeError(f"an answer of client {refused[0]} was refused")
    return state.weights, records


def _end(job: Job, world: World, prepared: Prepared, weights: Weights, records: Records) -> End:
    plan, scorer = prepared.plan, Scorer.of(world, prepared.plan)
    model = export_int8(plan.spec, weights, plan.scales, plan.preprocess)
    runtime = Runtime(model)
    in_float = {c: answers(plan, weights, x, quantized=False) for c, x in scorer.inputs.items()}
    in_int8 = {c: runtime.predict(w.x) for c, w in world.held_out().items()}
    judged = [r["redistillation"] for r in records if r["redistillation"]]
    clients = len(world.roles.participants)
    return End(
        score=_score(scorer.summary(in_float)),
        int8=_score(scorer.summary(in_int8)),
        agreement=int8_agreement(scorer, weights, runtime, in_int8)["share"],
        uplink=_bytes(records, "up", "initial_up") / clients,
        downlink=_bytes(records, "down") / clients,
        tried=len(judged),
        accepted=sum(bool(one["accepted"]) for one in judged),
        more=more_scores(world, in_int8, runtime.predict),
        missing=class_accuracy(world, in_float, world.missing()) if _lacks(job.config) else None,
        official=_official(job, world, prepared, weights) if job.official else None,
        model=model,
        multiply_adds=plan.spec.multiply_adds(),
    )


def _lacks(config: Config) -> bool:
    return config.data.split == "missing"


def _bytes(records: Records, *keys: str) -> int:
    return sum(sum(r[key].values()) for r in records for key in keys)


def _score(summary: Mapping[str, Any]) -> Pair:
    unseen, clients = (float("nan") if summary[w] is None else summary[w] for w in ("unseen", "clients"))
    return Pair(unseen, clients)


def class_accuracy(world: World, given: Answers, classes: Sequence[int]) -> Pair:
    """Accuracy on held-out windows of these classes: per client, then the mean over those that have any."""
    held = world.held_out()
    each = {}
    for client, scores in given.items():
        mine = np.isin(held[client].y, list(classes))
        if mine.any():
            each[client] = accuracy(scores[mine], held[client].y[mine])

    def over(clients: Sequence[str]) -> float | None:
        known = [each[c] for c in clients if c in each]
        return mean(known) if known else None

    return Pair(over(world.roles.unseen), over(world.roles.participants))


def _official(job: Job, world: World, prepared: Prepared, weights: Weights) -> float:
    """Minus the task's score of the last windows of the published test set: an error, such as RMSE."""
    windows = last_windows(job.config, world.task.target, job.official)
    x = torch.from_numpy(prepared.plan.preprocess.apply(windows.x))
    return -world.task.score(answers(prepared.plan, weights, x, quantized=False), windows.y)


def train_centrally(job: Job) -> Pair:
    """The same student, trained as clients train it, but on everyone's training windows in one place.

    It starts where the clients start, keeps the pruned weights at zero, and makes as many passes as the
    rounds do, with their learning rates. What FedProx and FedDyn add against drift is left out.
    """
    world, prepared = _open(job)
    training = replace(prepared.plan.training, proximal=0.0, dynamic=0.0, personal_head=False)
    plan, config = replace(prepared.plan, training=training), job.config
    x, y = _everyone(world, prepared, plan.preprocess.apply)
    weights: Weights = prepared.weights
    for number in range(1, config.rounds.rounds + 1):
        rate, seed = learning_rate(config, number), derive(config.seed, "central", number)
        weights, _ = fine_tune(plan, world.task, weights, prepared.support, (x, y), rate, seed)
    return _score(Scorer.of(world, plan)(weights))


def _everyone(
    world: World, prepared: Prepared, apply: Callable[[NDArray[Any]], NDArray[np.float32]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The server's and the participants' training windows ``[n, channels, *size]``, labels ``[n]``."""
    parts = [world.parts[c].train for c in world.roles.participants]
    x = torch.cat([prepared.x, *(torch.from_numpy(apply(p.x)) for p in parts if len(p))])
    return x, torch.cat([prepared.y, *(torch.from_numpy(p.y) for p in parts if len(p))])
