"""Clients are asked once: newcomers welcomed, a task to each, and what is sound is added up as it comes.

What is not sound is refused and goes no further. What is made of the sum is decided in ``server``.
"""

import secrets
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from fedge.codec import Codec
from fedge.config import Config
from fedge.errors import FedgeError, UpdateError
from fedge.federated import frames
from fedge.federated.adder import Adder
from fedge.federated.checks import check_hello, check_trained, sound_change
from fedge.federated.coding import build_codec, snapshot_step
from fedge.federated.federation import Federation, NotYetError, Traffic, ask, available, refused, welcomed
from fedge.federated.frames import Step, Train, Welcome
from fedge.federated.lineage import begin
from fedge.federated.outcome import Outcome
from fedge.federated.state import FederationState
from fedge.federated.strategy import (
    candidate_due,
    choose_judges,
    choose_members,
    delivered,
    discounted,
    eligible,
    learning_rate,
    stop_after,
    task_for,
)
from fedge.federated.unsound import UnsoundError


def ask_once(
    state: FederationState,
    federation: Federation,
    participants: list[str],
    traffic: Traffic,
    there: int,
) -> tuple[FederationState, Traffic, Outcome]:
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
