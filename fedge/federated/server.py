"""The server's rounds, top to bottom.

    choose who takes part -> one task each -> check and add up the answers as they come
    -> let the judges decide on a re-distilled student -> new global weights -> a release, if one is due
    -> a new re-distilled student to be judged, if one is due -> commit to the journal

Nothing here knows Flower: ``Clients`` is whoever can carry a frame to a client and bring back the answer.
"""

import time
from itertools import count

from fedge.errors import PayloadError, SetupError
from fedge.federated import lessons
from fedge.federated.asking import ask_once, deliver
from fedge.federated.federation import Clients, Federation, Score, Traffic, available
from fedge.federated.offer import release
from fedge.federated.optimizer import OPTIMIZERS
from fedge.federated.outcome import Outcome, in_order, summary
from fedge.federated.state import ClientRecord, FederationState
from fedge.federated.strategy import (
    choose,
    close_round,
    eligible,
    enrolled,
    judge,
    marked,
    needed,
    settled_late,
    waited,
)

__all__ = ["Clients", "Federation", "Score", "run_round", "run_rounds"]


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
    state = lessons.redistil(state, federation, list(in_order(outcome.members).values()))
    record |= federation.ended(number)
    record["seconds"] = round(time.perf_counter() - start, 3)
    federation.journal.commit_round(number, record, state.to_bytes())
    lessons.forget_older_teachers(state, federation)
    federation.observer.event("round", rounds=config.rounds.rounds, **summary(record))
    return state


def _attempts(
    state: FederationState, federation: Federation, number: int, traffic: Traffic
) -> tuple[FederationState, Traffic, Outcome]:
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


def _await(state: FederationState, federation: Federation) -> list[str]:
    """Clients that can be asked; waits while there are fewer than a round needs."""
    least, told = max(1, federation.config.rounds.least), False
    while len(there := available(federation)) < least and federation.present is not None:
        if not told:
            federation.observer.event("waiting", round=state.round + 1, there=len(there), needed=least)
        told = True
        federation.wait()
    return there
