"""One client's round, as its server and its own restarts see it."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import fedge.federated.client as client_module
from federated.build import MemoryStore, same_weights, trained_of
from fedge import plugins
from fedge.data.types import Windows
from fedge.errors import ConfigError, DataError, PayloadError, SignatureError, UpdateError
from fedge.federated.client import (
    HELLO,
    SMALLEST_BUDGET,
    UPDATE,
    Device,
    client_round,
    link_budget,
    signed_parts,
)
from fedge.federated.client_state import ClientState
from fedge.federated.coding import apply_step, build_codec, encode_dense, limits, snapshot_step
from fedge.federated.frames import (
    Hello,
    Scores,
    Step,
    StepKind,
    Train,
    Trained,
    Welcome,
    decode_reply,
    encode_reply,
    encode_task,
)
from fedge.federated.lineage import begin, follow
from fedge.federated.plan import Coding
from fedge.federated.prepare import Prepared
from fedge.federated.training import fine_tune, loss_and_score
from fedge.seeding import derive
from fedge.signing import SigningKey, verify
from fedge.simulation.world import World


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def device(small_world: World, small_prepared: Prepared, store: MemoryStore) -> Device:
    """A client that has just been welcomed."""
    device = small_world.device(0, store)
    client_round(_welcome(small_prepared), device)
    return device


def _welcome(prepared: Prepared, challenge: bytes = b"challenge") -> bytes:
    return encode_task(Welcome(challenge, prepared.plan.to_dict(), prepared.snapshot))


def _task(prepared: Prepared, number: int = 1, counted: int = 0, **values: Any) -> bytes:
    """A task on the student as first sent."""
    rest: dict[str, Any] = {"lineage": begin(prepared.snapshot), "learning_rate": 0.05} | values
    return encode_task(
        Train(number, counted, rest.pop("version", number - 1), steps=rest.pop("steps", ()), **rest)
    )


def _state(store: MemoryStore) -> ClientState:
    return ClientState.load(store)


def _change(prepared: Prepared, device: Device, number: int, rate: float = 0.05) -> dict[str, Any]:
    """What fine-tuning changes in the live weights, computed apart from the round."""
    plan, x = prepared.plan, prepared.plan.preprocess.apply(device.data.train.x)
    data = torch.from_numpy(x), torch.from_numpy(device.data.train.y)
    seed, task = derive(device.seed, "local", number), plugins.load("task", plan.task).TASK
    tuned, _ = fine_tune(plan, task, prepared.weights, prepared.support, data, rate, seed)
    return prepared.support.gather({n: tuned[n] - prepared.weights[n] for n in tuned})


def _flat(residual: Any) -> Any:
    """The values in a residual, without what else a codec remembers."""
    (values,) = [v for v in residual.values() if v.dtype == np.float32 and v.ndim == 1]
    return values


# ----- welcome


def test_a_welcomed_client_holds_what_the_server_holds(
    small_prepared: Prepared, device: Device, store: MemoryStore
) -> None:
    state = _state(store)
    assert same_weights(state.weights, small_prepared.weights)
    assert same_weights(state.support.alive, small_prepared.support.alive)
    assert (state.version, state.pending, state.models) == (0, None, b"")
    assert state.lineage == begin(small_prepared.snapshot)
    hello = decode_reply(client_round(_welcome(small_prepared, b"other"), device))
    assert isinstance(hello, Hello)
    parts = small_prepared.plan.federation.encode(), device.id.encode(), b"other"
    verify(device.key.public, hello.signature, HELLO, *parts)
    with pytest.raises(SignatureError):
        verify(device.key.public, hello.signature, HELLO, *parts[:2], b"challenge")
    with pytest.raises(SignatureError):
        verify(device.key.public, hello.signature, UPDATE, *parts)


def test_data_of_another_shape_are_refused_before_anything_is_kept(
    small_world: World, small_prepared: Prepared
) -> None:
    store = MemoryStore()
    good = small_world.device(0, store)
    short = replace(good.data.train, x=good.data.train.x[:, :20])
    with pytest.raises(DataError, match=r"\[20, 3\].*\[32, 3\]"):
        client_round(_welcome(small_prepared), replace(good, data=replace(good.data, train=short)))
    assert store.content is None


def test_who_was_not_welcomed_says_so(small_world: World, small_prepared: Prepared) -> None:
    with pytest.raises(UpdateError, match="welcomed first"):
        client_round(_task(small_prepared), small_world.device(0, MemoryStore()))


def test_welcoming_again_does_not_reopen_the_way_to_old_releases(
    small_prepared: Prepared, device: Device, store: MemoryStore
) -> None:
    """What protects against rollback, and the model in use, outlive the student."""
    replace(_state(store), models=b"a home", offer=b"a verdict").save(store)
    client_round(_welcome(small_prepared), device)
    assert (_state(store).models, _state(store).offer) == (b"a home", b"a verdict")


# ----- the same task again


def test_the_same_task_gets_the_same_bytes_and_is_not_trained_twice(
    small_prepared: Prepared, device: Device, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[int] = []

    def counting(*arguments: Any) -> Any:
        trained.append(arguments[-1])
        return fine_tune(*arguments)

    monkeypatch.setattr(client_module, "fine_tune", counting)
    first = client_round(_task(small_prepared), device)
    kept = store.content
    assert client_round(_task(small_prepared), device) == first
    assert len(trained) == 1
    assert store.content == kept


def test_a_client_killed_before_it_saved_gives_the_same_answer(
    small_prepared: Prepared, device: Device, store: MemoryStore
) -> None:
    before = store.content
    first = client_round(_task(small_prepared), device)
    after = store.content
    store.content = before  # it died while it trained
    assert client_round(_task(small_prepared), device) == first
    assert store.content == after


def test_the_state_is_saved_before_the_answer_leaves(
    small_prepared: Prepared, small_world: World, device: Device, store: MemoryStore
) -> None:
    """Killed between the two: the answer is lost, the next process gives the same one."""

    class Dies(MemoryStore):
        def save(self, content: bytes) -> None:
            super().save(content)
            raise KeyboardInterrupt

    dying = Dies(store.content)
    with pytest.raises(KeyboardInterrupt):
        client_round(_task(small_prepared), replace(device, store=dying))
    reborn = replace(small_world.device(0, MemoryStore(dying.content)))
    assert client_round(_task(small_prepared), reborn) == client_round(_task(small_prepared), device)


# ----- the residual


BUDGETS = [None, SMALLEST_BUDGET, SMALLEST_BUDGET + 1, 200, 331]


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("codec", ["ternary", "quantized"])
def test_what_is_not_sent_is_kept_and_nothing_is_lost(
    codec: str, budget: int | None, small_prepared: Prepared, device: Device, store: MemoryStore
) -> None:
    """Law of error feedback: residual after + what the server decodes == residual before + change."""
    device, uplink = replace(device, uplink_budget=budget), Coding(codec, {})
    plan, shapes = replace(small_prepared.plan, uplink=uplink), small_prepared.support.shapes()
    client_round(_welcome(replace(small_prepared, plan=plan)), device)
    decode = build_codec(uplink).decode  # the server knows nothing of the budget
    counted, before = 0, np.zeros(sum(s for (s,) in shapes.values()), np.float32)
    for number in (1, 2, 3):
        change = np.concatenate(list(_change(small_prepared, device, number).values()))
        answer = client_round(_task(small_prepared, number, counted), device)
        sent = np.concatenate(list(decode(trained_of(answer).payload, limits(shapes)).values()))
        pending = _state(store).pending
        assert pending is not None
        after = _flat(pending.residual)
        assert sent.any()
        assert after.tobytes() == ((before + change) - sent).tobytes()
        assert budget is None or len(answer) <= budget
        before, counted = after, number


@pytest.mark.parametrize("codec", ["ternary", "quantized"])
def test_more_budget_leaves_out_less(codec: str, small_prepared: Prepared, small_world: World) -> None:
    prepared = replace(small_prepared, plan=replace(small_prepared.plan, uplink=Coding(codec, {})))
    errors, sizes = [], []
    for budget in (SMALLEST_BUDGET, 200, 300, 450):
        device = replace(small_world.device(0, MemoryStore()), uplink_budget=budget)
        client_round(_welcome(prepared), device)
        sizes.append(len(client_round(_task(prepared), device)))
        pending = ClientState.load(device.store).pending
        assert pending is not None
        errors.append(float(np.square(_flat(pending.residual), dtype=np.float64).sum()))
        assert sizes[-1] <= budget
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]
    assert sizes == sorted(sizes)


def test_a_budget_that_is_large_enough_changes_nothing(
    small_prepared: Prepared, small_world: World, device: Device
) -> None:
    free = client_round(_task(small_prepared), device)
    size = len(trained_of(free).payload) + 128
    for budget, same in ((size, True), (10 * size, True), (2**31, True), (size - 1, False)):
        other = replace(small_world.device(0, MemoryStore()), uplink_budget=budget)
        client_round(_welcome(small_prepared), other)
        answer = client_round(_task(small_prepared), other)
        assert (answer == free) is same
        assert len(answer) <= budget


def test_a_judges_answer_is_within_the_budget_too(small_prepared: Prepared, device: Device) -> None:
    shapes = small_prepared.support.shapes()
    zero = Step(StepKind.CHANGE, encode_dense({n: np.zeros(s, np.float32) for n, s in shapes.items()}, 3))
    for number, budget in enumerate((SMALLEST_BUDGET, 171, 256), 2**40):
        task = _task(small_prepared, number, version=3, candidate=zero)
        answer = client_round(task, replace(device, uplink_budget=budget))
        assert trained_of(answer).judged is not None
        assert trained_of(answer).payload
        assert len(answer) <= budget


def test_what_stands_around_a_payload_is_never_longer_than_what_is_set_aside_for_it() -> None:
    """The longest numbers that a frame can hold, beside any payload worth sending."""
    most, judged = 2**63 - 1, Scores(2**63 - 1, 1.0, 1.0, 1.0, 1.0)
    for payload in (0, 200, 1 << 20, 1 << 22):
        answer = encode_reply(Trained(most, most, 1.0, 1.0, judged, bytes(payload), b"s" * 64))
        assert len(answer) - payload <= 128


def test_an_update_that_was_not_counted_leaves_the_residual_as_before(
    small_prepared: Prepared, device: Device, store: MemoryStore
) -> None:
    client_round(_task(small_prepared, 1), device)
    first = _state(store)
    assert first.pending is not None
    client_round(_task(small_prepared, 2, counted=1), device)
    second = _state(store)
    assert same_weights(second.residual, first.pending.residual)
    client_round(_task(small_prepared, 3, counted=1), device)  # round 2 was not counted
    third = _state(store)
    assert same_weights(third.residual, second.residual)
    client_round(_task(small_prepared, 4, counted=3), device)
    assert third.pending is not None
    assert same_weights(_state(store).residual, third.pending.residual)


def test_a_lost_round_is_as_if_it_had_not_been(
    small_prepared: Prepared, small_world: World, device: Device
) -> None:
    client_round(_task(small_prepared, 1), device)
    other = small_world.device(0, MemoryStore())
    client_round(_welcome(small_prepared), other)
    assert client_round(_task(small_prepared, 2), device) == client_round(_task(small_prepared, 2), other)


# ----- what training leaves behind: FedDyn's drift, a personal head


def _learning(prepared: Prepared, **how: Any) -> Prepared:
    """A plan with other training, and updates that arrive exactly."""
    plan = prepared.plan
    plan = replace(plan, training=replace(plan.training, **how), uplink=Coding("raw", {}))
    return replace(prepared, plan=plan)


def _welcomed(world: World, prepared: Prepared) -> Device:
    device = world.device(0, MemoryStore())
    client_round(_welcome(prepared), device)
    return device


def _sent(prepared: Prepared, answer: bytes) -> dict[str, Any]:
    codec = build_codec(prepared.plan.uplink)
    return dict(codec.decode(trained_of(answer).payload, limits(prepared.support.shapes(), 100.0)))


def _memory(device: Device) -> dict[str, Any]:
    return dict(ClientState.load(device.store).memory)


WAYS = {"drift": {"dynamic": 0.3}, "head": {"personal_head": True}}
ways = pytest.mark.parametrize("kind", sorted(WAYS))


def test_a_personal_head_is_trained_and_never_sent(small_world: World, small_prepared: Prepared) -> None:
    p = _learning(small_prepared, personal_head=True)
    device = _welcomed(small_world, p)
    for number in (1, 2, 3):
        payload = _sent(p, client_round(_task(p, number, counted=number - 1, version=0), device))
        assert not any(payload[n].any() for n in ("head.weight", "head.bias"))
        assert all(payload[n].any() for n in payload if not n.startswith("head."))
    held = _memory(device)
    assert set(held) == {"head/head.weight", "head/head.bias"}
    assert (held["head/head.weight"] != p.weights["head.weight"]).any()
    assert same_weights(ClientState.load(device.store).weights, p.weights)  # the global ones, as they came


def test_a_client_is_scored_and_judges_with_its_own_head(
    small_world: World, small_prepared: Prepared
) -> None:
    p = _learning(small_prepared, personal_head=True)
    device = _welcomed(small_world, p)
    state = ClientState.load(device.store)
    wrong = {f"head/{n}": np.roll(state.weights[n], 1, axis=0) for n in ("head.weight", "head.bias")}
    zero = Step(
        StepKind.CHANGE, encode_dense({n: np.zeros(s, np.float32) for n, s in p.support.shapes().items()}, 3)
    )
    replace(state, memory=wrong).save(device.store)
    answer = trained_of(client_round(_task(p, candidate=zero), device))
    own = {n: wrong.get(f"head/{n}", w) for n, w in p.weights.items()}
    task = plugins.load("task", p.plan.task).TASK

    def expected(windows: Windows) -> tuple[float, float]:
        x = torch.from_numpy(p.plan.preprocess.apply(windows.x))
        return loss_and_score(p.plan, task, own, x, torch.from_numpy(windows.y))

    assert answer.judged is not None
    assert answer.score == np.float32(expected(device.data.later)[1])
    loss, score = (np.float32(v) for v in expected(device.data.judge))
    assert (answer.judged.loss_held, answer.judged.score_held) == (loss, score)
    assert (answer.judged.loss_candidate, answer.judged.score_candidate) == (loss, score)


def test_a_personal_head_goes_on_from_where_it_was(small_world: World, small_prepared: Prepared) -> None:
    """Against fine-tuning by hand, over two rounds."""
    p = _learning(small_prepared, personal_head=True)
    device = _welcomed(small_world, p)
    plan, task = p.plan, plugins.load("task", p.plan.task).TASK
    train = device.data.train
    data = torch.from_numpy(plan.preprocess.apply(train.x)), torch.from_numpy(train.y)
    own = p.weights
    for number in (1, 2):
        sent = _sent(p, client_round(_task(p, number, counted=number - 1, version=0), device))
        seed = derive(device.seed, "local", number)
        tuned, _ = fine_tune(plan, task, own, p.support, data, 0.05, seed)
        for name, change in p.support.gather({n: tuned[n] - own[n] for n in tuned}).items():
            if not name.startswith("head."):
                np.testing.assert_allclose(sent[name], change, atol=1e-7)
        own = {n: tuned[n] if n.startswith("head.") else w for n, w in p.weights.items()}
    pending = _state_of(device).pending
    assert pending is not None
    for name in ("head.weight", "head.bias"):
        assert pending.memory[f"head/{name}"].tobytes() == own[name].tobytes()


def _state_of(device: Device) -> ClientState:
    return ClientState.load(device.store)


def test_drift_adds_up_over_the_rounds_and_enters_the_next(
    small_world: World, small_prepared: Prepared
) -> None:
    p = _learning(small_prepared, dynamic=0.3)
    device = _welcomed(small_world, p)
    plan, task = p.plan, plugins.load("task", p.plan.task).TASK
    train = device.data.train
    data = torch.from_numpy(plan.preprocess.apply(train.x)), torch.from_numpy(train.y)
    drift: dict[str, Any] = {n: np.zeros_like(w) for n, w in p.weights.items()}
    for number in (1, 2, 3):
        client_round(_task(p, number, counted=number - 1, version=0), device)
        seed = derive(device.seed, "local", number)
        tuned, _ = fine_tune(plan, task, p.weights, p.support, data, 0.05, seed, drift if number > 1 else {})
        drift = {n: d - np.float32(0.3) * (tuned[n] - p.weights[n]) for n, d in drift.items()}
        pending = _state_of(device).pending
        assert pending is not None
        for name, value in drift.items():
            np.testing.assert_array_equal(pending.memory[f"drift/{name}"], value)


@ways
def test_memory_is_settled_like_the_residual(kind: str, small_world: World, small_prepared: Prepared) -> None:
    """Kept where the update counted, taken back where it did not, whatever restarts lie between."""
    p = _learning(small_prepared, **WAYS[kind])
    device = _welcomed(small_world, p)
    client_round(_task(p, 1), device)
    first = _state_of(device)
    assert first.memory == {}
    assert first.pending is not None
    client_round(_task(p, 2, counted=1, version=0), device)
    second = _state_of(device)
    assert same_weights(second.memory, first.pending.memory)
    client_round(_task(p, 3, counted=1, version=0), device)  # round 2 was not counted
    third = _state_of(device)
    assert same_weights(third.memory, first.pending.memory)
    assert third.pending is not None
    assert second.pending is not None
    assert not same_weights(third.pending.memory, second.pending.memory)
    client_round(
        _task(p, 4, counted=3, version=0, learning_rate=0.0), device
    )  # the last push settles nothing
    assert same_weights(_memory(device), first.pending.memory)
    client_round(_task(p, 4, counted=3, version=0), device)
    assert same_weights(_memory(device), third.pending.memory)


@ways
def test_a_lost_round_leaves_no_memory(kind: str, small_world: World, small_prepared: Prepared) -> None:
    p = _learning(small_prepared, **WAYS[kind])
    one, other = _welcomed(small_world, p), _welcomed(small_world, p)
    client_round(_task(p, 1), one)
    task = _task(p, 2, version=0)
    assert client_round(task, one) == client_round(task, other)


@pytest.mark.parametrize("counted", [1, 0])
def test_a_task_without_training_takes_the_weights_and_changes_nothing_else(
    counted: int, small_prepared: Prepared, small_world: World, device: Device, store: MemoryStore
) -> None:
    steps, versions, names = _steps(small_prepared, 1)
    first = client_round(_task(small_prepared, 1), device)
    goal: dict[str, Any] = {"steps": steps, "version": 1, "lineage": names[1]}
    answer = trained_of(client_round(_task(small_prepared, 2, counted, learning_rate=0.0, **goal), device))
    assert (answer.weight, answer.payload, answer.loss) == (0, b"", 0.0)
    assert same_weights(_state(store).weights, versions[1])
    other = small_world.device(0, MemoryStore())
    client_round(_welcome(small_prepared), other)
    assert client_round(_task(small_prepared, 1), other) == first
    task = _task(small_prepared, 2, counted, **goal)
    assert client_round(task, device) == client_round(task, other)
    assert same_weights(_state(store).residual, ClientState.load(other.store).residual)


def test_a_round_that_is_run_again_after_the_last_weights_were_pushed_gets_the_same_answer(
    small_prepared: Prepared, device: Device, store: MemoryStore
) -> None:
    """The server pushed them and died before it committed the last round."""
    steps, versions, names = _steps(small_prepared, 1)
    first = client_round(_task(small_prepared, 1), device)
    last = _task(small_prepared, 2, 1, steps=steps, version=1, lineage=names[1], learning_rate=0.0)
    pushed = client_round(last, device)
    assert client_round(_task(small_prepared, 1), device) == first
    assert client_round(last, device) == pushed
    assert same_weights(_state(store).weights, versions[1])


# ----- the global weights


def _steps(prepared: Prepared, count: int) -> tuple[tuple[tuple[Step, ...], ...], list[Any], list[bytes]]:
    """Steps to versions 1, 2, ..., and the weights of each version from 0, and their names."""
    codec, versions, steps = build_codec(prepared.plan.downlink), [prepared.weights], []
    names = [begin(prepared.snapshot)]
    random, shapes = np.random.default_rng(2), prepared.support.shapes()
    for _ in range(count):
        change = {n: random.normal(0, 0.05, s).astype(np.float32) for n, s in shapes.items()}
        step = Step(StepKind.UPDATE, codec.encode(codec.init(shapes), change)[1])
        steps.append((step,))
        versions.append(apply_step(step, versions[-1], prepared.support, codec))
        names.append(follow(names[-1], [step]))
    return tuple(steps), versions, names


def test_a_client_that_lags_gets_the_same_weights(
    small_prepared: Prepared, small_world: World, device: Device, store: MemoryStore
) -> None:
    steps, versions, names = _steps(small_prepared, 3)
    goal: dict[str, Any] = {"lineage": names[3], "version": 3}
    client_round(_task(small_prepared, 4, steps=steps, **goal), device)
    assert same_weights(_state(store).weights, versions[3])
    half = small_world.device(0, MemoryStore())
    client_round(_welcome(small_prepared), half)
    first: dict[str, Any] = {"lineage": names[1], "version": 1}
    client_round(_task(small_prepared, 2, steps=steps[:1], **first), half)
    client_round(_task(small_prepared, 4, steps=steps, **goal), half)  # steps it has are skipped
    assert same_weights(ClientState.load(half.store).weights, versions[3])
    for state in (_state(store), ClientState.load(half.store)):
        assert (state.version, state.lineage) == (3, names[3])


def test_a_snapshot_begins_a_lineage_that_later_steps_extend(
    small_prepared: Prepared, device: Device, store: MemoryStore
) -> None:
    steps, versions, names = _steps(small_prepared, 4)
    support, codec = small_prepared.support, build_codec(small_prepared.plan.downlink)
    snapshot = snapshot_step(versions[3], support, 6)
    mine = begin(snapshot.payload)
    answer = client_round(_task(small_prepared, 4, steps=((snapshot,),), version=3, lineage=mine), device)
    held = apply_step(snapshot, small_prepared.weights, support, codec)
    assert same_weights(_state(store).weights, held)
    assert (_state(store).version, _state(store).lineage) == (3, mine)
    parts = signed_parts(small_prepared.plan.federation, device.id, mine, trained_of(answer))
    verify(device.key.public, trained_of(answer).signature, UPDATE, *parts)
    with pytest.raises(UpdateError, match="do not lead"):  # the others' name of version 4 is not its own
        client_round(_task(small_prepared, 5, steps=steps[3:], version=4, lineage=names[4]), device)
    task = _task(small_prepared, 5, counted=4, steps=steps[3:], version=4, lineage=follow(mine, steps[3]))
    assert trained_of(client_round(task, device)).payload
    assert same_weights(_state(store).weights, apply_step(steps[3][0], held, support, codec))
    assert (_state(store).version, _state(store).lineage) == (4, follow(mine, steps[3]))


def test_a_snapshot_does_not_lose_what_error_feedback_carries(
    small_prepared: Prepared, device: Device, store: MemoryStore
) -> None:
    """The residual is about the client's own changes, not about the weights that it is replaced under."""
    client_round(_task(small_prepared, 1), device)
    pending = _state(store).pending
    assert pending is not None
    snapshot = snapshot_step(small_prepared.weights, small_prepared.support, 6)
    mine: dict[str, Any] = {"lineage": begin(snapshot.payload), "version": 9}
    client_round(_task(small_prepared, 10, counted=1, steps=((snapshot,),), **mine), device)
    assert _flat(_state(store).residual).any()
    assert same_weights(_state(store).residual, pending.residual)


def test_a_snapshot_that_comes_again_is_not_taken_again(
    small_prepared: Prepared, device: Device, store: MemoryStore
) -> None:
    """Its answer was lost, and the server asks for something else on the same version."""
    snapshot = snapshot_step(small_prepared.weights, small_prepared.support, 6)
    goal: dict[str, Any] = {"steps": ((snapshot,),), "version": 3, "lineage": begin(snapshot.payload)}
    client_round(_task(small_prepared, 4, **goal), device)
    before = _state(store)
    client_round(_task(small_prepared, 4, learning_rate=0.0, **goal), device)
    assert same_weights(_state(store).weights, before.weights)
    assert _state(store).lineage == before.lineage


def test_a_wrong_base_is_found_out_and_nothing_is_kept_of_it(
    small_prepared: Prepared, device: Device, store: MemoryStore
) -> None:
    steps, versions, names = _steps(small_prepared, 3)
    snapshot = snapshot_step(versions[3], small_prepared.support, 6)
    before = store.content
    wrong: list[dict[str, Any]] = [
        {"steps": steps[:2], "version": 2, "lineage": names[3]},
        {"steps": steps[1:], "version": 3, "lineage": names[3]},
        {"steps": (), "version": 3, "lineage": names[3]},
        {"steps": (steps[1], steps[0], steps[2]), "version": 3, "lineage": names[3]},
        {"steps": ((snapshot,),), "version": 3, "lineage": names[3]},
        {"steps": steps, "version": 3, "lineage": begin(snapshot.payload)},
        {"steps": (steps[0], steps[1], (*steps[2], snapshot)), "version": 3, "lineage": names[3]},
        {"steps": (), "version": 0, "lineage": names[0][::-1]},
    ]
    for task in wrong:
        with pytest.raises(UpdateError, match="steps do not lead"):
            client_round(_task(small_prepared, 4, **task), device)
        assert store.content == before


def test_a_judge_scores_the_candidate_and_does_not_take_it(
    small_prepared: Prepared, device: Device, store: MemoryStore
) -> None:
    random, shapes = np.random.default_rng(5), small_prepared.support.shapes()
    noise = {n: random.normal(0, 3, s).astype(np.float32) for n, s in shapes.items()}
    bad = Step(StepKind.CHANGE, encode_dense(noise, 8))
    answer = trained_of(client_round(_task(small_prepared, candidate=bad), device))
    assert answer.judged is not None
    assert answer.judged.windows == len(device.data.judge)
    assert answer.judged.loss_candidate > answer.judged.loss_held
    assert same_weights(_state(store).weights, small_prepared.weights)
    zero = Step(StepKind.CHANGE, encode_dense({n: np.zeros(s, np.float32) for n, s in shapes.items()}, 3))
    same = trained_of(client_round(_task(small_prepared, candidate=zero), device)).judged
    assert same is not None
    assert (same.loss_held, same.score_held) == (same.loss_candidate, same.score_candidate)


def test_a_damaged_step_or_candidate_raises_nothing_but_payload_errors(
    small_prepared: Prepared, device: Device, store: MemoryStore
) -> None:
    before = store.content
    for kind in StepKind:
        for payload in (b"", b"\0", b"\xff" * 40):
            with pytest.raises(PayloadError):
                client_round(_task(small_prepared, candidate=Step(kind, payload)), device)
            steps = ((Step(kind, payload),),)
            with pytest.raises(PayloadError):
                client_round(_task(small_prepared, 2, steps=steps, lineage=b"8 bytes!"), device)
    assert store.content == before


# ----- signatures

Change = Callable[[Trained], Trained]

_CONTENT: dict[str, Change] = {
    "round": lambda t: replace(t, round=t.round + 1),
    "weight": lambda t: replace(t, weight=t.weight + 1),
    "loss": lambda t: replace(t, loss=t.loss + 1),
    "score": lambda t: replace(t, score=t.score + 1),
    "judged": lambda t: replace(t, judged=t.judged and replace(t.judged, score_candidate=1.5)),
    "no judge": lambda t: replace(t, judged=None),
    "payload": lambda t: replace(t, payload=t.payload[:-1] + bytes([t.payload[-1] ^ 1])),
}


def test_the_signature_binds_federation_client_base_and_content(
    small_prepared: Prepared, device: Device
) -> None:
    shapes = small_prepared.support.shapes()
    zero = Step(StepKind.CHANGE, encode_dense({n: np.zeros(s, np.float32) for n, s in shapes.items()}, 3))
    answer = trained_of(client_round(_task(small_prepared, candidate=zero), device))
    federation, base = small_prepared.plan.federation, begin(small_prepared.snapshot)

    def check(federation: str, client: str, base: bytes, reply: Trained, public: bytes) -> None:
        verify(public, reply.signature, UPDATE, *signed_parts(federation, client, base, reply))

    mine = device.key.public
    check(federation, device.id, base, answer, mine)
    wrong: dict[str, tuple[Any, ...]] = {
        n: (federation, device.id, base, c(answer), mine) for n, c in _CONTENT.items()
    }
    wrong |= {
        "federation": (federation[:-1] + "x", device.id, base, answer, mine),
        "client": (federation, device.id + "x", base, answer, mine),
        "base": (federation, device.id, base[::-1], answer, mine),
        "key": (federation, device.id, base, answer, SigningKey.generate().public),
        "moved": (federation + device.id[0], device.id[1:], base, answer, mine),
    }
    for name, arguments in wrong.items():
        refused = False
        try:
            check(*arguments)
        except SignatureError:
            refused = True
        assert refused, f"{name} is not bound"


def test_what_the_codec_leaves_out_does_not_depend_on_the_judge(
    small_prepared: Prepared, small_world: World, device: Device
) -> None:
    """Being a judge must not change what a client learns."""
    other = small_world.device(0, MemoryStore())
    client_round(_welcome(small_prepared), other)
    shapes = small_prepared.support.shapes()
    zero = Step(StepKind.CHANGE, encode_dense({n: np.zeros(s, np.float32) for n, s in shapes.items()}, 3))
    judged = trained_of(client_round(_task(small_prepared, candidate=zero), device))
    plain = trained_of(client_round(_task(small_prepared), other))
    assert judged.payload == plain.payload
    assert judged.score == plain.score


def test_a_client_without_windows_to_train_on_answers_all_the_same(
    small_prepared: Prepared, small_world: World
) -> None:
    store = MemoryStore()
    full = small_world.device(0, store)
    nothing = np.zeros(0, np.int64)
    data = replace(full.data, train=full.data.train.take(nothing), judge=full.data.judge.take(nothing))
    empty = replace(full, data=replace(data, later=full.data.later.take(nothing)))
    client_round(_welcome(small_prepared), empty)
    answer = trained_of(client_round(_task(small_prepared), empty))
    assert (answer.weight, answer.payload, answer.judged) == (0, b"", None)
    assert math.isnan(answer.score)  # nothing was scored: 0 would count as a bad score


def test_a_link_and_a_time_make_a_budget() -> None:
    assert link_budget(1000, 10) == 1250
    assert link_budget(SMALLEST_BUDGET * 8, 1) == SMALLEST_BUDGET
    with pytest.raises(ConfigError, match="allow"):
        link_budget(SMALLEST_BUDGET * 8 - 8, 1)
