import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federated.build import same_state, same_weights
from fedge.config import Config, load_config
from fedge.errors import UpdateError
from fedge.federated import optimizer as optimizer_module
from fedge.federated.client import lead_on
from fedge.federated.client_state import ClientState
from fedge.federated.coding import Support, apply_step, build_codec, encode_dense, snapshot_step
from fedge.federated.frames import Scores, Step, StepKind, Train
from fedge.federated.lineage import begin, follow
from fedge.federated.plan import Coding, Plan
from fedge.federated.prepare import Prepared
from fedge.federated.state import Candidate, ClientRecord, FederationState
from fedge.federated.strategy import (
    Judgement,
    candidate_due,
    choose,
    choose_judges,
    close_round,
    delivered,
    judge,
    learning_rate,
    optimizer_of,
    task_for,
)
from fedge.update import Update

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
    records = {c: ClientRecord(0, begin(small_prepared.snapshot)) for c in NAMES}
    return FederationState(0, small_prepared.weights, residual, clients=records)


def _update(support: Support, seed: int, weight: int = 1, base: int = 0) -> Update:
    random = np.random.default_rng(seed)
    arrays = {n: random.normal(0, 0.01, s).astype(np.float32) for n, s in support.shapes().items()}
    return Update.of(arrays, weight, base)


def _close(state: FederationState, support: Support, seed: int, **how: Any) -> FederationState:
    """Everyone takes part; as in a round, who is told holds the version before it."""
    number = state.round + 1
    values: dict[str, Any] = {
        "told": NAMES,
        "counted": NAMES,
        "lost": (),
        "judgement": None,
        "nudge": None,
    } | how
    if not isinstance(values["told"], dict):
        values["told"] = {c: _task(c, state, support).lineage for c in values["told"]}
    total = values.pop("total", _update(support, seed, base=number - 1))
    config = values.pop("config", _config())
    return close_round(config, state, total, support=support, downlink=build_codec(DOWN), **values)


def _candidate(support: Support, seed: int, made: int) -> Candidate:
    change = {n: v / 2**32 for n, v in _update(support, seed).total.items()}
    gathered = {n: v.astype(np.float32) for n, v in change.items()}
    return Candidate(made, Step(StepKind.CHANGE, encode_dense(gathered, 3)))


ACCEPTED = Judgement(True, "", 0.5, 0.6)


BITS = 6


def _task(client: str, state: FederationState, support: Support, *, judge: bool = False) -> Train:
    """The next round's task, with a snapshot like the server's."""
    return task_for(
        client, state.round + 1, state, lambda: snapshot_step(state.weights, support, BITS), 0.1, judge
    )


def _client(plan: Plan, support: Support, start: FederationState, name: bytes) -> ClientState:
    """A client that holds the global weights of ``start``."""
    return ClientState(replace(plan, downlink=DOWN), support, start.weights, start.round, name, {})


def _behind(now: FederationState, held: ClientState) -> FederationState:
    """``now``, knowing nobody but a client that holds this."""
    return replace(now, clients={"me": ClientRecord(held.version, held.lineage)})


def _led(now: FederationState, held: ClientState) -> tuple[ClientState, list[Step]]:
    """A client that held this, after the task of ``now``, and the steps that it was sent."""
    task = _task("me", _behind(now, held), held.support)
    return lead_on(task, held), [s for group in task.steps for s in group]


def _size(steps: Any) -> int:
    return sum(len(s.payload) for s in steps)


@pytest.fixture
def versions(small_prepared: Prepared, begun: FederationState) -> list[tuple[FederationState, bytes]]:
    """Eight versions in a row and the name of each on the common lineage.

    One of them brings a re-distilled student and an update: two steps.
    """
    support, walked = small_prepared.support, [(begun, begin(small_prepared.snapshot))]
    for seed in range(7):
        state, judgement = walked[-1][0], None
        if seed == 3:
            state, judgement = replace(state, candidate=_candidate(support, 9, 3)), ACCEPTED
        state = _close(state, support, seed, judgement=judgement)
        walked.append((state, follow(walked[-1][1], state.history[state.round])))
    assert len(walked[4][0].history[4]) == 2
    return walked


def test_a_client_any_number_of_versions_behind_is_led_on_or_gets_a_snapshot(
    small_prepared: Prepared, versions: list[tuple[FederationState, bytes]]
) -> None:
    """Led on, it ends with the bits and the name of everyone; with a snapshot, on a lineage of its own."""
    support, (now, common) = small_prepared.support, versions[-1]
    snapshot = snapshot_step(now.weights, support, BITS)
    kinds = []
    for start, name in versions:
        after, steps = _led(now, _client(small_prepared.plan, support, start, name))
        kinds.append(steps == [snapshot])
        if kinds[-1]:
            held = apply_step(snapshot, start.weights, support, build_codec(DOWN))
            assert same_weights(after.weights, held)
            assert after.lineage == begin(snapshot.payload) != common
        else:
            assert same_weights(after.weights, now.weights)
            assert after.lineage == common
            assert steps == [s for v in range(start.round + 1, 8) for s in now.history[v]]
        assert after.version == now.round
    assert set(kinds) == {True, False}
    assert kinds == sorted(kinds, reverse=True)  # whoever is further behind than one with a snapshot gets it


def test_a_client_on_a_lineage_of_its_own_is_led_on_from_there(
    small_prepared: Prepared, versions: list[tuple[FederationState, bytes]]
) -> None:
    """What it holds keeps its distance from the global weights: the error of the snapshot, never more."""
    support, codec = small_prepared.support, build_codec(DOWN)
    start, name = versions[0]
    now = versions[-1][0]
    held, steps = _led(now, _client(small_prepared.plan, support, start, name))
    assert [s.kind for s in steps] == [StepKind.SNAPSHOT]
    error = {n: held.weights[n] - now.weights[n] for n in now.weights}
    assert any(e.any() for e in error.values())
    for seed in range(7, 12):
        now = _close(now, support, seed)
        naive, chain = held.weights, held.lineage
        for step in now.history[now.round]:
            naive, chain = apply_step(step, naive, support, codec), follow(chain, [step])
        held, steps = _led(now, held)
        assert steps == list(now.history[now.round])
        assert same_weights(held.weights, naive)
        assert held.lineage == chain
        for n, value in held.weights.items():
            np.testing.assert_allclose(value - now.weights[n], error[n], atol=1e-6)


def test_clients_on_different_lineages_get_the_same_steps_under_different_names(
    small_prepared: Prepared, versions: list[tuple[FederationState, bytes]]
) -> None:
    (before, name), (now, _) = versions[-2:]
    records = {"c0": ClientRecord(before.round, name), "c1": ClientRecord(before.round, begin(b"its own"))}
    tasks = [_task(c, replace(now, clients=records), small_prepared.support) for c in records]
    assert tasks[0].steps == tasks[1].steps
    assert tasks[0].lineage != tasks[1].lineage
    held = _client(small_prepared.plan, small_prepared.support, before, name)
    assert lead_on(tasks[0], held).lineage == tasks[0].lineage
    with pytest.raises(UpdateError, match="do not lead"):
        lead_on(tasks[1], held)


def test_missing_steps_cost_as_much_as_were_missed_and_never_more_than_a_snapshot(
    small_prepared: Prepared, begun: FederationState
) -> None:
    support, state, whole = small_prepared.support, begun, dict[int, tuple[Step, ...]]()
    for seed in range(40):
        state = _close(state, support, seed)
        whole |= state.history
    snapshot = snapshot_step(state.weights, support, BITS)
    most = len(snapshot.payload)
    sizes, kinds = [], []
    for behind in range(41):
        known = replace(state, clients={"c0": ClientRecord(40 - behind, b"8 bytes!")})
        steps = [s for group in _task("c0", known, support).steps for s in group]
        remembered = _task("c0", replace(known, history=whole), support).steps
        assert [s for group in remembered for s in group] == steps  # nothing useful was forgotten
        missed = [s for v in range(41 - behind, 41) for s in whole[v]]
        sizes.append(_size(steps))
        kinds.append({s.kind for s in steps})
        assert sizes[-1] == min(_size(missed), most)
    assert kinds[0] == set()
    assert kinds[1] == {StepKind.UPDATE}
    assert kinds[-1] == {StepKind.SNAPSHOT}
    assert sizes == sorted(sizes)
    assert sizes[-1] == most
    led = sum(k == {StepKind.UPDATE} for k in kinds)
    assert 3 < led <= len(state.history)
    # and nothing is kept that a snapshot would be sent instead of, but for how well a snapshot is coded
    assert _size(s for g in state.history.values() for s in g) < 1.25 * most


def test_a_snapshot_is_only_made_for_who_may_need_it(
    small_prepared: Prepared, versions: list[tuple[FederationState, bytes]]
) -> None:
    """Most clients take part in every round, and a large student takes long to quantize."""
    state = versions[-1][0]
    for behind, made in ((0, 0), (1, 0), (2, 1), (7, 1)):
        asked: list[int] = []

        def snapshot(asked: list[int] = asked) -> Step:
            asked.append(1)
            return snapshot_step(state.weights, small_prepared.support, BITS)

        known = replace(state, clients={"me": ClientRecord(state.round - behind, b"8 bytes!")})
        task_for("me", 8, known, snapshot, 0.1, judge=False)
        assert len(asked) == made, behind


def test_who_is_further_behind_than_the_history_gets_a_snapshot_and_who_is_unknown_a_welcome(
    small_prepared: Prepared, versions: list[tuple[FederationState, bytes]]
) -> None:
    support, state = small_prepared.support, versions[-1][0]
    short = replace(state, history={7: state.history[7]})
    held = _client(small_prepared.plan, support, *versions[5])
    after, steps = _led(short, held)
    assert steps == [snapshot_step(state.weights, support, BITS)]
    assert (after.version, after.lineage) == (7, begin(steps[0].payload))
    unknown = replace(short, clients={"c0": ClientRecord(None, b"8 bytes!")})
    with pytest.raises(UpdateError, match="not been welcomed"):
        _task("c0", unknown, support)
    fresh = replace(short, clients={"c0": ClientRecord(0, begin(small_prepared.snapshot))})
    assert _task("c0", fresh, support).lineage == begin(steps[0].payload)


def test_who_was_just_welcomed_in_the_first_round_is_sent_nothing_more(
    small_prepared: Prepared, begun: FederationState
) -> None:
    task = _task("c0", begun, small_prepared.support)
    assert (task.steps, task.version, task.lineage) == ((), 0, begin(small_prepared.snapshot))


def test_a_round_without_updates_still_counts_as_a_version(
    small_prepared: Prepared, begun: FederationState
) -> None:
    support = small_prepared.support
    empty = _close(begun, support, 0, total=None, counted=())
    assert (empty.round, empty.history) == (1, {1: ()})
    assert same_weights(empty.weights, begun.weights)
    state = _close(empty, support, 1)
    for start in (begun, empty):
        held = _client(small_prepared.plan, support, start, begin(small_prepared.snapshot))
        after, _ = _led(state, held)
        assert same_weights(after.weights, state.weights)
        assert after.lineage == follow(begin(small_prepared.snapshot), state.history[2])


@given(order=st.permutations(range(5)), split=st.integers(1, 4))
def test_closing_a_round_does_not_depend_on_the_order_of_updates(
    small_prepared: Prepared, order: list[int], split: int
) -> None:
    support = small_prepared.support
    residual = build_codec(DOWN).init(support.shapes())
    records = {c: ClientRecord(0, b"8 bytes!") for c in NAMES}
    begun = FederationState(0, small_prepared.weights, residual, clients=records)
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
    told = dict.fromkeys(NAMES, b"8 bytes!")
    first = close_round(_config(), begun, a + b, told, NAMES, (), None, None, support, codec)
    for name, alive in support.alive.items():
        mean = (a.total[name] + b.total[name]) / 2.0**32 / 4
        expected = begun.weights[name].copy()
        expected[alive] = expected[alive] + mean.astype(np.float32)
        assert first.weights[name].tobytes() == expected.tobytes()


OPTIMIZERS = {
    "avgm": {"rounds__server_momentum": 0.5},
    "adam": {"rounds__server_learning_rate": 0.01, "rounds__server_tau": 1e-2},
    "dyn": {"local__dynamic": 0.05},
}


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_rounds_take_the_steps_of_the_server_optimizer_and_keep_its_state(
    name: str, small_prepared: Prepared, begun: FederationState
) -> None:
    """Two rounds against the optimizer by hand, with a saved and restored state between them."""
    support, codec = small_prepared.support, build_codec(Coding("raw", {}))
    config, told = _config(rounds__optimizer=name, **OPTIMIZERS[name]), dict.fromkeys(NAMES, b"8 bytes!")
    optimizer = optimizer_of(config)
    held = optimizer_module.OPTIMIZERS[name].init(support.shapes())
    state = replace(begun, residual=codec.init(support.shapes()), optimizer=held)
    weights = {n: w.copy() for n, w in state.weights.items()}
    for number, counted in enumerate((NAMES, NAMES[:4])):
        update = _update(support, number, weight=2, base=number)
        held, step = optimizer_module.OPTIMIZERS[name].step(
            optimizer, held, update.mean(), len(counted) / len(NAMES)
        )
        state = close_round(config, state, update, told, counted, (), None, None, support, codec)
        state = FederationState.from_bytes(state.to_bytes())
        for n, alive in support.alive.items():
            weights[n][alive] = weights[n][alive] + step[n]
        assert same_weights(state.optimizer, held)
        assert same_weights(state.weights, weights)


def test_a_round_without_updates_leaves_the_optimizer_as_it_was(
    small_prepared: Prepared, begun: FederationState
) -> None:
    support, config = small_prepared.support, _config(rounds__optimizer="avgm")
    held = optimizer_module.OPTIMIZERS["avgm"].init(support.shapes())
    one = _close(replace(begun, optimizer=held), support, 0, config=config)
    two = _close(one, support, 0, config=config, total=None, counted=())
    assert same_weights(two.optimizer, one.optimizer)
    assert not same_weights(one.optimizer, held)


def _gradient_mode() -> Config:
    return _config(redistill__mode="gradient")


def test_in_gradient_mode_a_verdict_moves_no_weights_but_says_whether_the_step_goes_on(
    small_prepared: Prepared, begun: FederationState
) -> None:
    support = small_prepared.support
    tried = replace(begun, candidate=_candidate(support, 9, 0))
    plain = _close(begun, support, 1, config=_gradient_mode())
    for nudged in (False, True):
        for accepted in (False, True):
            verdict = replace(ACCEPTED, accepted=accepted)
            state = _close(
                replace(tried, nudged=nudged), support, 1, config=_gradient_mode(), judgement=verdict
            )
            assert same_weights(state.weights, plain.weights)
            assert (state.nudged, state.candidate) == (accepted, None)
        waiting = _close(replace(tried, nudged=nudged), support, 1, config=_gradient_mode())
        assert waiting.nudged is nudged
        assert waiting.candidate == tried.candidate
    assert not _close(tried, support, 1, judgement=ACCEPTED).nudged  # another mode


def test_when_a_candidate_is_due(begun: FederationState) -> None:
    def due(mode: str, **state: Any) -> list[int]:
        config = _config(redistill__mode=mode, redistill__every=4, rounds__rounds=12)
        return [n for n in range(1, 13) if candidate_due(config, replace(begun, round=n, **state))]

    assert due("none") == []
    assert due("teacher") == due("ensemble") == [4, 8]  # after the last there is nobody to judge
    assert due("gradient") == [1, 4, 8]
    assert due("ensemble", candidate=Candidate(1, Step(StepKind.CHANGE, b""))) == []


def test_records_say_who_holds_what_and_whose_update_counted(
    small_prepared: Prepared, begun: FederationState
) -> None:
    support = small_prepared.support
    start = begin(small_prepared.snapshot)
    one = _close(begun, support, 0, told={"c0": b"of c0...", "c1": start}, counted=["c0"], lost=["c2"])
    assert one.clients["c0"] == ClientRecord(0, b"of c0...", 1)
    assert one.clients["c1"] == ClientRecord(0, start, 0)
    assert one.clients["c2"] == ClientRecord(None, start, 0)
    two = _close(one, support, 1, told=["c0", "c1"], counted=["c1"])
    assert two.clients["c0"] == ClientRecord(1, follow(b"of c0...", one.history[1]), 1)
    assert two.clients["c1"] == ClientRecord(1, follow(start, one.history[1]), 2)
    assert two.clients["c3"] == begun.clients["c3"]
    done = delivered(two, {"c3": b"of c3..."})
    assert done.clients["c3"] == ClientRecord(2, b"of c3...", 0)
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
    assert _task("c0", tried, support, judge=True).candidate == _candidate(support, 9, 0).step
    assert _task("c0", tried, support, judge=False).candidate is None
    assert _task("c0", begun, support, judge=True).candidate is None
    for judging in (True, False):  # the candidate is scored, not taken: it is no part of the name
        assert _task("c0", tried, support, judge=judging).lineage == begin(small_prepared.snapshot)


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
    if len(scores) > 1:
        assert judgement.held == pytest.approx(sum(s.score_held for s in scores) / len(scores))
        assert judgement.candidate == pytest.approx(sum(s.score_candidate for s in scores) / len(scores))
    else:
        assert (judgement.held, judgement.candidate) == (None, None)


def test_judges_whose_windows_define_no_score_are_left_out_of_the_score_but_not_of_the_loss() -> None:
    undefined = float("nan")
    known = {"a": _scores(0.5, 0.6, 0.1), "b": _scores(0.5, 0.5, 0.12)}
    both = judge(_config(), known | {"c": _scores(undefined, undefined, 0.11)})
    assert (both.held, both.candidate, both.accepted) == (0.5, pytest.approx(0.55), True)
    worse = judge(_config(), known | {"c": _scores(undefined, undefined, -9.0)})
    assert not worse.accepted
    half = judge(_config(), known | {"c": _scores(0.9, undefined, 0.11)})
    assert (half.held, half.candidate) == (0.5, pytest.approx(0.55))
    loss_alone = {c: _scores(undefined, undefined, gain) for c, gain in (("a", 0.1), ("b", 0.12))}
    alone = judge(_config(), loss_alone)
    assert (alone.held, alone.candidate, alone.accepted) == (None, None, True)
    assert "not defined" in alone.reason


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
