"""What a report says about models: further scores, agreement with the int8 file, latency, zeros."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedge.compress.export import export_float
from fedge.compress.export_module import export_module
from fedge.data.types import ClientData, Windows
from fedge.edge.latency import median_us
from fedge.edge.runtime import Runtime
from fedge.federated.answers import agreement
from fedge.federated.coding import Weights
from fedge.federated.teaching import ask, own
from fedge.federated.training import answers
from fedge.metrics import METRICS, NORMAL_SHARE, f1_at, threshold
from fedge.models.student import scores as to_scores
from fedge.simulation.finished import Record, Run
from fedge.simulation.scoring import Scorer, mean
from fedge.simulation.world import World

Predict = Callable[[NDArray[Any]], NDArray[np.float32]]
"""From windows ``[n, *size, channels]`` in the sensor's units to answers ``[n, scores]``."""


def teacher_score(run: Run) -> float:
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


def personal(run: Run) -> float | None:
    """Mean score that the participants had with their own heads, in the last round; None without such."""
    own = run.rounds[-1]["own_scores"].values()
    known = [score for score in own if score is not None]
    return mean(known) if run.world.config.local.personal_head and known else None


def pruning(run: Run) -> Record:
    """How many weights are zero, by layer, and what removing weights did to the loss."""
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


def latencies(run: Run, int8: bytes, window: NDArray[np.float32]) -> Record:
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
