"""Scores of global weights, as only a simulation can take them: on everyone's held-out windows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fedge.federated.coding import Weights
from fedge.federated.plan import Plan
from fedge.federated.training import answers
from fedge.simulation.world import World


@dataclass(frozen=True, eq=False)
class Scorer:
    """Scores global weights on everyone's held-out windows, in float, as the clients hold them."""

    world: World
    plan: Plan
    inputs: Mapping[str, torch.Tensor]

    @staticmethod
    def of(world: World, plan: Plan) -> "Scorer":
        """Preprocess everything once."""
        held = world.held_out()
        return Scorer(world, plan, {c: torch.from_numpy(plan.preprocess.apply(w.x)) for c, w in held.items()})

    def __call__(self, weights: Weights, *, quantized: bool = False) -> dict[str, Any]:
        """Means over participants and over unseen clients, and each client's score."""
        return self.summary(
            {c: answers(self.plan, weights, x, quantized=quantized) for c, x in self.inputs.items()}
        )

    def summary(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The same from anyone's answers ``[n, scores]`` by client; undefined scores are left out."""
        held = self.world.held_out()
        each = {c: self.world.task.score(scores, held[c].y) for c, scores in given.items()}
        each = {c: score for c, score in each.items() if score == score}
        return {
            "clients": known_mean([each[c] for c in self.world.roles.participants if c in each]),
            "unseen": known_mean([each[c] for c in self.world.roles.unseen if c in each]),
            "each": each,
        }


def known_mean(values: list[float]) -> float | None:
    """The mean of scores; ``None`` where not a single one is defined."""
    return mean(values) if values else None


def mean(values: list[float]) -> float:
    """The mean of those that are defined; of nothing, 0."""
    known = [v for v in values if v == v]
    return sum(known) / len(known) if known else 0.0
