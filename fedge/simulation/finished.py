"""A finished run: what ``report.json`` is made from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedge.federated.prepare import Prepared
from fedge.federated.state import FederationState
from fedge.simulation.scoring import Scorer
from fedge.simulation.world import World

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
