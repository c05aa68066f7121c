"""Rounds with clients that lie, forge, repeat themselves or stay away: the round completes without them."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from federated.build import (
    Fleet,
    MemoryStore,
    Recorder,
    Tamper,
    federation_of,
    fleet_of,
    is_training,
    same_state,
    same_weights,
    trained_of,
    without_time,
)
from fedge.codec import ternary
from fedge.errors import FedgeError, UpdateError
from fedge.federated import frames
from fedge.federated.checks import MOST_WINDOWS, check_trained
from fedge.federated.client import SMALLEST_BUDGET, UPDATE, client_round, signed_parts
from fedge.federated.client_state import ClientState
from fedge.federated.frames import Hello, Scores, StepKind, Train, Trained, encode_reply
from fedge.federated.journal import Journal
from fedge.federated.lineage import begin
from fedge.federated.prepare import Prepared
from fedge.federated.server import run_round, run_rounds
from fedge.federated.state import FederationState
from fedge.federated.strategy import choose_judges
from fedge.signing import SigningKey
from fedge.simulation.world import World

BAD = "3"


@dataclass
class Ran:
    """What a run left behind."""

    state: FederationState
    fleet: Fleet
    watcher: Recorder
    records: list[dict[str, Any]]


Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def run(small_world: World, small_prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run some rounds, with a fleet of its own each time."""
    runs, tmp_path = iter(range(1000)), tmp_path_factory.mktemp("rounds")

    def go(rounds: int = 2, fleet: Fleet | None = None, fraction: float = 1.0, **fields: Any) -> Ran:
        world = small_world
        fleet = fleet or fleet_of(world)
        for name, value in fields.items():
            setattr(fleet, name, value)
        with Journal(tmp_path / f"journal{next(runs)}") as journal:
            settings = replace(world.config.rounds, rounds=rounds, fraction=fraction)
            redistil = replace(world.config.redistill, mode="none")
            federation, watcher = federation_of(
                world, small_prepared, fleet, journal, rounds=settings, redistill=redistil
            )
            return Ran(run_rounds(federation), fleet, watcher, journal.rounds())

    return go


def _resigned(world: World, prepared: Prepared, client: str = BAD, signer: str | None = None) -> Any:
    """``(base, reply) -> frame`` with a sound signature over whatever it says."""
    key = world.key(signer or client)

    def sign(task: bytes, reply: Trained) -> bytes:
        base = frames.decode_task(task)
        assert isinstance(base, frames.Train)
        parts = signed_parts(prepared.plan.federation, client, base.lineage, reply)
        return encode_reply(replace(reply, signature=key.sign(UPDATE, *parts)))

    return sign


def _hostile(world: World, prepared: Prepared) -> dict[str, tuple[Tamper, str]]:
    """What a client may send instead of its answer, and what the refusal says."""
    sign = _resigned(world, prepared)
    shapes = prepared.support.shapes()
    codec = ternary.build(ternary.Settings(share=0.1))
    small = codec.init({"a": (5,)})
    other_shape = codec.encode(small, {"a": np.ones(5, np.float32)})[1]
    assert other_shape
    assert shapes

    def changed(**fields: Any) -> Tamper:
        return lambda task, answer: sign(task, replace(trained_of(answer), **fields))

    return {
        "garbage": (lambda _t, _a: b"\x02garbage", "PayloadError"),
        "nothing": (lambda _t, _a: b"", "PayloadError"),
        "cut off": (lambda _t, a: a[:-1], "PayloadError"),
        "longer": (lambda _t, a: a + b"\0", "PayloadError"),
        "another kind": (lambda _t, _a: encode_reply(Hello(b"k" * 32, b"s" * 64)), "UpdateError"),
        "another round": (
            lambda t, a: sign(t, replace(trained_of(a), round=trained_of(a).round + 1)),
            "UpdateError",
        ),
        "no signature": (lambda _t, a: encode_reply(replace(trained_of(a), signature=b"")), "SignatureError"),
        "forged": (lambda _t, a: encode_reply(replace(trained_of(a), score=1.0)), "SignatureError"),
        "somebody else's": (
            lambda t, a: _resigned(world, prepared, signer="1")(t, trained_of(a)),
            "SignatureError",
        ),
        "NaN": (changed(loss=math.nan), "PayloadError"),
        "infinite score": (changed(score=math.inf), "PayloadError"),
        "better than perfect": (changed(score=1.01), "UnsoundError"),
        "worse than nothing": (changed(score=-0.01), "UnsoundError"),
        "judged beyond": (changed(judged=Scores(9, 1, 0.5, 1, 1.5)), "UnsoundError"),
        "too heavy": (changed(weight=MOST_WINDOWS + 1), "UnsoundError"),
        "very heavy": (changed(weight=2**62), "UnsoundError"),
        "judged nothing": (changed(judged=Scores(0, 1, 1, 1, 1)), "UnsoundError"),
        "judged a lot": (changed(judged=Scores(2**40, 1, 1, 1, 1)), "UnsoundError"),
        "another shape": (changed(payload=other_shape), "UnsoundError"),
        "cut payload": (
            lambda t, a: sign(t, replace(trained_of(a), payload=trained_of(a).payload[:-5])),
            "UnsoundError",
        ),
        "no payload": (changed(payload=b""), "UnsoundError"),
        "large payload": (changed(payload=bytes(1 << 20)), "UnsoundError"),
        "silence": (lambda _t, _a: FedgeError("there is nobody"), "failed"),
    }


NAMES = [
    "garbage",
    "nothing",
    "cut off",
    "longer",
    "another kind",
    "another round",
    "no signature",
    "forged",
    "somebody else's",
    "NaN",
    "infinite score",
    "better than perfect",
    "worse than nothing",
    "judged beyond",
    "too heavy",
    "very heavy",
    "judged nothing",
    "judged a lot",
    "another shape",
    "cut payload",
    "no payload",
    "large payload",
    "silence",
]


@pytest.fixture(scope="module")
def hostile(small_world: World, small_prepared: Prepared) -> dict[str, tuple[Tamper, str]]:
    return _hostile(small_world, small_prepared)


def _in_round(number: int, tamper: Tamper) -> Tamper:
    """Tamper with the answer to one round's task only."""

    def maybe(task: bytes, answer: bytes) -> bytes | FedgeError:
        decoded = frames.decode_task(task)
        mine = isinstance(decoded, frames.Train) and decoded.round == number
        return tamper(task, answer) if mine else answer

    return maybe


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_answer_is_refused_and_the_round_is_as_if_it_had_not_come(
    name: str,
    hostile: dict[str, tuple[Tamper, str]],
    run: Run,
    absent: Ran,
) -> None:
    tamper, kind = hostile[name]
    lied = run(tamper={BAD: _in_round(2, tamper)})
    (refusal,) = lied.watcher.of("refused")
    assert (refusal["client"], refusal["round"], refusal["kind"]) == (BAD, 2, kind)
    assert refusal["reason"]
    assert lied.records[1]["refused"] == [BAD]
    assert lied.records[1]["counted"] == sorted(set(lied.fleet.devices) - {BAD})
    assert same_weights(lied.state.weights, absent.state.weights)
    assert {c: replace(r, offences=0) for c, r in lied.state.clients.items()} == absent.state.clients
    assert lied.records[1]["loss"] == absent.records[1]["loss"]


@pytest.fixture(scope="module")
def absent(run: Run) -> Ran:
    """The run in which the client does not answer in round 2."""
    return run(tamper={BAD: _in_round(2, lambda _t, _a: FedgeError("there is nobody"))})


def test_every_name_is_tried(hostile: dict[str, tuple[Tamper, str]]) -> None:
    assert list(hostile) == NAMES


def test_last_rounds_answer_does_not_count_again(run: Run, absent: Ran) -> None:
    answers: list[bytes] = []

    def replay(_task: bytes, answer: bytes) -> bytes:
        answers.append(answer)
        return answers[0] if is_training(_task) and len(answers) > 1 else answer

    def only_training(task: bytes, answer: bytes) -> bytes:
        return replay(task, answer) if is_training(task) and trained_of(answer).weight else answer

    lied = run(tamper={BAD: only_training})
    assert len(answers) == 2
    assert [r["kind"] for r in lied.watcher.of("refused")] == ["UpdateError"]
    assert same_weights(lied.state.weights, absent.state.weights)


def test_an_answer_that_comes_twice_counts_once(run: Run, small_world: World) -> None:
    class Stutters(Fleet):
        def ask(self, tasks: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | FedgeError]]:
            for client, answer in super().ask(tasks):
                yield client, answer
                yield client, answer

    plain, twice = run(), run(fleet=Stutters(fleet_of(small_world).devices))
    assert same_state(plain.state, twice.state)
    assert plain.records[0]["up"] == twice.records[0]["up"]


def test_an_answer_of_somebody_who_was_not_asked_is_ignored(run: Run, small_world: World) -> None:
    class Crowd(Fleet):
        def ask(self, tasks: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | FedgeError]]:
            yield "nobody", b"\2"
            yield from super().ask(tasks)

    assert same_state(run().state, run(fleet=Crowd(fleet_of(small_world).devices)).state)


def test_the_order_of_arrival_changes_nothing(run: Run) -> None:
    one, other = run(), run(backwards=True)
    assert same_state(one.state, other.state)
    said = [[json.dumps(without_time(r)) for r in each.records] for each in (one, other)]
    assert said[0] == said[1]  # to the last bit of a mean, and to the order of the names


def test_an_enrolled_client_that_shouts_cannot_stop_the_federation(
    run: Run, small_world: World, small_prepared: Prepared
) -> None:
    """The largest change that a payload may hold, with the largest weight, round after round."""
    codec, shapes = ternary.build(ternary.Settings(share=1.0)), small_prepared.support.shapes()
    loud = {n: np.full(s, 999.0, np.float32) for n, s in shapes.items()}
    payload = codec.encode(codec.init(shapes), loud)[1]
    sign = _resigned(small_world, small_prepared)

    def shout(task: bytes, answer: bytes) -> bytes:
        if not is_training(task) or not trained_of(answer).weight:
            return answer
        return bytes(sign(task, replace(trained_of(answer), payload=payload, weight=MOST_WINDOWS)))

    shouted = run(4, tamper={BAD: shout})
    assert len(shouted.records) == 4
    assert all(np.isfinite(w).all() for w in shouted.state.weights.values())


def test_a_forged_hello_gets_no_further(run: Run) -> None:
    """Who cannot prove who it is never counts, though its later answers are sound."""

    def forge(task: bytes, answer: bytes) -> bytes:
        if is_training(task):
            return answer
        return encode_reply(Hello(SigningKey.generate().public, b"s" * 64))

    lied = run(tamper={BAD: forge})
    kinds = {(r["client"], r["kind"]) for r in lied.watcher.of("refused")}
    assert (BAD, "SignatureError") in kinds


def _trains(fleet: Fleet, client: str) -> list[Train]:
    """The training tasks of a client, in order."""
    tasks = [frames.decode_task(t) for t in fleet.tasks[client]]
    return [t for t in tasks if isinstance(t, Train)]


def _kinds(task: Train) -> set[StepKind]:
    return {s.kind for group in task.steps for s in group}


def _check_records(ran: Ran) -> None:
    """The server's word for what each client holds is the client's own."""
    for client, record in ran.state.clients.items():
        held = ClientState.load(ran.fleet.store(client))
        assert (held.version, held.lineage) == (record.version, record.lineage), client


def _distance(ran: Ran, client: str) -> float:
    """Largest difference between what a client holds and the global weights."""
    held = ClientState.load(ran.fleet.store(client)).weights
    return max(float(np.abs(held[n] - w).max()) for n, w in ran.state.weights.items())


COARSE = 0.1
"""More than half a step of a 6-bit snapshot of the small student, less than its weights."""


def test_who_was_away_for_a_round_comes_back_with_the_same_weights(run: Run) -> None:
    away = run(4, tamper={BAD: _in_round(2, lambda _t, _a: FedgeError("away"))})
    for device in away.fleet.devices.values():
        assert same_weights(ClientState.load(device.store).weights, away.state.weights)
    assert away.state.clients[BAD].version == 4
    assert [BAD in r["counted"] for r in away.records] == [True, False, True, True]
    _check_records(away)


class _Withholds(Fleet):
    """One client is not there in some rounds: its tasks do not even reach it."""

    def without(self, client: str, rounds: range) -> "_Withholds":
        self.client, self.rounds = client, rounds
        return self

    def _answer(self, client: str, frame: bytes) -> bytes | FedgeError:
        task = frames.decode_task(frame)
        if client == self.client and isinstance(task, Train) and task.round in self.rounds:
            return FedgeError("nobody is there")
        return super()._answer(client, frame)


def test_who_was_away_for_long_goes_on_from_a_snapshot_and_counts_again(run: Run, small_world: World) -> None:
    fleet = _Withholds(fleet_of(small_world).devices).without(BAD, range(2, 14))
    ran = run(17, fleet=fleet)
    tasks = {t.round: t for t in _trains(fleet, BAD)}
    assert _kinds(tasks[14]) == {StepKind.SNAPSHOT}
    assert [_kinds(tasks[n]) for n in (15, 16, 17, 18)] == [{StepKind.UPDATE}] * 4
    counted = [r["round"] for r in ran.records if BAD in r["counted"]]
    assert counted == [1, 14, 15, 16, 17]
    assert [r["initial_down"].keys() for r in ran.records[1:]] == [set()] * 16  # nobody is welcomed again
    _check_records(ran)
    names = {c: r.lineage for c, r in ran.state.clients.items()}
    assert len(set(names.values())) == 2
    assert [c for c in names if names[c] != names["1"]] == [BAD]
    for client in set(names) - {BAD}:
        assert same_weights(ClientState.load(fleet.store(client)).weights, ran.state.weights)
    assert 0 < _distance(ran, BAD) < COARSE
    # what it learned on its own lineage moved the global weights, as the update of anyone else does
    silent = _Withholds(fleet_of(small_world).devices).without(BAD, range(2, 18))
    assert not same_weights(ran.state.weights, run(17, fleet=silent).state.weights)


def test_what_missed_rounds_cost_is_bounded_by_the_snapshot(run: Run, small_world: World) -> None:
    """However long it was away, and while it was away: a task that may never arrive is not made longer."""
    fleet = _Withholds(fleet_of(small_world).devices).without(BAD, range(2, 20))
    ran = run(19, fleet=fleet)
    sizes = [r["down"][BAD] for r in ran.records]
    kinds = [_kinds(t) for t in _trains(fleet, BAD)]
    first = kinds.index({StepKind.SNAPSHOT})
    assert all(k == {StepKind.SNAPSHOT} for k in kinds[first:])
    assert sizes[:first] == sorted(sizes[:first])
    assert max(sizes[first:-1]) - min(sizes[first:-1]) < 0.05 * max(sizes)
    assert sizes[first] < sizes[first - 1] + sizes[1]


def test_with_few_in_each_round_everyone_follows_and_every_answer_counts(run: Run) -> None:
    """Most have missed something when their turn comes; some come by steps and some by a snapshot."""
    ran = run(16, fraction=0.34)
    kinds = [_kinds(t) for c in ran.fleet.devices for t in _trains(ran.fleet, c)]
    assert {StepKind.UPDATE} in kinds
    assert {StepKind.SNAPSHOT} in kinds
    for record in ran.records:
        assert len(record["counted"]) == record["participants"] == 2
        assert record["refused"] == []
    assert ran.watcher.of("refused") == []
    _check_records(ran)
    assert {r.version for r in ran.state.clients.values()} == {16}
    assert len({r.lineage for r in ran.state.clients.values()}) > 1
    assert max(_distance(ran, c) for c in ran.fleet.devices) < COARSE


class _Dies(Journal):
    """The server dies before it commits one of these rounds, once for each."""

    dies: list[int]

    def commit_round(self, number: int, record: Mapping[str, Any], state: bytes) -> None:
        if number in self.dies:
            self.dies.remove(number)
            raise KeyboardInterrupt
        super().commit_round(number, record, state)


def test_rounds_with_few_clients_are_the_same_after_crashes(
    small_world: World, small_prepared: Prepared, tmp_path: Path
) -> None:
    """A snapshot that was taken but whose round was not committed is made again with the same bytes."""
    finals, fleets = [], []
    for name, dies in (("whole", []), ("crashed", [5, 9, 9, 11, 14])):
        fleets.append(fleet_of(small_world))
        with _Dies(tmp_path / name) as journal:
            journal.dies = list(dies)
            settings = replace(small_world.config.rounds, rounds=14, fraction=0.34)
            redistil = replace(small_world.config.redistill, mode="none")
            federation, watcher = federation_of(
                small_world, small_prepared, fleets[-1], journal, rounds=settings, redistill=redistil
            )
            for _ in dies:
                with pytest.raises(KeyboardInterrupt):
                    run_rounds(federation)
            finals.append(run_rounds(federation))
            assert watcher.of("refused") == []
    assert same_state(*finals)
    kinds = [k for c in fleets[1].devices for k in map(_kinds, _trains(fleets[1], c))]
    assert kinds.count({StepKind.SNAPSHOT}) > 5
    for client in fleets[0].devices:
        one, other = (ClientState.load(f.store(client)) for f in fleets)
        assert same_weights(one.weights, other.weights)
        assert same_weights(one.residual, other.residual)


class _Swaps(Fleet):
    """Before its task of one round, a client's disk becomes that of an earlier day, or of another client."""

    def at(self, number: int, client: str, content: Callable[[int], bytes | None]) -> "_Swaps":
        self.number, self.client, self.content = number, client, content
        return self

    def _answer(self, client: str, frame: bytes) -> bytes | FedgeError:
        task = frames.decode_task(frame)
        if client == self.client and isinstance(task, Train):
            found = self.content(task.round)
            if task.round == self.number:
                self.store(client).content = found
        return super()._answer(client, frame)


def _found_out(ran: Ran, number: int) -> None:
    """Refused in this round as one that cannot follow, welcomed in the next, and counted again."""
    refused = [(r["client"], r["round"], r["kind"]) for r in ran.watcher.of("refused")]
    assert refused == [(BAD, number, "UpdateError")]
    assert [n for n, r in enumerate(ran.records, 1) if BAD not in r["counted"]] == [number]
    welcomed = [n for n, r in enumerate(ran.records, 1) if BAD in r["initial_down"]]
    assert welcomed == [1, number + 1]
    _check_records(ran)


def test_who_lost_its_state_is_welcomed_again_and_led_on(run: Run, small_world: World) -> None:
    fleet = _Swaps(fleet_of(small_world).devices).at(2, BAD, lambda _n: None)
    ran = run(4, fleet=fleet)
    _found_out(ran, 2)
    for device in fleet.devices.values():
        assert same_weights(ClientState.load(device.store).weights, ran.state.weights)


@pytest.mark.parametrize("damage", [b"", b"not a state", b"half"])
def test_who_finds_its_disk_damaged_is_welcomed_again(damage: bytes, run: Run, small_world: World) -> None:
    fleet = _Swaps(fleet_of(small_world).devices)

    def damaged(_number: int) -> bytes:
        content = fleet.store(BAD).content or b""
        return content[: len(content) // 2] if damage == b"half" else damage

    _found_out(run(4, fleet=fleet.at(2, BAD, damaged)), 2)


def test_a_client_restored_from_an_old_backup_is_found_out(run: Run, small_world: World) -> None:
    """It says nothing of its version: the steps it is sent do not lead on from what it holds."""
    fleet, backups = _Swaps(fleet_of(small_world).devices), dict[int, bytes | None]()

    def old(number: int) -> bytes | None:
        backups[number] = fleet.store(BAD).content
        return backups.get(2)

    ran = run(8, fleet=fleet.at(5, BAD, old))
    _found_out(ran, 5)
    assert same_weights(ClientState.load(fleet.store("1")).weights, ran.state.weights)


def test_a_client_on_another_lineage_than_its_record_says_is_found_out(run: Run, small_world: World) -> None:
    """The same version under another name: its weights are not those that its update would be added to."""
    fleet = _Swaps(fleet_of(small_world).devices)

    def another(_number: int) -> bytes:
        held = ClientState.load(fleet.store(BAD))
        moved = {n: w + np.float32(1e-3) * (w != 0) for n, w in held.weights.items()}
        copy = MemoryStore()
        replace(held, weights=moved, lineage=begin(b"another")).save(copy)
        return copy.content or b""

    _found_out(run(6, fleet=fleet.at(3, BAD, another)), 3)


def test_who_says_that_it_cannot_follow_after_a_snapshot_is_welcomed_again(
    run: Run, small_world: World
) -> None:
    class Loses(_Withholds):
        def _answer(self, client: str, frame: bytes) -> bytes | FedgeError:
            task = frames.decode_task(frame)
            if client == self.client and isinstance(task, Train) and task.round == 14:
                return UpdateError("this client holds no state")
            return super()._answer(client, frame)

    ran = run(17, fleet=Loses(fleet_of(small_world).devices).without(BAD, range(2, 13)))
    assert [r["round"] for r in ran.records if BAD in r["counted"]] == [1, 13, 15, 16, 17]
    assert [r["round"] for r in ran.records if BAD in r["initial_down"]] == [1, 15]
    _check_records(ran)


@pytest.mark.parametrize("claimed", ["nothing", "made up", "version 0"])
def test_a_client_that_signs_for_another_base_is_not_counted(
    claimed: str, run: Run, absent: Ran, small_world: World, small_prepared: Prepared
) -> None:
    """An update is signed with the name of what it was made on; under another name it is worth nothing."""
    names = {"made up": b"8 bytes!", "version 0": begin(small_prepared.snapshot), "nothing": begin(b"")}

    def claim(_task: bytes, answer: bytes) -> bytes:
        reply = trained_of(answer)
        parts = signed_parts(small_prepared.plan.federation, BAD, names[claimed], reply)
        return encode_reply(replace(reply, signature=small_world.key(BAD).sign(UPDATE, *parts)))

    lied = run(tamper={BAD: _in_round(2, claim)})
    assert [(r["client"], r["kind"]) for r in lied.watcher.of("refused")] == [(BAD, "SignatureError")]
    assert same_weights(lied.state.weights, absent.state.weights)


# ----- budgets


def test_clients_with_different_budgets_take_part_in_the_same_round(run: Run, small_world: World) -> None:
    fleet = fleet_of(small_world)
    budgets = dict(zip(sorted(fleet.devices), (None, SMALLEST_BUDGET, 200, 250, None, 300), strict=True))
    fleet.devices = {c: replace(d, uplink_budget=budgets[c]) for c, d in fleet.devices.items()}
    sizes: dict[str, list[int]] = {}

    def weigh(client: str) -> Tamper:
        def note(_task: bytes, answer: bytes) -> bytes:
            sizes.setdefault(client, []).append(len(answer))
            return answer

        return note

    fleet.tamper = {c: weigh(c) for c in fleet.devices}
    ran = run(5, fleet=fleet)
    assert [r["counted"] for r in ran.records] == [sorted(budgets)] * 5
    for client, budget in budgets.items():
        assert len(sizes[client]) == 7  # a welcome, five rounds, the last weights
        assert max(sizes[client]) <= (budget or 1 << 20)
        if budget:
            assert max(sizes[client]) > 0.6 * budget  # and it is used
    assert max(sizes[next(c for c, b in budgets.items() if b is None)]) > 250
    assert not same_weights(ran.state.weights, run(5).state.weights)
    _check_records(ran)


def test_a_fleet_of_the_smallest_budgets_learns_all_the_same(run: Run, small_world: World) -> None:
    fleet = fleet_of(small_world)
    fleet.devices = {c: replace(d, uplink_budget=SMALLEST_BUDGET) for c, d in fleet.devices.items()}
    ran = run(6, fleet=fleet)
    assert all(len(r["counted"]) == len(fleet.devices) for r in ran.records)
    losses = [r["loss"] for r in ran.records]
    assert losses[-1] < losses[0]
    assert max(fleet.received) <= SMALLEST_BUDGET


def test_every_byte_is_counted(run: Run) -> None:
    ran = run(2)
    both = [sum(sum(r[k].values()) for r in ran.records) for k in ("down", "initial_down")]
    assert sum(both) == sum(ran.fleet.sent)
    assert sum(sum(r[k].values()) for r in ran.records for k in ("up", "initial_up")) == sum(
        ran.fleet.received
    )


def test_nobody_answers_and_the_run_completes(run: Run, small_world: World) -> None:
    ran = run(2, absent=set(small_world.roles.participants))
    assert [r["counted"] for r in ran.records] == [[], []]
    assert same_weights(ran.state.weights, run(1, absent=set(small_world.roles.participants)).state.weights)


def test_a_round_that_is_run_again_after_a_crash_is_the_same_round(
    small_world: World, small_prepared: Prepared, tmp_path: Path, run: Run
) -> None:
    """The server dies before the commit: clients give the same answers, nothing is counted twice."""
    fleet = fleet_of(small_world)
    with Journal(tmp_path / "crashed") as journal:
        settings = replace(small_world.config.rounds, rounds=3)
        redistil = replace(small_world.config.redistill, mode="none")
        federation, _ = federation_of(
            small_world, small_prepared, fleet, journal, rounds=settings, redistill=redistil
        )
        begun = run_rounds(
            replace(federation, config=replace(federation.config, rounds=replace(settings, rounds=1)))
        )
        journal_down = replace(federation, journal=_Forgetful())
        run_round(begun, journal_down)
        final = run_rounds(federation)
        records = journal.rounds()
    assert same_weights(final.weights, run(3).state.weights)
    assert [r["counted"] for r in records] == [sorted(small_world.roles.participants)] * 3


class _Forgetful(Journal):
    """A journal whose process dies before anything is written."""

    def __init__(self) -> None:
        """No file."""

    def commit_round(self, number: int, record: Mapping[str, Any], state: bytes) -> None:
        """Too late."""


def test_another_seed_of_local_training_gives_other_weights(run: Run, small_world: World) -> None:
    fleet = fleet_of(small_world)
    fleet.devices = {c: replace(d, seed=d.seed + 1) for c, d in fleet.devices.items()}
    assert not same_weights(run().state.weights, run(fleet=fleet).state.weights)


def test_a_judge_cannot_claim_impossible_scores(
    small_world: World, small_prepared: Prepared, tmp_path: Path
) -> None:
    """A score is a share: a judge that reports a million must not decide alone."""
    fleet = fleet_of(small_world)
    judges = choose_judges(small_world.config, 3, small_world.roles.participants)
    liar = min(judges)
    sign = _resigned(small_world, small_prepared, client=liar)

    def boast(task: bytes, answer: bytes) -> bytes:
        if not is_training(task) or trained_of(answer).judged is None:
            return answer
        claim = Scores(MOST_WINDOWS, 1e30, -1e30, 0.0, 1e30)
        return bytes(sign(task, replace(trained_of(answer), judged=claim)))

    fleet.tamper = {liar: boast}
    with Journal(tmp_path / "journal") as journal:
        federation, watcher = federation_of(small_world, small_prepared, fleet, journal)
        run_rounds(federation)
    assert [(r["client"], r["round"]) for r in watcher.of("refused")] == [(liar, 3)]


def test_a_score_that_is_not_defined_is_no_lie_and_is_null_in_the_record(
    run: Run, small_world: World, small_prepared: Prepared
) -> None:
    sign = _resigned(small_world, small_prepared)

    def undefined(task: bytes, answer: bytes) -> bytes:
        return bytes(sign(task, replace(trained_of(answer), score=math.nan)))

    ran = run(1, tamper={BAD: _in_round(1, undefined)})
    assert ran.watcher.of("refused") == []
    assert ran.records[0]["own_scores"][BAD] is None
    assert BAD in ran.records[0]["counted"]


@pytest.mark.parametrize(
    ("metric", "score", "taken"),
    [
        ("negative_rmse", -1e30, True),
        ("negative_rmse", 0.0, True),
        ("negative_rmse", 0.001, False),
        ("auroc", 1.0, True),
        ("auroc", 1.001, False),
        ("auroc", -0.001, False),
    ],
)
def test_what_a_client_may_claim_follows_from_the_metric(
    metric: str, score: float, taken: bool, run: Run, small_world: World, small_prepared: Prepared
) -> None:
    """The clients score accuracy here; only what the server takes is asked."""
    ran = run(1)
    task = next(t for t in ran.fleet.tasks[BAD] if is_training(t))
    honest = trained_of(client_round(task, ran.fleet.devices[BAD]))
    answer = _resigned(small_world, small_prepared)(task, replace(honest, score=score))
    federation: Any = SimpleNamespace(
        task=SimpleNamespace(metric=metric),
        prepared=small_prepared,
        enrolled={BAD: small_world.key(BAD).public},
    )
    decoded = frames.decode_task(task)
    assert isinstance(decoded, Train)
    with nullcontext() if taken else pytest.raises(UpdateError, match="not within"):
        check_trained(BAD, answer, decoded, federation)


def test_a_client_round_and_the_server_agree_on_the_name_of_the_weights(
    run: Run, small_prepared: Prepared
) -> None:
    ran = run(1)
    first = frames.decode_task(next(t for t in ran.fleet.tasks["1"] if is_training(t)))
    assert isinstance(first, frames.Train)
    assert first.lineage == begin(small_prepared.snapshot)
    assert client_round(next(t for t in ran.fleet.tasks["1"] if not is_training(t)), ran.fleet.devices["1"])
    assert without_time(ran.records[0])["round"] == 1
