"""The server's rounds, top to bottom.

    choose who takes part -> one task each -> check and add up the answers as they come
    -> let the judges decide on a re-distilled student -> new global weights -> a release, if one is due
    -> a new re-distilled student to be judged, if one is due -> commit to the journal

Nothing here knows Flower: ``Clients`` is whoever can carry a frame to a client and bring back the answer.
"""

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from fedge.codec import Codec
from fedge.config import Config
from fedge.errors import FedgeError, PayloadError, UpdateError
from fedge.federated import frames, lessons
from fedge.federated.client import HELLO, UPDATE, signed_parts
from fedge.federated.coding import Weights, build_codec, limits, snapshot_step
from fedge.federated.federation import Clients, Federation, Score, Traffic, ask, refused, welcomed
from fedge.federated.frames import Hello, Scores, Step, Train, Trained, Welcome
from fedge.federated.lineage import begin
from fedge.federated.offer import release
from fedge.federated.optimizer import OPTIMIZERS
from fedge.federated.state import ClientRecord, FederationState
from fedge.federated.strategy import (
    candidate_due,
    choose,
    choose_judges,
    choose_members,
    close_round,
    delivered,
    judge,
    learning_rate,
    task_for,
)
from fedge.metrics import RANGES
from fedge.signing import verify
from fedge.update import Update

__all__ = ["Clients", "Federation", "Score", "run_round", "run_rounds"]

MOST_WINDOWS = 1_000_000
"""Largest weight of one update: a client that claims more windows is refused."""


def run_rounds(federation: Federation) -> FederationState:
    """All rounds that the journal does not hold yet; returns the state after the last."""
    saved = federation.journal.state()
    try:
        state = _fresh_state(federation) if saved is None else FederationState.from_bytes(saved)
    except PayloadError as error:
        raise federation.journal.damaged(error) from None
    federation = lessons.make_copy(federation, state)
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
    optimizer = OPTIMIZERS[federation.config.rounds.optimizer].init(prepared.support.shapes())
    return FederationState(0, prepared.weights, residual, clients=records, optimizer=optimizer)


def run_round(state: FederationState, federation: Federation) -> FederationState:
    """One round; it is in the journal when this returns."""
    config, prepared = federation.config, federation.prepared
    start, number, traffic = time.perf_counter(), state.round + 1, Traffic()
    participants = choose(config, number, federation.enrolled)
    state, initial = _welcome(state, federation, participants, number)
    outcome = _collect(state, federation, participants, number, traffic)
    tried = state.candidate
    judges = outcome.scores if tried is None or not tried.scores else tried.scores
    judgement = judge(config, judges) if tried else None
    state = close_round(
        config,
        state,
        outcome.total,
        outcome.told,
        outcome.counted,
        outcome.lost,
        judgement,
        lessons.nudge(state, federation),
        prepared.support,
        federation.downlink,
    )
    if number == config.rounds.rounds:
        state = _deliver(state, federation, traffic)
    record = outcome.record(number, traffic, initial, federation.score(state.weights))
    if judgement is not None and tried is not None:
        record["redistillation"] = lessons.evidence(config, tried, judgement, number, judges)
        federation.observer.event("redistillation", **record["redistillation"])
    state = release(state, federation, number, record)
    state = lessons.redistil(state, federation, outcome.members)
    record["seconds"] = round(time.perf_counter() - start, 3)
    federation.journal.commit_round(number, record, state.to_bytes())
    lessons.forget_older_teachers(state, federation)
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
    for client, answer in ask(federation, dict.fromkeys(newcomers, frame), traffic):
        try:
            _check_hello(client, answer, challenge, federation)
        except FedgeError as error:
            refused(federation, client, number, error)
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
        members: models of some clients, where a lesson after this round will want them.
    """

    asked: list[str]
    total: Update | None = None
    told: dict[str, bytes] = field(default_factory=dict)
    counted: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    losses: dict[str, float] = field(default_factory=dict)
    own_scores: dict[str, float] = field(default_factory=dict)
    scores: dict[str, Scores] = field(default_factory=dict)
    members: list[Weights] = field(default_factory=list)

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
            "own_scores": {c: None if s != s else s for c, s in self.own_scores.items()},
            "scores": dict(scores),
            "redistillation": None,
            "release": None,
        }


def _collect(
    state: FederationState, federation: Federation, participants: list[str], number: int, traffic: Traffic
) -> Outcome:
    """Ask everyone, and add up what is sound as it comes in. What is not is refused and goes no further."""
    config = federation.config
    on_trial = state.candidate is not None and not state.candidate.scores
    judges = choose_judges(config, number, participants) if on_trial else set()
    members = _members(config, state, participants)
    rate = learning_rate(config, number)
    snapshot, outcome = _snapshot(state, federation), Outcome(participants)
    welcome = welcomed(state, participants)
    tasks = {c: task_for(c, number, state, snapshot, rate, c in judges) for c in welcome}
    uplink = build_codec(federation.prepared.plan.uplink)
    for client, answer in ask(federation, {c: frames.encode_task(t) for c, t in tasks.items()}, traffic):
        try:
            trained = _check_trained(client, answer, tasks[client], federation)
            update = _update(trained, state, federation, uplink)
            if update is not None:
                outcome.total = update if outcome.total is None else outcome.total + update
                outcome.counted.add(client)
                outcome.losses[client] = trained.loss
                if client in members:
                    outcome.members.append(federation.prepared.support.add(state.weights, update.mean()))
        except FedgeError as error:
            if answer is error and isinstance(error, UpdateError):
                outcome.lost.add(client)
            refused(federation, client, number, error)
            continue
        outcome.told[client] = tasks[client].lineage
        outcome.own_scores[client] = trained.score
        if trained.judged is not None and client in judges:
            outcome.scores[client] = trained.judged
    return outcome


def _members(config: Config, state: FederationState, participants: list[str]) -> set[str]:
    """Clients whose models a lesson after this round wants, if there will be one."""
    due = candidate_due(config, replace(state, round=state.round + 1, candidate=None))
    return choose_members(config, state.round + 1, participants) if due else set()


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
    low, high = RANGES[federation.task.metric]
    if not all(low <= score <= high or score != score for score in (trained.score, *judged)):
        raise UpdateError(f"claims a score that is not within {low:g} .. {high:g}")
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
    welcome = welcomed(state, state.clients)
    tasks = {c: task_for(c, number, state, snapshot, 0.0, judge=False) for c in welcome}
    done = {}
    for client, answer in ask(federation, {c: frames.encode_task(t) for c, t in tasks.items()}, traffic):
        try:
            _check_trained(client, answer, tasks[client], federation)
            done[client] = tasks[client].lineage
        except FedgeError as error:
            refused(federation, client, number, error)
    return delivered(state, done)


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
