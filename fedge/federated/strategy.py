"""The strategy: a pure state machine. State and what happened go in, the next state comes out; no IO.

``server.py`` drives it: ``choose`` who takes part, ``task_for`` each of them, add up the updates, then
``close_round``. Everything random follows from the seed and the round, so a round that is run again after a
crash is the same round.
"""

import math
import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np

from fedge.codec import Codec
from fedge.config import Config
from fedge.federated.coding import Support, apply_step, exact_step
from fedge.federated.frames import Scores, Step, StepKind, Train
from fedge.federated.state import ClientRecord, FederationState
from fedge.seeding import derive
from fedge.update import Update, weights_hash

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


def choose(config: Config, number: int, clients: Collection[str]) -> list[str]:
    """Who takes part in round ``number``: a random share of the clients, at least one, in sorted order."""
    everyone = sorted(clients)
    count = max(1, round(config.rounds.fraction * len(everyone)))
    if count == len(everyone):
        return everyone
    random = np.random.default_rng(derive(config.seed, "participants", number))
    return sorted(random.choice(everyone, count, replace=False).tolist())


def choose_judges(config: Config, number: int, participants: Collection[str]) -> set[str]:
    """Which of a round's participants score the candidate."""
    everyone = sorted(participants)
    count = min(len(everyone), config.redistill.judges)
    random = np.random.default_rng(derive(config.seed, "judges", number))
    return set(random.choice(everyone, count, replace=False).tolist())


def learning_rate(config: Config, number: int) -> float:
    """Rate of local SGD in round ``number`` (from 1): half a cosine from first to last."""
    local, last = config.local, max(1, config.rounds.rounds - 1)
    fall = (1 + math.cos(math.pi * (number - 1) / last)) / 2
    return local.final_learning_rate + (local.learning_rate - local.final_learning_rate) * fall


def task_for(
    client: str, number: int, state: FederationState, support: Support, rate: float, judge: bool
) -> Train:
    """The task of one client: from the version that it holds to the current one, and what to do then."""
    record = state.clients.get(client, ClientRecord())
    return Train(
        round=number,
        counted=record.counted,
        version=state.round,
        weights_hash=weights_hash(state.weights),
        steps=_catch_up(record.version, state, support),
        learning_rate=rate,
        candidate=state.candidate.step if judge and state.candidate else None,
    )


def _catch_up(version: int | None, state: FederationState, support: Support) -> tuple[tuple[Step, ...], ...]:
    """What was missed, or exact weights where that is smaller or where the version is not known."""
    if version == state.round:
        return ()
    exact = ((exact_step(state.weights, support),),)
    if version is None:
        return exact if state.round else ()
    missed = range(version + 1, state.round + 1)
    if any(v not in state.history for v in missed):
        return exact
    steps = tuple(state.history[v] for v in missed)
    return steps if sum(map(_size, steps)) <= _size(exact[0]) else exact


def _size(steps: tuple[Step, ...]) -> int:
    return sum(len(s.payload) for s in steps)


def close_round(
    config: Config,
    state: FederationState,
    total: Update | None,
    told: Collection[str],
    counted: Collection[str],
    lost: Collection[str],
    judgement: Judgement | None,
    support: Support,
    downlink: Codec,
) -> FederationState:
    """The state after a round.

    Args:
        config: the run's settings.
        state: before the round.
        total: the sum of the updates that were counted; ``None`` if there were none.
        told: clients that now hold ``state.weights``.
        counted: clients whose update is in ``total``.
        lost: clients that said they cannot follow; they will be welcomed again.
        judgement: what the judges said of ``state.candidate``, if it was on trial.
        support: which weights are alive.
        downlink: codec of the way down.
    """
    number = state.round + 1
    steps: list[Step] = []
    if judgement is not None and judgement.accepted and state.candidate is not None:
        steps.append(state.candidate.step)
    residual = state.residual
    if total is not None:
        scale = np.float32(config.rounds.server_learning_rate)
        mean = {n: scale * v for n, v in total.mean().items()}
        residual, payload = downlink.encode(residual, mean)
        steps.append(Step(StepKind.UPDATE, payload))
    weights = state.weights
    for step in steps:
        weights = apply_step(step, weights, support, downlink)
    records = dict(state.clients)
    for client in told:
        last = number if client in counted else records[client].counted
        records[client] = ClientRecord(state.round, last)
    for client in lost:
        records[client] = replace(records[client], version=None)
    return replace(
        state,
        round=number,
        weights=weights,
        residual=residual,
        history=_recent({**state.history, number: tuple(steps)}, exact_step(weights, support)),
        clients=records,
        candidate=None if judgement is not None else state.candidate,
    )


def _recent(history: Mapping[int, tuple[Step, ...]], exact: Step) -> dict[int, tuple[Step, ...]]:
    """As many of the last versions as together are worth sending: no larger than exact weights."""
    kept: dict[int, tuple[Step, ...]] = {}
    size = 0
    for version in sorted(history, reverse=True):
        size += _size(history[version])
        if kept and size > len(exact.payload):
            break
        kept[version] = history[version]
    return dict(sorted(kept.items()))


def delivered(state: FederationState, clients: Collection[str]) -> FederationState:
    """The state once ``clients`` have confirmed the current weights."""
    records = {c: replace(r, version=state.round) if c in clients else r for c, r in state.clients.items()}
    return replace(state, clients=records)


def judge(config: Config, scores: Mapping[str, Scores]) -> Judgement:
    """Take the candidate only if it is clearly better.

    Its score must not be lower than that of the weights held by more than ``-margin`` (so with a margin of 0
    it must be at least as high), and the judges' gain in loss must exceed its own standard error, so that one
    lucky judge is not enough. Scores are the judges' own, on windows that nobody trained on. Every judge has
    one vote, whatever number of windows it claims; the loss is looked at because on few windows the score
    moves in large steps.
    """
    scores = dict(sorted(scores.items()))  # the order of arrival would show in the last bit
    if not scores:
        return Judgement(False, "no judge answered", None, None)
    windows = sum(s.windows for s in scores.values())
    held = statistics.fmean(s.score_held for s in scores.values())
    candidate = statistics.fmean(s.score_candidate for s in scores.values())
    gain, error = _mean_gain([s.loss_held - s.loss_candidate for s in scores.values()])
    text = (
        f"score {held:.3f} to {candidate:.3f}, loss {-gain:+.4f} (standard error {error:.4f}) "
        f"on {windows} windows of {len(scores)} clients"
    )
    accepted = candidate - held >= config.redistill.margin - _ROUNDING and gain > error
    return Judgement(accepted, text, held, candidate)


def _mean_gain(gains: list[float]) -> tuple[float, float]:
    """By how much the candidate's loss is lower, and the standard error of that mean over judges."""
    mean = statistics.fmean(gains)
    if len(gains) < 2:
        return mean, abs(mean)  # one judge alone proves nothing
    return mean, statistics.stdev(gains) / math.sqrt(len(gains))
