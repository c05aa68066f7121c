"""Rounds with clients that lie, forge, repeat themselves or stay away: the round completes without them."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federated.build import (
    Fleet,
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
from fedge.errors import FedgeError
from fedge.federated import frames
from fedge.federated.client import UPDATE, client_round, signed_parts
from fedge.federated.client_state import ClientState
from fedge.federated.frames import Hello, Scores, Trained, encode_reply
from fedge.federated.journal import Journal
from fedge.federated.prepare import Prepared
from fedge.federated.server import MOST_WINDOWS, run_round, run_rounds
from fedge.federated.state import FederationState
from fedge.federated.strategy import choose_judges
from fedge.signing import SigningKey
from fedge.simulation.world import World
from fedge.update import weights_hash

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

    def go(rounds: int = 2, fleet: Fleet | None = None, world: World = small_world, **fields: Any) -> Ran:
        fleet = fleet or fleet_of(world)
        for name, value in fields.items():
            setattr(fleet, name, value)
        with Journal(tmp_path / f"journal{next(runs)}") as journal:
            settings = replace(world.config.rounds, rounds=rounds)
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
        parts = signed_parts(prepared.plan.federation, client, base.weights_hash, reply)
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
        "too heavy": (changed(weight=MOST_WINDOWS + 1), "UpdateError"),
        "very heavy": (changed(weight=2**62), "UpdateError"),
        "judged nothing": (changed(judged=Scores(0, 1, 1, 1, 1)), "UpdateError"),
        "judged a lot": (changed(judged=Scores(2**40, 1, 1, 1, 1)), "UpdateError"),
        "another shape": (changed(payload=other_shape), "PayloadError"),
        "cut payload": (
            lambda t, a: sign(t, replace(trained_of(a), payload=trained_of(a).payload[:-5])),
            "PayloadError",
        ),
        "no payload": (changed(payload=b""), "PayloadError"),
        "large payload": (changed(payload=bytes(1 << 20)), "PayloadError"),
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
    assert lied.state.clients == absent.state.clients
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
    keys = "counted", "scores", "loss"
    assert [[r[k] for k in keys] for r in one.records] == [[r[k] for k in keys] for r in other.records]


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


def test_who_was_away_comes_back_with_the_same_weights(run: Run) -> None:
    away = run(4, tamper={BAD: _in_round(2, lambda _t, _a: FedgeError("away"))})
    for device in away.fleet.devices.values():
        assert same_weights(ClientState.load(device.store).weights, away.state.weights)
    assert away.state.clients[BAD].version == 4
    assert [BAD in r["counted"] for r in away.records] == [True, False, True, True]


def test_who_lost_its_state_is_welcomed_again_and_holds_the_same_weights(
    run: Run, small_world: World
) -> None:
    fleet = fleet_of(small_world)

    class Forgets(Fleet):
        def ask(self, tasks: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | FedgeError]]:
            decoded = frames.decode_task(next(iter(tasks.values())))
            if isinstance(decoded, frames.Train) and decoded.round == 2:
                fleet.store(BAD).content = None
            yield from super().ask(tasks)

    ran = run(4, fleet=Forgets(fleet.devices))
    assert [BAD in r["counted"] for r in ran.records] == [True, False, True, True]
    assert ran.records[2]["initial_down"].keys() == {BAD}
    for device in fleet.devices.values():
        assert same_weights(ClientState.load(device.store).weights, ran.state.weights)


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


def test_a_client_round_and_the_server_agree_on_the_hash(run: Run, small_prepared: Prepared) -> None:
    ran = run(1)
    first = frames.decode_task(next(t for t in ran.fleet.tasks["1"] if is_training(t)))
    assert isinstance(first, frames.Train)
    assert first.weights_hash == weights_hash(small_prepared.weights)
    assert client_round(next(t for t in ran.fleet.tasks["1"] if not is_training(t)), ran.fleet.devices["1"])
    assert without_time(ran.records[0])["round"] == 1
