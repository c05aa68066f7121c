"""What every round of a federation needs, whoever carries its frames, and every byte counted."""

import time
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


class NotYetError(FedgeError):
    """No answer so far; it may still come."""


Robust = Callable[[list[Weights], list[int]], Weights]

Answers = Iterator[tuple[str, bytes | FedgeError]]


_LOOK = 0.5  # seconds between two looks at who is there


def _wait() -> None:
    time.sleep(_LOOK)


class Clients(Protocol):
    """Whoever carries frames."""

    def ask(
        self, tasks: Mapping[str, bytes], deadline: float | None = None, enough: int | None = None
    ) -> Answers:
        """Send each client its task; yield answers, or why there is none, as they come in.

        Nothing is waited for beyond ``deadline`` seconds from now, nor once ``enough`` answers are there.
        Where answers to earlier tasks still count, they are yielded too, and are among the ``enough``.
        """


@dataclass
class Traffic:
    """Bytes handed over, per client, both ways."""

    down: dict[str, int] = field(default_factory=dict)
    up: dict[str, int] = field(default_factory=dict)

    def add(self, other: "Traffic") -> None:
        """And what was handed over elsewhere."""
        for mine, theirs in ((self.down, other.down), (self.up, other.up)):
            for client, amount in theirs.items():
                mine[client] = mine.get(client, 0) + amount


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
        present: who can be asked now; ``None``: everyone who is enrolled.
        tags: of each client that has any.
        sleep: lets so many seconds pass.
        wait: lets time pass until other clients may be there.
        ended: told that a round is over, before it is committed; what it gives is in the round's record.
        robust: stands in for the mean: ``(changes, weights) -> change``, live entries; ``None``: the mean.
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
    present: Callable[[], Collection[str]] | None = None
    tags: Mapping[str, Collection[str]] = field(default_factory=dict)
    robust: Robust | None = None
    sleep: Callable[[float], None] = time.sleep
    wait: Callable[[], None] = _wait
    ended: Callable[[int], Mapping[str, Any]] = lambda _number: {}

    @property
    def downlink(self) -> Codec:
        """Codec of the way down."""
        return build_codec(self.prepared.plan.downlink)


def welcomed(state: FederationState, clients: Collection[str]) -> list[str]:
    """Those that have plan and student."""
    return [c for c in clients if state.clients[c].version is not None]


def available(federation: Federation) -> list[str]:
    """Enrolled clients that can be asked now, and have a tag that is wanted."""
    there = federation.enrolled if federation.present is None else federation.present()
    wanted = set(federation.config.rounds.tags)
    return sorted(
        c
        for c in there
        if c in federation.enrolled and (not wanted or wanted & set(federation.tags.get(c, ())))
    )


def ask(
    federation: Federation,
    tasks: Mapping[str, bytes],
    traffic: Traffic,
    enough: int | None = None,
    late: Collection[str] = (),
) -> Answers:
    """``clients.ask`` with the settings' deadline, with every byte counted.

    ``late`` clients have no task now; an answer of theirs to an earlier one is passed on.
    """
    if not tasks and not (late and enough is not None):
        return
    deadline = federation.config.rounds.deadline_seconds or None
    for client, frame in tasks.items():
        traffic.down[client] = traffic.down.get(client, 0) + len(frame)
    answered = set()
    unlimited = deadline is None and enough is None
    clients = federation.clients
    for client, answer in clients.ask(tasks) if unlimited else clients.ask(tasks, deadline, enough):
        if (client not in tasks and client not in late) or client in answered:
            continue
        answered.add(client)
        if isinstance(answer, bytes):
            traffic.up[client] = traffic.up.get(client, 0) + len(answer)
        yield client, answer


def refused(federation: Federation, client: str, number: int, error: FedgeError) -> None:
    """Tell the operator that an answer did not count, and why."""
    kind = type(error).__name__ if isinstance(error, RefusedError) else "failed"
    federation.observer.event("refused", client=client, round=number, kind=kind, reason=str(error))
