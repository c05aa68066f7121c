"""What came back in one round, and what the journal and the log keep of it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, TypeVar

from fedge.federated.coding import Weights
from fedge.federated.federation import Traffic
from fedge.federated.frames import Scores, Train, Trained
from fedge.update import Update

_T = TypeVar("_T")


@dataclass
class Outcome:
    """What came back in one round.

    Attributes:
        asked: who got a task.
        total: the sum of the updates that count.
        told: clients that took the global weights and gave a sound answer, and the name of what they hold.
        lost: clients that said they cannot follow.
        missing: clients that may still answer: the round, and the version and name of what they hold.
        late: clients whose answer to an earlier task came; those that counted with their weight.
        unsound: clients whose answer was theirs and could not be taken.
        losses: mean training loss of the clients whose update is in ``total``.
        own_scores: score of the weights received on the client's own later windows, by client.
        scores: numbers of the judges.
        members: models of some clients, where a lesson after this round will want them, by client.
    """

    asked: list[str]
    total: Update | None = None
    told: dict[str, bytes] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    missing: dict[str, tuple[int, int, bytes]] = field(default_factory=dict)
    late: dict[str, int] = field(default_factory=dict)
    unsound: set[str] = field(default_factory=set)
    losses: dict[str, float] = field(default_factory=dict)
    own_scores: dict[str, float] = field(default_factory=dict)
    scores: dict[str, Scores] = field(default_factory=dict)
    members: dict[str, Weights] = field(default_factory=dict)

    @property
    def counted(self) -> Collection[str]:
        """Clients whose update is in ``total``."""
        return self.losses.keys()

    @property
    def added(self) -> int:
        """Number of updates in ``total``, late ones too: in an asynchronous round all of them may be late."""
        return len(self.losses) + sum(weight > 0 for weight in self.late.values())

    def take(self, client: str, task: Train, trained: Trained, judges: bool) -> None:
        """Note a sound answer."""
        self.told[client] = task.lineage
        self.own_scores[client] = trained.score
        if trained.weight > 0:
            self.losses[client] = trained.loss
        if trained.judged is not None and judges:
            self.scores[client] = trained.judged

    def record(
        self, number: int, traffic: Traffic, initial: Traffic, scores: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What the journal keeps of this round."""
        return {
            "round": number,
            "participants": len(self.asked),
            "counted": sorted(self.counted),
            "refused": sorted(set(self.asked) - self.told.keys()),
            "late": {c: weight for c, weight in sorted(self.late.items()) if weight},
            "loss": fmean(self.losses.values()) if self.losses else None,
            "down": traffic.down,
            "up": in_order(traffic.up),
            "initial_down": initial.down,
            "initial_up": in_order(initial.up),
            "own_scores": {c: None if s != s else s for c, s in in_order(self.own_scores).items()},
            "scores": dict(scores),
            "redistillation": None,
            "release": None,
        }


def in_order(by_client: Mapping[str, _T]) -> dict[str, _T]:
    """By name: the order of arrival must not show, not in the last bit of a mean."""
    return dict(sorted(by_client.items()))


def summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """A round in a few numbers, for the log."""
    down, up = record["down"], record["up"]
    own = [score for score in record["own_scores"].values() if score is not None]
    said = sum(own) / len(own) if own else None  # by the clients themselves: all that a deployment has
    return {
        "round": record["round"],
        "seconds": record["seconds"],
        "downlink": sum(down.values()) / max(1, len(down)),
        "uplink": sum(up.values()) / max(1, len(up)),
        "participants": record["participants"],
        "loss": record["loss"],
        "score_clients": record["scores"].get("clients", said),
        "score_unseen": record["scores"].get("unseen"),
    }
