"""What all methods of the communication bench have in common: data, split, student, seeds and scores."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedge.config import Config
from fedge.data.types import Windows
from fedge.federated.coding import Support, Weights
from fedge.federated.plan import Plan
from fedge.federated.prepare import Prepared, make_plan
from fedge.federated.training import answers, fine_tune
from fedge.seeding import derive
from fedge.simulation.scoring import Scorer, mean
from fedge.simulation.world import World, build_world

LOCAL_EPOCHS = 5
"""Epochs of a participant on its own windows after the last round; they cost no bytes."""


@dataclass(frozen=True)
class Scores:
    """Of some global weights: means over participants, over unseen clients, and on pooled judge windows."""

    clients: float
    unseen: float
    judge: float


@dataclass(frozen=True, eq=False)
class Bench:
    """One seed's data and student.

    Attributes:
        config: of this method.
        world: everyone's data, split with judge windows held back whatever the method.
        prepared: teacher and student, with the plan of this method.
        scorer: scores weights on what nobody trains on.
    """

    config: Config
    world: World
    prepared: Prepared
    scorer: Scorer

    @property
    def plan(self) -> Plan:
        """What this method's clients are told."""
        return self.prepared.plan

    def training_data(self, client: str) -> tuple[Tensor, Tensor]:
        """A participant's windows ``[n, channels, *size]`` and labels or numbers ``[n]``."""
        return self._tensors(self.world.parts[client].train)

    def device_seed(self, partition: int) -> int:
        """As the simulated devices of fedge have it."""
        return derive(self.world.config.seed, "device", self.world.roles.participants[partition])

    def scores(self, weights: Weights, *, judge: bool) -> Scores:
        """Of global weights, in float."""
        found = self.scorer(weights)
        return Scores(found["clients"], found["unseen"], self._judged(weights) if judge else 0.0)

    def _judged(self, weights: Weights) -> float:
        windows = Windows.joined([self.world.parts[c].judge for c in self.world.roles.participants])
        x, y = self._tensors(windows)
        return self.world.task.score(answers(self.plan, weights, x, quantized=False), y.numpy())

    def _tensors(self, windows: Windows) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.plan.preprocess.apply(windows.x)), torch.from_numpy(windows.y)


def shared_world(config: Config) -> World:
    """The world of ``config``, with judge windows held back from training whatever its settings.

    Clients hold them back in runs that re-distil; so the data are split as for one that does.
    """
    often = replace(config.redistill, mode="ensemble", every=1)
    longer = replace(config.rounds, rounds=max(2, config.rounds.rounds))
    return replace(build_world(replace(config, redistill=often, rounds=longer)), config=config)


def make_bench(config: Config, world: World, prepared: Prepared) -> Bench:
    """A method on a student that is already made; the plan follows from the method's own settings."""
    old = prepared.plan
    plan = make_plan(config, old.spec, old.preprocess, old.scales, world.dataset.channels)
    return Bench(config, world, replace(prepared, plan=plan), Scorer.of(world, plan))


def own_score_after_local_epochs(bench: Bench, weights: Weights, support: Support) -> float:
    """Mean score of participants on their later windows after ``LOCAL_EPOCHS`` epochs on their own.

    All methods use the last learning rate of fedge's schedule.
    """
    plan = replace(bench.plan, training=replace(bench.plan.training, epochs=LOCAL_EPOCHS))
    found = []
    for partition, client in enumerate(bench.world.roles.participants):
        x, y = bench.training_data(client)
        later = bench.scorer.inputs.get(client)
        if later is None:
            continue
        tuned: Weights = weights
        if len(x):
            seed = derive(bench.device_seed(partition), "local epochs at the end")
            rate = bench.config.local.final_learning_rate
            tuned, _ = fine_tune(plan, bench.world.task, weights, support, (x, y), rate, seed)
        given = answers(plan, tuned, later, quantized=False)
        found.append(bench.world.task.score(given, np.asarray(bench.world.parts[client].later.y)))
    return mean(found)
