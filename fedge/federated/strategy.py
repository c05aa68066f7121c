"""The strategy: a pure state machine. State and what happened go in, the next state comes out; no IO.

``server.py`` drives it: ``choose`` who takes part, ``task_for`` each of them, add up the updates, then
``close_round``. Everything random follows from the seed and the round, so a round that is run again after a
crash is the same round.
"""

import math
import statistics
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from fedge.codec import Codec
from fedge.config import Config
from fedge.errors import UpdateError
from fedge.federated.coding import Support, Weights, apply_step
from fedge.federated.frames import Scores, Step, StepKind, Train
from fedge.federated.lineage import follow
from fedge.federated.optimizer import OPTIMIZERS, Optimizer
from fedge.federated.state import ClientRecord, FederationState
from fedge.seeding import derive
from fedge.update import Update

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Judgement:
    """What became of a candidate, and on what evidence.

    Attributes:
        accepted: whether it was taken.
        reason: why, for people.
        held: mean score of the weights held, over judges.
        candidate: mean score of the candidate, likewise.
    """

    accepted: bool
    reason: str
    held: float | None
    candidate: float | None


def choose(
    config: Config, number: int, clients: Collection[str], kept: Collection[str] = (), attempt: int = 0
) -> list[str]:
    """Who takes part in round ``number``: a random share of the clients, at least one, in sorted order.

    ``kept`` have answered an earlier attempt at the same round and are asked again: they answer at once.
    """
    everyone = sorted(clients)
    count = min(len(everyone), math.ceil(wanted(config, len(everyone)) * config.rounds.over_select))
    if count == len(everyone):
        return everyone
    random = np.random.default_rng(derive(config.seed, "participants", number, *[attempt][:attempt]))
    chosen = random.choice(everyone, count, replace=False).tolist()
    known = sorted(set(kept) & set(everyone))
    return sorted([*known, *(c for c in chosen if c not in known)][: max(count, len(known))])


def wanted(config: Config, clients: int) -> int:
    """Updates that a round is to have, of so many clients: a share, and at least ``rounds.least`` and one."""
    return max(1, config.rounds.least, round(config.rounds.fraction * clients))


def needed(config: Config, clients: int) -> int:
    """Updates without which a round is given up."""
    rounds = config.rounds
    return max(rounds.least, math.ceil(rounds.quorum * wanted(config, clients)))


def stop_after(config: Config, clients: int) -> int | None:
    """Updates after which a round does not wait for more, of so many clients; ``None``: it waits for all."""
    rounds = config.rounds
    if rounds.buffer:
        return rounds.buffer
    return wanted(config, clients) if rounds.over_select > 1 else None


def eligible(state: FederationState, clients: Collection[str]) -> list[str]:
    """Those that are not barred in the next round, and of whom no late answer is expected."""
    number = state.round + 1
    return [
        c for c in clients if state.clients.get(c, ClientRecord()).barred < number and c not in state.late
    ]


def discounted(weight: int, staleness: int) -> int:
    """What a late update weighs: ``weight / sqrt(1 + staleness)`` (FedBuff; Nguyen et al. 2022)."""
    return max(1, round(weight / math.sqrt(1 + staleness)))


def settled_late(
    config: Config,
    state: FederationState,
    came: Collection[str],
    counted: Collection[str],
    missing: Mapping[str, tuple[int, int, bytes]],
) -> FederationState:
    """After a round, whose answer is still expected.

    Args:
        config: the run's settings.
        state: after the round.
        came: clients whose late answer came in it, counted or not.
        counted: those of them whose update counted: they hold what they held, and their update is settled.
        missing: clients that have not answered in it: the round, and the version and name of what they hold.
    """
    records = dict(state.clients)
    for client in counted:
        asked, version, name = state.late[client]
        records[client] = replace(records[client], version=version, lineage=name, counted=asked)
    young = {c: e for c, e in state.late.items() if state.round - e[0] < config.rounds.late_rounds}
    late = {c: entry for c, entry in young.items() if c not in came}
    return replace(state, clients=records, late={**late, **missing} if config.rounds.late == "count" else {})


def marked(
    config: Config, state: FederationState, sound: Collection[str], unsound: Collection[str]
) -> FederationState:
    """Standing after a round: who offended so often in a row is barred, twice as long each time."""
    number, records = state.round + 1, dict(state.clients)
    for client in sound:
        if records[client].offences:
            records[client] = replace(records[client], offences=0)
    for client in unsound:
        record = records[client]
        record = replace(record, offences=record.offences + 1)
        if record.offences >= config.rounds.offences:
            last = number + config.rounds.barred_rounds * 2 ** min(record.bars, 16)
            record = replace(record, offences=0, barred=last, bars=record.bars + 1)
        records[client] = record
    return replace(state, clients=records)


def waited(state: FederationState) -> FederationState:
    """Every bar one round shorter: where nobody else is there, no round ends that would shorten them."""
    number = state.round + 1
    records = {
        c: replace(r, barred=r.barred - 1) if r.barred >= number else r for c, r in state.clients.items()
    }
    return replace(state, clients=records)


def enrolled(state: FederationState, clients: Collection[str]) -> FederationState:
    """With a record for each of these clients."""
    new = {c: ClientRecord() for c in clients if c not in state.clients}
    return replace(state, clients={**state.clients, **new}) if new else state


def choose_judges(config: Config, number: int, participants: Collection[str]) -> set[str]:
    """Which of a round's participants score the candidate."""
    everyone = sorted(participants)
    count = min(len(everyone), config.redistill.judges)
    random = np.random.default_rng(derive(config.seed, "judges", number))
    return set(random.choice(everyone, count, replace=False).tolist())


def choose_members(config: Config, number: int, participants: Collection[str]) -> set[str]:
    """Which of a round's participants join the ensemble with their own model; a bounded number of them."""
    everyone = sorted(participants)
    count = min(len(everyone), config.redistill.members)
    random = np.random.default_rng(derive(config.seed, "members", number))
    return set(random.choice(everyone, count, replace=False).tolist())


def candidate_due(config: Config, state: FederationState) -> bool:
    """Whether a candidate is made after the last round of ``state``, to be judged in the next.

    ``gradient`` mode asks the judges as soon as it can, since nothing of it is used before they agree.
    """
    settings, number = config.redistill, state.round
    last = number >= config.rounds.rounds
    if settings.mode == "none" or last or state.candidate is not None:
        return False
    return number % settings.every == 0 or (settings.mode == "gradient" and number == 1)


def optimizer_of(config: Config) -> Optimizer:
    """The server optimizer that the settings name."""
    rounds = config.rounds
    return Optimizer(
        rounds.optimizer,
        rounds.server_learning_rate,
        rounds.server_momentum,
        rounds.server_beta2,
        rounds.server_tau,
        config.local.dynamic or 0.01,
    )


def learning_rate(config: Config, number: int) -> float:
    """Rate of local SGD in round ``number`` (from 1): half a cosine from first to last."""
    local, last = config.local, max(1, config.rounds.rounds - 1)
    fall = (1 + math.cos(math.pi * (number - 1) / last)) / 2
    return local.final_learning_rate + (local.learning_rate - local.final_learning_rate) * fall


def task_for(
    client: str, number: int, state: FederationState, snapshot: Callable[[], Step], rate: float, judge: bool
) -> Train:
    """The task of one client: from the version that it holds to the current one, and what to do then.

    Args:
        client: its id; it must have been welcomed.
        number: the round.
        state: the federation before the round.
        snapshot: makes a snapshot of the current weights; only called for a client that missed more than one
            version, so it may be slow the first time.
        rate: learning rate; 0 for a client that shall only take the weights.
        judge: whether it scores the candidate.
    """
    record = state.clients[client]
    groups = _catch_up(record, state, snapshot)
    return Train(
        round=number,
        counted=record.counted,
        version=state.round,
        lineage=follow(record.lineage, (step for group in groups for step in group)),
        steps=groups,
        learning_rate=rate,
        candidate=state.candidate.step if judge and state.candidate else None,
    )


def _catch_up(
    record: ClientRecord, state: FederationState, snapshot: Callable[[], Step]
) -> tuple[tuple[Step, ...], ...]:
    """What was missed, or a snapshot: where more than one version was missed and it is smaller, or where the
    steps are not known any more.
    """
    if record.version is None:
        raise UpdateError("this client has not been welcomed")
    whole = [v for v, group in state.history.items() if any(s.kind is StepKind.SNAPSHOT for s in group)]
    first = max([record.version + 1, *whole])  # what led to a snapshot does not matter (only edge servers)
    missed = range(first, state.round + 1)
    if any(v not in state.history for v in missed):
        return ((snapshot(),),)
    groups = tuple(state.history[v] for v in missed)
    if len(groups) <= 1:
        return groups
    fresh = snapshot()
    return groups if sum(map(_size, groups)) <= len(fresh.payload) else ((fresh,),)


def _size(steps: tuple[Step, ...]) -> int:
    return sum(len(s.payload) for s in steps)


def close_round(
    config: Config,
    state: FederationState,
    total: Update | None,
    told: Mapping[str, bytes],
    counted: Collection[str],
    lost: Collection[str],
    judgement: Judgement | None,
    nudge: Weights | None,
    support: Support,
    downlink: Codec,
) -> FederationState:
    """The state after a round.

    Args:
        config: the run's settings.
        state: before the round.
        total: the sum of the updates that were counted; ``None`` if there were none.
        told: clients that now hold version ``state.round``, and the name of what they hold.
        counted: clients whose update is in ``total``.
        lost: clients that said they cannot follow; they will be welcomed again.
        judgement: what the judges said of ``state.candidate``, if it was on trial.
        nudge: the server's own step, live entries, to travel with the mean update; ``None`` for none.
        support: which weights are alive.
        downlink: codec of the way down.
    """
    number = state.round + 1
    steps: list[Step] = []
    gradient = config.redistill.mode == "gradient"
    nudged = state.nudged if judgement is None else gradient and judgement.accepted
    if judgement is not None and judgement.accepted and state.candidate is not None and not gradient:
        steps.append(state.candidate.step)
    residual, optimizer = state.residual, state.optimizer
    if total is not None:
        share = len(counted) / len(state.clients)
        server = optimizer_of(config)
        optimizer, change = OPTIMIZERS[server.name].step(server, optimizer, total.mean(), share)
        if nudge is not None:
            change = {n: c + nudge[n] for n, c in change.items()}
        residual, payload = downlink.encode(residual, change)
        steps.append(Step(StepKind.UPDATE, payload))
    weights = state.weights
    for step in steps:
        weights = apply_step(step, weights, support, downlink)
    return replace(
        state,
        round=number,
        weights=weights,
        residual=residual,
        history=recent({**state.history, number: tuple(steps)}, snapshot_bytes(config, support)),
        clients=noted(state, told, counted, lost),
        candidate=None if judgement is not None else state.candidate,
        optimizer=optimizer,
        nudged=nudged,
    )


def noted(
    state: FederationState, told: Mapping[str, bytes], counted: Collection[str], lost: Collection[str]
) -> dict[str, ClientRecord]:
    """The records after the round that follows ``state``; the arguments are those of ``close_round``."""
    number, records, alike = state.round + 1, dict(state.clients), dict[ClientRecord, ClientRecord]()
    for client, name in told.items():
        last = number if client in counted else records[client].counted
        record = replace(records[client], version=state.round, lineage=name, counted=last)
        records[client] = alike.setdefault(record, record)  # most are: one object for all of them
    for client in lost:
        records[client] = replace(records[client], version=None)
    return records


def snapshot_bytes(config: Config, support: Support) -> int:
    """About how long a snapshot is: no more than its bits, uncoded."""
    live = sum(int(alive.sum()) for alive in support.alive.values())
    return live * config.quantize.snapshot_bits // 8


def recent(history: Mapping[int, tuple[Step, ...]], most: int) -> dict[int, tuple[Step, ...]]:
    """As many of the last versions as are worth sending: together no longer than a snapshot. At least one."""
    kept: dict[int, tuple[Step, ...]] = {}
    size = 0
    for version in sorted(history, reverse=True):
        size += _size(history[version])
        if kept and size > most:
            break
        kept[version] = history[version]
    return dict(sorted(kept.items()))


def delivered(state: FederationState, told: Mapping[str, bytes]) -> FederationState:
    """The state once the clients of ``told`` have confirmed the current weights, under these names."""
    records = {
        c: replace(r, version=state.round, lineage=told[c]) if c in told else r
        for c, r in state.clients.items()
    }
    return replace(state, clients=records)


def judge(config: Config, scores: Mapping[str, Scores]) -> Judgement:
    """Take the candidate only if it is clearly better.

    Its score must not be lower than that of the weights held by more than ``-margin`` (so with a margin of 0
    it must be at least as high), and the judges' gain in loss must exceed its own standard error, so that
    one lucky judge is not enough. Scores are the judges' own, on windows that nobody trained on. Every
    judge has one vote, whatever number of windows it claims; the loss is looked at because on few windows the
    score moves in large steps. Where the metric is not defined on any judge's windows the loss decides alone.
    """
    scores = dict(sorted(scores.items()))  # the order of arrival would show in the last bit
    if len(scores) < 2:
        return Judgement(False, f"{len(scores)} judge(s) answered; two are needed", None, None)
    windows = sum(s.windows for s in scores.values())
    both = [(s.score_held, s.score_candidate) for s in scores.values()]
    both = [(h, c) for h, c in both if h == h and c == c]
    held = statistics.fmean(h for h, _ in both) if both else None
    candidate = statistics.fmean(c for _, c in both) if both else None
    gain, error = _mean_gain([s.loss_held - s.loss_candidate for s in scores.values()])
    known = held is not None and candidate is not None
    text = (
        (f"score {held:.4g} to {candidate:.4g}, " if known else "score not defined, ")
        + f"loss {-gain:+.4f} (standard error {error:.4f}) "
        + f"on {windows} windows of {len(scores)} judges"
    )
    better = (
        candidate - held >= config.redistill.margin - _ROUNDING
        if held is not None and candidate is not None
        else True
    )
    accepted = better and gain > error
    return Judgement(accepted, text, held, candidate)


def _mean_gain(gains: list[float]) -> tuple[float, float]:
    """By how much the candidate's loss is lower, and the standard error of that mean over judges."""
    mean = statistics.fmean(gains)
    return mean, statistics.stdev(gains) / math.sqrt(len(gains))
