"""The server's rounds, top to bottom.

    choose who takes part -> one task each -> check and add up the answers as they come
    -> let the judges decide on a re-distilled student -> new global weights -> a release, if one is due
    -> a new re-distilled student to be judged, if one is due -> commit to the journal

Nothing here knows Flower: ``Clients`` is whoever can carry a frame to a client and bring back the answer.
"""

import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count
from statistics import fmean
from typing import Any, TypeVar

from fedge.codec import Codec
from fedge.config import Config
from fedge.errors import FedgeError, PayloadError, SetupError, UpdateError
from fedge.federated import frames, lessons
from fedge.federated.adder import Adder
from fedge.federated.checks import check_hello, check_trained, sound_change
from fedge.federated.coding import Weights, build_codec, snapshot_step
from fedge.federated.federation import (
    Clients,
    Federation,
    NotYetError,
    Score,
    Traffic,
    ask,
    available,
    refused,
    welcomed,
)
from fedge.federated.frames import Scores, Step, Train, Trained, Welcome
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
    discounted,
    eligible,
    enrolled,
    judge,
    learning_rate,
    marked,
    needed,
    settled_late,
    stop_after,
    task_for,
    waited,
)
from fedge.federated.unsound import UnsoundError
from fedge.update import Update

__all__ = ["Clients", "Federation", "Score", "run_round", "run_rounds"]

_T = TypeVar("_T")


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
    state, initial, outcome = _attempts(state, federation, number, traffic)
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
    counted_late = [c for c, weight in outcome.late.items() if weight]
    state = settled_late(config, state, outcome.late, counted_late, outcome.missing)
    if number == config.rounds.rounds:
        state = deliver(state, federation, traffic)
    record = outcome.record(number, traffic, initial, federation.score(state.weights))
    if judgement is not None and tried is not None:
        record["redistillation"] = lessons.evidence(config, tried, judgement, number, judges)
        federation.observer.event("redistillation", **record["redistillation"])
    state = release(state, federation, number, record)
    state = lessons.redistil(state, federation, list(_in_order(outcome.members).values()))
    record |= federation.ended(number)
    record["seconds"] = round(time.perf_counter() - start, 3)
    federation.journal.commit_round(number, record, state.to_bytes())
    lessons.forget_older_teachers(state, federation)
    federation.observer.event("round", rounds=config.rounds.rounds, **summary(record))
    return state


def _attempts(
    state: FederationState, federation: Federation, number: int, traffic: Traffic
) -> tuple[FederationState, Traffic, "Outcome"]:
    """Ask until enough updates count; whoever has answered is asked again and has its answer ready."""
    config, initial, kept = federation.config, Traffic(), set[str]()
    for attempt in count():
        there = _await(state, federation)
        state = enrolled(state, {*federation.enrolled, *there})
        there = eligible(state, there)
        participants = choose(config, number, there, kept, attempt)
        state, first, outcome = ask_once(state, federation, participants, traffic, len(there))
        initial.add(first)
        if outcome.added >= needed(config, len(there)):
            return marked(config, state, outcome.told, outcome.unsound), initial, outcome
        federation.observer.event(
            "given_up", round=number, counted=outcome.added, needed=needed(config, len(there))
        )
        if 0 < config.rounds.attempts <= attempt + 1:
            raise SetupError(
                f"round {number} was tried {attempt + 1} times, and {outcome.added} update(s) counted "
                f"where {needed(config, len(there))} are needed; see rounds.least, quorum and attempts"
            )
        state, kept = marked(config, state, (), outcome.unsound), set(outcome.told)
        if not there:
            state = waited(state)
        federation.sleep(config.rounds.pause_seconds)
    raise AssertionError  # count() does not end


def ask_once(
    state: FederationState,
    federation: Federation,
    participants: list[str],
    traffic: Traffic,
    there: int,
) -> tuple[FederationState, Traffic, "Outcome"]:
    """Welcome those of ``participants`` that are new, ask all of them once, and add up what is sound.

    Args:
        state: before the round.
        federation: whose clients they are.
        participants: who is asked.
        traffic: where the bytes of the round are counted.
        there: how many could be asked.

    Returns:
        The state with the newcomers in it, the bytes of their welcome, and what came back.
    """
    number = state.round + 1
    state, initial = _welcome(state, federation, participants, number)
    enough = stop_after(federation.config, there)
    return state, initial, _collect(state, federation, participants, number, traffic, enough)


def _await(state: FederationState, federation: Federation) -> list[str]:
    """Clients that can be asked; waits while there are fewer than a round needs."""
    least, told = max(1, federation.config.rounds.least), False
    while len(there := available(federation)) < least and federation.present is not None:
        if not told:
            federation.observer.event("waiting", round=state.round + 1, there=len(there), needed=least)
        told = True
        federation.wait()
    return there


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
            check_hello(client, answer, challenge, federation)
        except FedgeError as error:
            refused(federation, client, number, error)
        else:
            records[client] = replace(records[client], version=0, lineage=begin(prepared.snapshot), counted=0)
    return replace(state, clients=records), traffic


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
            "up": _in_order(traffic.up),
            "initial_down": initial.down,
            "initial_up": _in_order(initial.up),
            "own_scores": {c: None if s != s else s for c, s in _in_order(self.own_scores).items()},
            "scores": dict(scores),
            "redistillation": None,
            "release": None,
        }


def _collect(
    state: FederationState,
    federation: Federation,
    participants: list[str],
    number: int,
    traffic: Traffic,
    enough: int | None,
) -> Outcome:
    """Ask everyone, and add up what is sound as it comes in. What is not is refused and goes no further."""
    config = federation.config
    on_trial = state.candidate is not None and not state.candidate.scores
    judges = choose_judges(config, number, participants) if on_trial else set()
    members = _members(config, state, participants)
    outcome = Outcome(participants)
    tasks, sent = _tasks(state, federation, welcomed(state, participants), judges)
    uplink, adder = build_codec(federation.prepared.plan.uplink), Adder(federation, state.round)
    for client, answer in ask(federation, sent, traffic, enough, state.late):
        if (task := tasks.get(client)) is None:
            outcome.late[client] = _late(client, answer, state, federation, adder, uplink, number)
            continue
        if not isinstance(answer, NotYetError):
            del tasks[client]
        try:
            trained = check_trained(client, answer, task, federation)
            sound = sound_change(trained, federation, uplink)
            if sound is not None:
                adder.add(client, *sound)
        except FedgeError as error:
            if isinstance(error, UnsoundError):
                outcome.unsound.add(client)
            elif answer is error and isinstance(error, UpdateError):
                outcome.lost.add(client)
            refused(federation, client, number, error)
            continue
        outcome.take(client, task, trained, client in judges)
        if sound is not None and client in members:
            outcome.members[client] = federation.prepared.support.add(state.weights, sound[0])
    outcome.missing = {c: (number, t.version, t.lineage) for c, t in tasks.items()}
    try:
        outcome.total = adder.total()
    except UpdateError as error:  # too few for a robust mean: then none of them counts
        federation.observer.event("warning", text=f"round {number}: {error}")
        outcome.losses.clear()
        outcome.late = dict.fromkeys(outcome.late, 0)  # they came, and none is waited for any more
    return outcome


def _tasks(
    state: FederationState, federation: Federation, clients: list[str], judges: set[str]
) -> tuple[dict[str, Train], dict[str, bytes]]:
    """The task of each client, and its frame.

    Clients that hold the same and are asked the same share one object, so that their number costs nothing.
    """
    number, snapshot = state.round + 1, _snapshot(state, federation)
    rate, made = learning_rate(federation.config, number), dict[tuple[object, ...], tuple[Train, bytes]]()
    tasks, sent = dict[str, Train](), dict[str, bytes]()
    for client in clients:
        record, judge = state.clients[client], client in judges
        key = record.version, record.lineage, record.counted, judge
        if key not in made:
            task = task_for(client, number, state, snapshot, rate, judge)
            made[key] = task, frames.encode_task(task)
        tasks[client], sent[client] = made[key]
    return tasks, sent


def _late(
    client: str,
    answer: bytes | FedgeError,
    state: FederationState,
    federation: Federation,
    adder: Adder,
    uplink: Codec,
    number: int,
) -> int:
    """Add an answer to an earlier task, for less the later it is; the weight it counted with, or 0."""
    asked, version, name = state.late[client]
    task = Train(asked, 0, version, name, (), 0.0, None)
    try:
        trained = check_trained(client, answer, task, federation)
        sound = sound_change(trained, federation, uplink)
        if sound is None:
            return 0
        weight = discounted(sound[1], number - asked)
        adder.add(client, sound[0], weight)
    except FedgeError as error:
        refused(federation, client, number, error)
        return 0
    return weight


def _members(config: Config, state: FederationState, participants: list[str]) -> set[str]:
    """Clients whose models a lesson after this round wants, if there will be one."""
    due = candidate_due(config, replace(state, round=state.round + 1, candidate=None))
    return choose_members(config, state.round + 1, participants) if due else set()


def _snapshot(state: FederationState, federation: Federation) -> Callable[[], Step]:
    """Makes the snapshot of the current weights when the first client needs it, once."""
    bits, support = federation.config.quantize.snapshot_bits, federation.prepared.support
    return cache(lambda: snapshot_step(state.weights, support, bits))


def deliver(state: FederationState, federation: Federation, traffic: Traffic) -> FederationState:
    """Push the global weights to everyone who is there, without training: after the last round."""
    snapshot, number = _snapshot(state, federation), state.round + 1
    welcome = welcomed(state, [c for c in eligible(state, available(federation)) if c in state.clients])
    tasks = {c: task_for(c, number, state, snapshot, 0.0, judge=False) for c in welcome}
    done = {}
    for client, answer in ask(federation, {c: frames.encode_task(t) for c, t in tasks.items()}, traffic):
        try:
            check_trained(client, answer, tasks[client], federation)
            done[client] = tasks[client].lineage
        except FedgeError as error:
            refused(federation, client, number, error)
    return delivered(state, done)


def _in_order(by_client: Mapping[str, _T]) -> dict[str, _T]:
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
