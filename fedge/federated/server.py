"""The server's rounds, top to bottom.

    choose who takes part -> one task each -> check and add up the answers as they come
    -> let the judges decide on a re-distilled student -> new global weights -> a release, if one is due
    -> a new re-distilled student to be judged, if one is due -> commit to the journal

Nothing here knows Flower: ``Clients`` is whoever can carry a frame to a client and bring back the answer.
"""

import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Protocol

from fedge.codec import Codec
from fedge.config import Config
from fedge.errors import FedgeError, PayloadError, RefusedError, UpdateError
from fedge.federated import frames
from fedge.federated.client import HELLO, UPDATE, signed_parts
from fedge.federated.coding import Weights, build_codec, limits, snapshot_step
from fedge.federated.frames import Hello, Offer, Scores, Step, Train, Trained, Verdict, Welcome
from fedge.federated.journal import Journal
from fedge.federated.lineage import begin
from fedge.federated.prepare import Prepared
from fedge.federated.publish import Published, Publisher, publish_release
from fedge.federated.redistill import make_candidate
from fedge.federated.state import Candidate, ClientRecord, FederationState
from fedge.federated.strategy import (
    Judgement,
    choose,
    choose_judges,
    close_round,
    delivered,
    judge,
    learning_rate,
    task_for,
)
from fedge.observe import Observer
from fedge.signing import verify
from fedge.tasks import Task
from fedge.update import Update

MOST_WINDOWS = 1_000_000
"""Largest weight of one update: a client that claims more windows is refused."""

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


def run_rounds(federation: Federation) -> FederationState:
    """All rounds that the journal does not hold yet; returns the state after the last."""
    saved = federation.journal.state()
    try:
        state = _fresh_state(federation) if saved is None else FederationState.from_bytes(saved)
    except PayloadError as error:
        raise federation.journal.damaged(error) from None
    total = federation.config.rounds.rounds
    with federation.observer.stage("rounds") as stage:
        while state.round < total:
            state = run_round(state, federation)
        stage.result = f"{total} rounds"
    return state


def _fresh_state(federation: Federation) -> FederationState:
    prepared = federation.prepared
    residual = federation.downlink.init(prepared.support.shapes())
    records = {client: ClientRecord() for client in federation.enrolled}
    return FederationState(0, prepared.weights, residual, clients=records)


def run_round(state: FederationState, federation: Federation) -> FederationState:
    """One round; it is in the journal when this returns."""
    config, prepared = federation.config, federation.prepared
    start, number, traffic = time.perf_counter(), state.round + 1, Traffic()
    participants = choose(config, number, federation.enrolled)
    state, initial = _welcome(state, federation, participants, number)
    outcome = _collect(state, federation, participants, number, traffic)
    judgement = judge(config, outcome.scores) if state.candidate else None
    tried = state.candidate
    state = close_round(
        config,
        state,
        outcome.total,
        outcome.told,
        outcome.counted,
        outcome.lost,
        judgement,
        prepared.support,
        federation.downlink,
    )
    if number == config.rounds.rounds:
        state = _deliver(state, federation, traffic)
    record = outcome.record(number, traffic, initial, federation.score(state.weights))
    if judgement is not None and tried is not None:
        record["redistillation"] = _evidence(config, tried, judgement, number, outcome.scores)
        federation.observer.event("redistillation", **record["redistillation"])
    state = _release(state, federation, number, record)
    state = _redistil(state, federation, number)
    record["seconds"] = round(time.perf_counter() - start, 3)
    federation.journal.commit_round(number, record, state.to_bytes())
    federation.observer.event("round", rounds=config.rounds.rounds, **_summary(record))
    return state


def _welcome(
    state: FederationState, federation: Federation, participants: list[str], number: int
) -> tuple[FederationState, Traffic]:
    """Send plan and student to those of ``participants`` that do not have them, and check who they are."""
    prepared, traffic = federation.prepared, Traffic()
    newcomers = [c for c in participants if state.clients[c].version is None]
    challenge = secrets.token_bytes(16)
    frame = frames.encode_task(Welcome(challenge, prepared.plan.to_dict(), prepared.snapshot))
    records = dict(state.clients)
    for client, answer in _ask(federation, dict.fromkeys(newcomers, frame), traffic):
        try:
            _check_hello(client, answer, challenge, federation)
        except FedgeError as error:
            _refused(federation, client, number, error)
        else:
            records[client] = ClientRecord(version=0, lineage=begin(prepared.snapshot))
    return replace(state, clients=records), traffic


def _check_hello(client: str, answer: bytes | FedgeError, challenge: bytes, federation: Federation) -> None:
    """The client proved with its enrolled key that it is who it says."""
    if isinstance(answer, FedgeError):
        raise answer
    hello = frames.decode_reply(answer)
    if not isinstance(hello, Hello):
        raise UpdateError("answered a welcome with something else")
    parts = (federation.prepared.plan.federation.encode(), client.encode(), challenge)
    verify(federation.enrolled[client], hello.signature, HELLO, *parts)


@dataclass
class Outcome:
    """What came back in one round.

    Attributes:
        asked: who got a task.
        total: the sum of the updates that count.
        told: clients that took the global weights and gave a sound answer, and the name of what they hold.
        counted: clients whose update is in ``total``.
        lost: clients that said they cannot follow.
        losses: mean training loss, by client.
        own_scores: score of the weights received on the client's own later windows, by client.
        scores: numbers of the judges.
    """

    asked: list[str]
    total: Update | None = None
    told: dict[str, bytes] = field(default_factory=dict)
    counted: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    losses: dict[str, float] = field(default_factory=dict)
    own_scores: dict[str, float] = field(default_factory=dict)
    scores: dict[str, Scores] = field(default_factory=dict)

    def record(
        self, number: int, traffic: Traffic, initial: Traffic, scores: Mapping[str, Any]
    ) -> dict[str, Any]:
        """What the journal keeps of this round."""
        return {
            "round": number,
            "participants": len(self.asked),
            "counted": sorted(self.counted),
            "refused": sorted(set(self.asked) - self.told.keys()),
            "loss": sum(self.losses.values()) / len(self.losses) if self.losses else None,
            "down": traffic.down,
            "up": traffic.up,
            "initial_down": initial.down,
            "initial_up": initial.up,
            "own_scores": self.own_scores,
            "scores": dict(scores),
            "redistillation": None,
            "release": None,
        }


def _collect(
    state: FederationState, federation: Federation, participants: list[str], number: int, traffic: Traffic
) -> Outcome:
    """Ask everyone, and add up what is sound as it comes in. What is not is refused and goes no further."""
    config = federation.config
    judges = choose_judges(config, number, participants) if state.candidate else set()
    rate = learning_rate(config, number)
    snapshot, outcome = _snapshot(state, federation), Outcome(participants)
    welcome = _welcomed(state, participants)
    tasks = {c: task_for(c, number, state, snapshot, rate, c in judges) for c in welcome}
    uplink = build_codec(federation.prepared.plan.uplink)
    for client, answer in _ask(federation, {c: frames.encode_task(t) for c, t in tasks.items()}, traffic):
        try:
            trained = _check_trained(client, answer, tasks[client], federation)
            update = _update(trained, state, federation, uplink)
            if update is not None:
                outcome.total = update if outcome.total is None else outcome.total + update
                outcome.counted.add(client)
                outcome.losses[client] = trained.loss
        except FedgeError as error:
            if answer is error and isinstance(error, UpdateError):
                outcome.lost.add(client)
            _refused(federation, client, number, error)
            continue
        outcome.told[client] = tasks[client].lineage
        outcome.own_scores[client] = trained.score
        if trained.judged is not None and client in judges:
            outcome.scores[client] = trained.judged
    return outcome


def _welcomed(state: FederationState, clients: Collection[str]) -> list[str]:
    """Those that have plan and student."""
    return [c for c in clients if state.clients[c].version is not None]


def _snapshot(state: FederationState, federation: Federation) -> Callable[[], Step]:
    """Makes the snapshot of the current weights when the first client needs it, once."""
    bits, support = federation.config.quantize.snapshot_bits, federation.prepared.support
    return cache(lambda: snapshot_step(state.weights, support, bits))


def _check_trained(client: str, answer: bytes | FedgeError, task: Train, federation: Federation) -> Trained:
    """The answer is one to this task, on its weights, by this client, and says nothing impossible."""
    if isinstance(answer, FedgeError):
        raise answer
    trained = frames.decode_reply(answer)
    if not isinstance(trained, Trained) or trained.round != task.round:
        raise UpdateError(f"answered something else than round {task.round}")
    parts = signed_parts(federation.prepared.plan.federation, client, task.lineage, trained)
    verify(federation.enrolled[client], trained.signature, UPDATE, *parts)
    if trained.weight > MOST_WINDOWS:
        raise UpdateError(f"claims {trained.weight} windows; at most {MOST_WINDOWS} count")
    if trained.judged is not None and not 0 < trained.judged.windows <= MOST_WINDOWS:
        raise UpdateError("judged on an impossible number of windows")
    judged = (j.score_held, j.score_candidate) if (j := trained.judged) is not None else ()
    if not all(0 <= score <= 1 for score in (trained.score, *judged)):
        raise UpdateError("claims a score that is not within 0 .. 1")
    return trained


def _update(trained: Trained, state: FederationState, federation: Federation, uplink: Codec) -> Update | None:
    """The update in an answer, within limits; ``None`` where the client did not train."""
    if trained.weight == 0:
        return None
    bounds = limits(federation.prepared.support.shapes(), federation.config.rounds.max_change)
    arrays = uplink.decode(trained.payload, bounds)
    return Update.of(arrays, min(trained.weight, federation.config.rounds.max_weight), state.round)


def _deliver(state: FederationState, federation: Federation, traffic: Traffic) -> FederationState:
    """After the last round: push the final global weights, without training."""
    snapshot, number = _snapshot(state, federation), state.round + 1
    welcome = _welcomed(state, state.clients)
    tasks = {c: task_for(c, number, state, snapshot, 0.0, judge=False) for c in welcome}
    done = {}
    for client, answer in _ask(federation, {c: frames.encode_task(t) for c, t in tasks.items()}, traffic):
        try:
            _check_trained(client, answer, tasks[client], federation)
            done[client] = tasks[client].lineage
        except FedgeError as error:
            _refused(federation, client, number, error)
    return delivered(state, done)


def _release(
    state: FederationState, federation: Federation, number: int, record: dict[str, Any]
) -> FederationState:
    """Publish a release if one is due, and offer it to every client."""
    config, publisher = federation.config, federation.publisher
    due = number % config.release.every == 0 or number == config.rounds.rounds
    if publisher is None or not due:
        return state
    mean = {k: v for k, v in record["scores"].items() if k in ("clients", "unseen")}
    published = publish_release(
        config,
        publisher,
        federation.prepared,
        state.weights,
        state.released + 1,
        number,
        federation.task.metric,
        mean,
    )
    decisions = _offer(federation, published, _welcomed(state, state.clients), number)
    record["release"] = {
        "version": published.version,
        "path": published.path.relative_to(publisher.folder).as_posix(),
        "sha256": published.sha256,
        "model_bytes": published.model_bytes,
        "bytes": len(published.bundle),
        "decisions": decisions,
    }
    taken = sum(d["taken"] for d in decisions)
    federation.observer.event(
        "release",
        version=published.version,
        round=number,
        bytes=len(published.bundle),
        taken=taken,
        refused=len(decisions) - taken,
    )
    return replace(state, released=published.version)


def _offer(
    federation: Federation, published: Published, clients: list[str], number: int
) -> list[dict[str, Any]]:
    frame = frames.encode_task(Offer(published.bundle))
    decisions = []
    for client, answer in _ask(federation, dict.fromkeys(clients, frame), Traffic()):
        try:
            if isinstance(answer, FedgeError):
                raise answer
            verdict = frames.decode_reply(answer)
            if not isinstance(verdict, Verdict):
                raise UpdateError("answered an offer with something else")
        except FedgeError as error:
            _refused(federation, client, number, error)
            continue
        decisions.append(
            {
                "client": client,
                "taken": verdict.taken,
                "reason": verdict.code,
                "current": _number(verdict.current),
                "candidate": _number(verdict.candidate),
                "windows": verdict.windows,
            }
        )
    return sorted(decisions, key=lambda d: str(d["client"]))


def _redistil(state: FederationState, federation: Federation, number: int) -> FederationState:
    """Make a candidate if one is due and there is a round left to judge it in."""
    settings = federation.config.redistill
    last = number >= federation.config.rounds.rounds
    if settings.mode == "none" or number % settings.every or last or state.candidate is not None:
        return state
    step = make_candidate(federation.config, federation.task, federation.prepared, state.weights, number)
    return replace(state, candidate=Candidate(number, step))


def _evidence(
    config: Config, tried: Candidate, judgement: Judgement, number: int, scores: Mapping[str, Scores]
) -> dict[str, Any]:
    return {
        "round": tried.made,
        "mode": config.redistill.mode,
        "judged_in_round": number,
        "judges": [
            {
                "client": client,
                "windows": s.windows,
                "aggregate": s.score_held,
                "candidate": s.score_candidate,
                "aggregate_loss": s.loss_held,
                "candidate_loss": s.loss_candidate,
            }
            for client, s in sorted(scores.items())
        ],
        "aggregate": judgement.held,
        "candidate": judgement.candidate,
        "accepted": judgement.accepted,
        "reason": judgement.reason,
        "bytes": len(tried.step.payload),
    }


def _ask(federation: Federation, tasks: Mapping[str, bytes], traffic: Traffic) -> Answers:
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


def _refused(federation: Federation, client: str, number: int, error: FedgeError) -> None:
    kind = type(error).__name__ if isinstance(error, RefusedError) else "failed"
    federation.observer.event("refused", client=client, round=number, kind=kind, reason=str(error))


def _summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """A round in a few numbers, for the log."""
    down, up = record["down"], record["up"]
    return {
        "round": record["round"],
        "seconds": record["seconds"],
        "downlink": sum(down.values()) / max(1, len(down)),
        "uplink": sum(up.values()) / max(1, len(up)),
        "participants": record["participants"],
        "loss": record["loss"],
        "score_clients": record["scores"].get("clients"),
        "score_unseen": record["scores"].get("unseen"),
    }


def _number(value: float) -> float | None:
    return None if value != value else value
