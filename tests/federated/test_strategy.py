import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federated.build import same_state, same_weights
from fedge.config import Config, load_config
from fedge.federated.client import _follow
from fedge.federated.client_state import ClientState
from fedge.federated.coding import Support, build_codec, encode_dense
from fedge.federated.frames import Scores, Step, StepKind
from fedge.federated.plan import Coding, Plan
from fedge.federated.prepare import Prepared
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
from fedge.update import Update, weights_hash

NAMES = [f"c{i}" for i in range(10)]
DOWN = Coding("ternary", {"share": 0.2})


def _config(**settings: Any) -> Config:
    return load_config(None, {k.replace("__", "."): v for k, v in settings.items()})


@given(st.permutations(NAMES), st.integers(1, 1000), st.floats(0.01, 1), st.integers(0, 1000))
def test_who_takes_part_follows_from_seed_and_round_alone(
    names: list[str], number: int, share: float, seed: int
) -> None:
    config = _config(rounds__fraction=share, seed=seed)
    chosen = choose(config, number, names)
    assert chosen == choose(config, number, NAMES)
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(NAMES)
    assert len(chosen) == max(1, round(share * len(NAMES)))
    judges = choose_judges(config, number, names)
    assert judges == choose_judges(config, number, NAMES)
    assert judges <= set(NAMES)
    assert len(judges) == min(len(NAMES), config.redistill.judges)


def test_other_rounds_and_seeds_choose_others_and_everyone_gets_a_turn() -> None:
    config = _config(rounds__fraction=0.3)
    chosen = [tuple(choose(config, n, NAMES)) for n in range(1, 60)]
    assert len(set(chosen)) > 20
    assert {c for cs in chosen for c in cs} == set(NAMES)
    assert chosen != [tuple(choose(replace(config, seed=1), n, NAMES)) for n in range(1, 60)]
    assert len({frozenset(choose_judges(config, n, NAMES)) for n in range(1, 60)}) > 20


@pytest.mark.parametrize("rounds", [2, 3, 30])
def test_the_learning_rate_falls_from_the_first_to_the_last(rounds: int) -> None:
    config = _config(rounds__rounds=rounds, local__learning_rate=0.2, local__final_learning_rate=0.02)
    rates = [learning_rate(config, n) for n in range(1, rounds + 1)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[-1] == pytest.approx(0.02)
    assert all(a > b for a, b in itertools.pairwise(rates))
    assert learning_rate(_config(rounds__rounds=1, local__learning_rate=0.2), 1) == pytest.approx(0.2)


# ----- walking through versions


@pytest.fixture
def begun(small_prepared: Prepared) -> FederationState:
    """Before round 1, everyone welcomed."""
    residual = build_codec(DOWN).init(small_prepared.support.shapes())
    records = {c: ClientRecord(0, 0) for c in NAMES}
    return FederationState(0, small_prepared.weights, residual, clients=records)


def _update(support: Support, seed: int, weight: int = 1, base: int = 0) -> Update:
    random = np.random.default_rng(seed)
    arrays = {n: random.normal(0, 0.01, s).astype(np.float32) for n, s in support.shapes().items()}
    return Update.of(arrays, weight, base)


def _close(state: FederationState, support: Support, seed: int, **how: Any) -> FederationState:
    number = state.round + 1
    values: dict[str, Any] = {"told": NAMES, "counted": NAMES, "lost": (), "judgement": None} | how
    total = values.pop("total", _update(support, seed, base=number - 1))
    return close_round(_config(), state, total, support=support, downlink=build_codec(DOWN), **values)


def _candidate(support: Support, seed: int, made: int) -> Candidate:
    change = {n: v / 2**32 for n, v in _update(support, seed).total.items()}
    gathered = {n: v.astype(np.float32) for n, v in change.items()}
    return Candidate(made, Step(StepKind.CHANGE, encode_dense(gathered, 3)))


ACCEPTED = Judgement(True, "", 0.5, 0.6)


def _client_after(plan: Plan, support: Support, start: FederationState, now: FederationState) -> Any:
    """The weights of a client that held ``start`` and gets the task of ``now``."""
    mine = ClientState(replace(plan, downlink=DOWN), support, start.weights, start.round, {})
    known = replace(now, clients={"me": ClientRecord(start.round, 0)})
    return _follow(task_for("me", now.round + 1, known, support, 0.1, judge=False), mine)


def test_a_client_any_number_of_versions_behind_ends_with_the_same_bits(
    small_prepared: Prepared, begun: FederationState
) -> None:
    support, states = small_prepared.support, [begun]
    for seed in range(6):
        state = states[-1]
        judgement = None
        if seed == 3:  # one round brings a re-distilled student and an update: two steps in one version
            state, judgement = replace(state, candidate=_candidate(support, 9, 3)), ACCEPTED
        states.append(_close(state, support, seed, judgement=judgement))
    assert [len(s) for s in states[-1].history.values()].count(2) == 1
    for start in states:
        after = _client_after(small_prepared.plan, support, start, states[-1])
        assert same_weights(after.weights, states[-1].weights)
        assert after.version == 6


def test_missing_steps_cost_as_much_as_were_missed_and_never_more_than_exact_weights(
    small_prepared: Prepared, begun: FederationState
) -> None:
    support, state = small_prepared.support, begun
    for seed in range(40):
        state = _close(state, support, seed)
    exact = task_for("c0", 41, replace(state, clients={}), support, 0.1, judge=False).steps
    assert [s.kind for group in exact for s in group] == [StepKind.EXACT]
    most = len(exact[0][0].payload)
    assert sum(len(s.payload) for g in state.history.values() for s in g) <= most
    sizes = []
    for behind in range(41):
        known = replace(state, clients={"c0": ClientRecord(40 - behind, 0)})
        steps = task_for("c0", 41, known, support, 0.1, judge=False).steps
        sizes.append(sum(len(s.payload) for group in steps for s in group))
    assert sizes[0] == 0
    assert sizes == sorted(sizes)
    assert sizes[-1] == most
    first_exact = sizes.index(most)
    assert first_exact == len(state.history) + 1


def test_who_is_too_far_behind_or_unknown_gets_exact_weights(
    small_prepared: Prepared, begun: FederationState
) -> None:
    support, state = small_prepared.support, begun
    for seed in range(4):
        state = _close(state, support, seed)
    short = replace(state, history={4: state.history[4]})
    after = _client_after(small_prepared.plan, support, replace(begun, round=2), short)
    assert same_weights(after.weights, state.weights)
    for record in (ClientRecord(2, 0), ClientRecord(None, 0)):
        known = replace(short, clients={"c0": record})
        (group,) = task_for("c0", 5, known, support, 0.1, judge=False).steps
        assert [s.kind for s in group] == [StepKind.EXACT]
    assert task_for("new", 1, begun, support, 0.1, judge=False).steps == ()


def test_a_round_without_updates_still_counts_as_a_version(
    small_prepared: Prepared, begun: FederationState
) -> None:
    support = small_prepared.support
    empty = _close(begun, support, 0, total=None, counted=())
    assert (empty.round, empty.history) == (1, {1: ()})
    assert same_weights(empty.weights, begun.weights)
    state = _close(empty, support, 1)
    for start in (begun, empty):
        assert same_weights(_client_after(small_prepared.plan, support, start, state).weights, state.weights)


@given(order=st.permutations(range(5)), split=st.integers(1, 4))
def test_closing_a_round_does_not_depend_on_the_order_of_updates(
    small_prepared: Prepared, order: list[int], split: int
) -> None:
    support = small_prepared.support
    residual = build_codec(DOWN).init(support.shapes())
    begun = FederationState(0, small_prepared.weights, residual, clients={c: ClientRecord(0) for c in NAMES})
    updates = [_update(support, i, weight=i + 1) for i in range(5)]
    mixed = [updates[i] for i in order]

    def total(parts: list[Update]) -> Update:
        added = parts[0]
        for part in parts[1:]:
            added += part
        return added

    in_order = _close(begun, support, 0, total=total(updates))
    grouped = total(mixed[:split]) + total(mixed[split:])
    told = [NAMES[i] for i in order]
    again = _close(begun, support, 0, total=grouped, told=sorted(NAMES, key=lambda n: n in told))
    assert same_state(in_order, again)


def test_a_round_moves_the_weights_by_the_decoded_mean(
    small_prepared: Prepared, begun: FederationState
) -> None:
    support, codec = small_prepared.support, build_codec(Coding("raw", {}))
    a, b = _update(support, 1, weight=3), _update(support, 2, weight=1)
    begun = replace(begun, residual=codec.init(support.shapes()))
    first = close_round(_config(), begun, a + b, NAMES, NAMES, (), None, support, codec)
    for name, alive in support.alive.items():
        mean = (a.total[name] + b.total[name]) / 2.0**32 / 4
        expected = begun.weights[name].copy()
        expected[alive] = expected[alive] + mean.astype(np.float32)
        assert first.weights[name].tobytes() == expected.tobytes()


def test_records_say_who_holds_what_and_whose_update_counted(
    small_prepared: Prepared, begun: FederationState
) -> None:
    support = small_prepared.support
    one = _close(begun, support, 0, told=["c0", "c1"], counted=["c0"], lost=["c2"])
    assert one.clients["c0"] == ClientRecord(0, 1)
    assert one.clients["c1"] == ClientRecord(0, 0)
    assert one.clients["c2"] == ClientRecord(None, 0)
    two = _close(one, support, 1, told=["c0", "c1"], counted=["c1"])
    assert two.clients["c0"] == ClientRecord(1, 1)
    assert two.clients["c1"] == ClientRecord(1, 2)
    assert two.clients["c3"] == begun.clients["c3"]
    done = delivered(two, ["c3"])
    assert done.clients["c3"] == ClientRecord(2, 0)
    assert done.clients["c0"] == two.clients["c0"]


def test_a_refused_candidate_leaves_no_trace(small_prepared: Prepared, begun: FederationState) -> None:
    support = small_prepared.support
    tried = replace(begun, candidate=_candidate(support, 9, 0))
    refused = _close(tried, support, 1, judgement=replace(ACCEPTED, accepted=False))
    assert same_state(refused, _close(begun, support, 1))
    accepted = _close(tried, support, 1, judgement=ACCEPTED)
    assert accepted.candidate is None
    assert not same_weights(accepted.weights, refused.weights)
    assert accepted.history[1][0] == tried.candidate.step if tried.candidate else False


def test_only_a_judge_is_sent_the_candidate(small_prepared: Prepared, begun: FederationState) -> None:
    support = small_prepared.support
    tried = replace(begun, candidate=_candidate(support, 9, 0))
    assert task_for("c0", 1, tried, support, 0.1, judge=True).candidate == _candidate(support, 9, 0).step
    assert task_for("c0", 1, tried, support, 0.1, judge=False).candidate is None
    assert task_for("c0", 1, begun, support, 0.1, judge=True).candidate is None
    assert task_for("c0", 1, begun, support, 0.1, judge=True).weights_hash == weights_hash(begun.weights)


# ----- the judges' rule


def _scores(held: float, candidate: float, gain: float, windows: int = 10) -> Scores:
    return Scores(windows, 1.0, held, 1.0 - gain, candidate)


@pytest.mark.parametrize(
    ("scores", "accepted"),
    [
        ([_scores(0.5, 0.6, 0.1), _scores(0.5, 0.6, 0.12)], True),
        ([_scores(0.5, 0.5, 0.1), _scores(0.5, 0.5, 0.12)], True),  # a tie, and the loss clearly lower
        ([_scores(0.5, 0.5, 0.0), _scores(0.5, 0.5, 0.0)], False),  # the very same model
        ([_scores(0.5, 0.5, -0.1), _scores(0.5, 0.5, -0.1)], False),  # a tie, and the loss higher
        ([_scores(0.5, 0.4, 0.1), _scores(0.5, 0.4, 0.12)], False),  # a lower score, whatever the loss
        ([_scores(0.5, 0.6, 0.5), _scores(0.5, 0.6, -0.3)], False),  # one lucky judge
        ([_scores(0.5, 0.6, 0.5)], False),  # one judge alone proves nothing
        ([_scores(0.4, 0.7, 0.1), _scores(0.5, 0.3, 0.12)], True),  # one better, one worse, in all better
        ([_scores(0.9, 0.4, 0.1, 10), _scores(0.5, 0.6, 0.12, 10**6)], False),  # a judge has one vote
        ([], False),
    ],
)
def test_the_rule_of_the_judges(scores: list[Scores], accepted: bool) -> None:
    judgement = judge(_config(), {f"c{i}": s for i, s in enumerate(scores)})
    assert judgement.accepted is accepted
    assert judgement.reason
    if scores:
        assert judgement.held == pytest.approx(sum(s.score_held for s in scores) / len(scores))
        assert judgement.candidate == pytest.approx(sum(s.score_candidate for s in scores) / len(scores))
    else:
        assert (judgement.held, judgement.candidate) == (None, None)


def test_a_margin_moves_the_line_by_as_much() -> None:
    def accepted(margin: float, candidate: float) -> bool:
        scores = {c: _scores(0.5, candidate, 0.1) for c in "ab"}
        return judge(_config(redistill__margin=margin), scores).accepted

    assert accepted(0.1, 0.6)
    assert not accepted(0.1, 0.59)
    assert accepted(-0.1, 0.4)
    assert not accepted(-0.1, 0.39)


def test_the_judgement_does_not_depend_on_who_answers_first() -> None:
    random = np.random.default_rng(0)
    scores = {c: Scores(int(random.integers(5, 40)), *random.random(4).tolist()) for c in NAMES[:6]}
    orders = itertools.permutations(scores)
    assert len({judge(_config(), {c: scores[c] for c in order}) for order in orders}) == 1
