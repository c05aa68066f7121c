"""What every round of a federation needs, whoever carries its frames, and every byte counted."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from fedge.codec import Codec
from fedge.config import Config
from fedge.errors import FedgeError, RefusedError
from fedge.federated.coding import Weights, build_codec
from fedge.federated.journal import Journal
from fedge.federated.prepare import Prepared
from fedge.federated.publish import Publisher
from fedge.federated.state import FederationState
from fedge.observe import Observer
from fedge.tasks import Task

Score = Callable[[Weights], Mapping[str, Any]]
"""Scores of global weights for the log: ``clients``, ``unseen`` (means) and ``each`` (by client id).

Only a simulation can look at everyone's data from outside; elsewhere this gives an empty mapping.
"""

Answers = Iterator[tuple[str, bytes | FedgeError]]


class Clients(Protocol):
    """Whoever carries frames."""

    def ask(self, tasks: Mapping[str, bytes]) -> Answers:
        """Send each client its task; yield answers, or why there is none, as they come in."""


@dataclass
class Traffic:
    """Bytes handed over, per client, both ways."""

    down: dict[str, int] = field(default_factory=dict)
    up: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Federation:
    """Everything a round needs that does not change from round to round.

    Attributes:
        config: the run's settings.
        task: what is learned.
        prepared: teacher, student and plan.
        clients: carries the frames.
        enrolled: public key of each client that may take part, by id.
        publisher: signs and stores releases; ``None`` for a run without them.
        journal: where completed rounds are committed.
        observer: is told what happens.
        score: scores global weights, for the log.
    """

    config: Config
    task: Task
    prepared: Prepared
    clients: Clients
    enrolled: Mapping[str, bytes]
    publisher: Publisher | None
    journal: Journal
    observer: Observer
    score: Score

    @property
    def downlink(self) -> Codec:
        """Codec of the way down."""
        return build_codec(self.prepared.plan.downlink)


def welcomed(state: FederationState, clients: Collection[str]) -> list[str]:
    """Those that have plan and student."""
    return [c for c in clients if state.clients[c].version is not None]


def ask(federation: Federation, tasks: Mapping[str, bytes], traffic: Traffic) -> Answers:
    """``clients.ask``, with every byte counted."""
    if not tasks:
        return
    for client, frame in tasks.items():
        traffic.down[client] = traffic.down.get(client, 0) + len(frame)
    answered = set()
    for client, answer in federation.clients.ask(tasks):
        if client not in tasks or client in answered:
            continue
        answered.add(client)
        if isinstance(answer, bytes):
            traffic.up[client] = traffic.up.get(client, 0) + len(answer)
        yield client, answer


def refused(federation: Federation, client: str, number: int, error: FedgeError) -> None:
    """Tell the operator that an answer did not count, and why."""
    kind = type(error).__name__ if isinstance(error, RefusedError) else "failed"
    federation.observer.event("refused", client=client, round=number, kind=kind, reason=str(error))
