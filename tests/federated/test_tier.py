"""Three tiers: what an edge server hands up and down, whatever dies, lies or stays away on either side."""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedge.errors import FedgeError, PayloadError, SetupError, UpdateError
from fedge.federated.checks import MOST_WINDOWS, check_trained, sound_change
from fedge.federated.client import UPDATE, signed_parts
from fedge.federated.client_state import ClientState
from fedge.federated.coding import Weights, build_codec, encode_dense, limits
from fedge.federated.consider import BROKEN
from fedge.federated.federation import NotYetError
from fedge.federated.frames import (
    Offer,
    Scores,
    Step,
    StepKind,
    Train,
    Verdict,
    Welcome,
    encode_reply,
    encode_task,
)
from fedge.federated.journal import Journal
from fedge.federated.lineage import begin, follow
from fedge.federated.prepare import Prepared
from fedge.federated.server import run_rounds
from fedge.federated.state import FederationState
from fedge.federated.strategy import discounted
from fedge.federated.tier import EdgeServer
from fedge.federated.tier_state import EdgeState
from fedge.federated.tier_sums import NOBODY, judged, owed, together, with_owed
from fedge.simulation.world import World
from fedge.update import Update

from .build import Tamper, federation_of, fleet_of, is_training, same_weights, trained_of
from .edges import Edge, Edges, above, edge_of, lossless, replied, round_of

NAMES = ("edge-1", "edge-2")
CHALLENGE = b"c" * 16

Make = Callable[..., Edge]


@pytest.fixture
def make(small_world: World, tmp_path: Path) -> Iterator[Make]:
    """An edge server above some participants; ``rounds`` are settings of its own rounds."""
    with ExitStack() as stack:

        def go(
            name: str = "edge-1", part: slice = slice(0, 3), kind: type[Journal] = Journal, **rounds: Any
        ) -> Edge:
            clients = list(small_world.roles.participants[part])
            journal = stack.enter_context(kind(tmp_path / f"{name}.sqlite"))
            return edge_of(small_world, clients, journal, tmp_path, name, **rounds)

        yield go


@pytest.fixture
def two(make: Make) -> Edges:
    """Two edge servers, three clients each."""
    return Edges({name: make(name, slice(3 * i, 3 * i + 3)) for i, name in enumerate(NAMES)})


@pytest.fixture
def three_tiers(small_world: World, small_prepared: Prepared, two: Edges, tmp_path: Path) -> Any:
    """Run the parent's rounds; ``(state, records, watcher)``."""

    def go(
        rounds: int, prepared: Prepared = small_prepared, folder: Path | None = None, **config: Any
    ) -> Any:
        config = {"redistill": replace(small_world.config.redistill, mode="none"), **config}
        settings = replace(small_world.config.rounds, rounds=rounds, max_weight=MOST_WINDOWS)
        with Journal(tmp_path / "parent.sqlite") as journal:
            federation, watcher = above(
                small_world, prepared, two, journal, folder, rounds=settings, **config
            )
            return run_rounds(federation), journal.rounds(), watcher

    return go


def welcome(edge: Edge, prepared: Prepared) -> None:
    """What the parent says first."""
    edge.server(encode_task(Welcome(CHALLENGE, prepared.plan.to_dict(), prepared.snapshot)))


def first_task(prepared: Prepared, number: int = 1, rate: float = 0.05, **fields: Any) -> bytes:
    """A round on the student as first sent."""
    task = Train(number, 0, number - 1, begin(prepared.snapshot), (), rate)
    return encode_task(replace(task, **fields))


def change_of(answer: bytes, prepared: Prepared) -> Weights:
    """The change in an answer."""
    uplink = build_codec(prepared.plan.uplink)
    return uplink.decode(trained_of(answer).payload, limits(prepared.support.shapes()))


def naive_mean(changes: list[tuple[Weights, int]]) -> dict[str, Any]:
    """The weighted mean in double precision."""
    total = sum(weight for _, weight in changes)
    names = changes[0][0]
    return {n: sum(c[n].astype(np.float64) * w for c, w in changes) / total for n in names}


def largest_difference(a: Weights, b: Weights) -> float:
    return max(float(np.abs(a[n].astype(np.float64) - b[n]).max(initial=0.0)) for n in b)


def heard(edge: Edge) -> dict[str, list[bytes]]:
    """Keep what its clients answer to rounds of training, from now on."""
    kept: dict[str, list[bytes]] = {c: [] for c in edge.fleet.devices}

    def keep(client: str) -> Callable[[bytes, bytes], bytes]:
        def kept_as_it_is(task: bytes, answer: bytes) -> bytes:
            if is_training(task):
                kept[client].append(answer)
            return answer

        return kept_as_it_is

    edge.fleet.tamper = {c: keep(c) for c in kept}
    return kept


def resigned(world: World, prepared: Prepared, client: str, **fields: Any) -> Callable[[bytes, bytes], bytes]:
    """The client says something else in its answers to rounds of training, under its own signature."""

    def lie(task: bytes, answer: bytes) -> bytes:
        if not is_training(task) or not trained_of(answer).weight:
            return answer
        reply = replace(trained_of(answer), **fields)
        parts = signed_parts(prepared.plan.federation, client, round_of(task).lineage, reply)
        return encode_reply(replace(reply, signature=world.key(client).sign(UPDATE, *parts)))

    return lie


def check_records(edges: Edges, state: FederationState) -> None:
    """Every server's word for what each one below it holds is that one's own."""
    for name, edge in edges.edges.items():
        own, record = edge.state.above, state.clients[name]
        assert (own.version, own.lineage) == (record.version, record.lineage), name
        for client, known in edge.state.below.clients.items():
            held = ClientState.load(edge.fleet.store(client))
            assert (held.version, held.lineage) == (known.version, known.lineage), client


# ----- three tiers are two


@pytest.mark.parametrize(("rounds", "bound"), [(1, 2.0**-23), (3, 2e-5)])
def test_three_tiers_and_two_give_the_same_global_weights(
    rounds: int,
    bound: float,
    small_world: World,
    small_prepared: Prepared,
    three_tiers: Any,
    two: Edges,
    tmp_path: Path,
) -> None:
    """With nothing lost on the way, what differs is rounding: an edge server's mean is in float32.

    After one round: half a unit in the last place of the means, and of the weights that they are added to.
    Later rounds train on weights that differ by that, so the bound for them is not so tight.
    """
    prepared, config = lossless(small_prepared), small_world.config
    with Journal(tmp_path / "flat.sqlite") as journal:
        federation, _ = federation_of(
            small_world,
            prepared,
            fleet_of(small_world),
            journal,
            rounds=replace(config.rounds, rounds=rounds),
            redistill=replace(config.redistill, mode="none"),
        )
        flat = run_rounds(federation)
    state, records, _ = three_tiers(rounds, prepared)
    largest = max(float(np.abs(w).max()) for w in flat.weights.values())
    assert largest_difference(state.weights, flat.weights) <= bound * max(1.0, largest)
    assert largest_difference(state.weights, prepared.weights) > 100 * bound
    assert [r["counted"] for r in records] == [list(NAMES)] * rounds
    check_records(two, state)


def test_every_client_holds_the_parents_weights_bit_for_bit(three_tiers: Any, two: Edges) -> None:
    state, _, _ = three_tiers(3)
    assert {r.version for r in state.clients.values()} == {3}
    for edge in two.edges.values():
        assert same_weights(edge.state.above.weights, state.weights)
        for client in edge.fleet.devices:
            held = ClientState.load(edge.fleet.store(client))
            assert held.lineage == state.clients[edge.name].lineage
            assert same_weights(held.weights, state.weights)
    check_records(two, state)


def test_who_missed_a_round_on_either_hop_walks_the_parents_own_steps(three_tiers: Any, two: Edges) -> None:
    away = two.edges["edge-1"]
    client = next(iter(away.fleet.devices))
    away.fleet.tamper[client] = lambda task, answer: (
        FedgeError("away") if is_training(task) and round_of(task).round == 2 else answer
    )
    two.away = {("edge-2", 3)}
    state, records, _ = three_tiers(4)
    assert [r["counted"] for r in records] == [list(NAMES), list(NAMES), ["edge-1"], list(NAMES)]
    for edge in two.edges.values():
        for each in edge.fleet.devices:
            assert same_weights(ClientState.load(edge.fleet.store(each)).weights, state.weights), each
    check_records(two, state)


def test_a_snapshot_for_an_edge_server_is_handed_on_to_its_clients_as_it_came(
    three_tiers: Any, two: Edges
) -> None:
    """An edge server that was away for long gets quantized weights; its clients then hold the very same ones,
    those too that missed more than it did."""
    two.away = {("edge-2", number) for number in range(3, 14)}
    edge = two.edges["edge-2"]
    client = next(iter(edge.fleet.devices))
    edge.fleet.tamper[client] = lambda task, answer: (
        FedgeError("away") if is_training(task) and round_of(task).round == 2 else answer
    )
    state, records, _ = three_tiers(15)
    kinds = [{s.kind for group in round_of(t).steps for s in group} for t in two.tasks["edge-2"][1:]]
    assert {StepKind.SNAPSHOT} in kinds
    assert "edge-2" in records[14]["counted"]
    assert not same_weights(edge.state.above.weights, state.weights)
    for each in edge.fleet.devices:
        held = ClientState.load(edge.fleet.store(each))
        assert held.lineage == edge.state.above.lineage, each
        assert same_weights(held.weights, edge.state.above.weights), each
    check_records(two, state)


def test_steps_that_are_not_walked_are_not_handed_on(make: Make, small_prepared: Prepared) -> None:
    """Older versions in a task are skipped, and nothing vouches for what it says of them."""
    edge = make()
    welcome(edge, small_prepared)
    answer = edge.server(first_task(small_prepared))
    step = Step(StepKind.UPDATE, _step_of(answer, small_prepared))
    lineage = follow(begin(small_prepared.snapshot), [step])
    edge.server(first_task(small_prepared, 2, counted=1, lineage=lineage, steps=((step,),)))
    forged = Step(StepKind.UPDATE, b"no step")
    next_step = ((forged,), (step,))
    edge.server(first_task(small_prepared, 3, counted=2, lineage=follow(lineage, [step]), steps=next_step))
    assert edge.state.above.version == 2
    assert all(s.payload != b"no step" for group in edge.state.below.history.values() for s in group)


def _step_of(answer: bytes, prepared: Prepared) -> bytes:
    """What a parent makes of a single answer: the same change, coded for the way down."""
    downlink = build_codec(prepared.plan.downlink)
    return downlink.encode(downlink.init(prepared.support.shapes()), change_of(answer, prepared))[1]


# ----- killed


class Killed(BaseException):
    """The process is gone."""


class Fragile(Journal):
    """Dies before or after one of its writes, or cannot write; ``points`` counts what happens to it."""

    points = 0
    dies_at = -1
    fails = 0

    def point(self) -> None:
        self.points += 1
        if self.points == self.dies_at:
            raise Killed

    def commit_round(self, number: int, record: Mapping[str, Any], state: bytes) -> None:
        self._around(lambda: super(Fragile, self).commit_round(number, record, state))

    def set_state(self, state: bytes) -> None:
        self._around(lambda: super(Fragile, self).set_state(state))

    def _around(self, write: Callable[[], None]) -> None:
        self.point()
        if self.fails > 0:
            self.fails -= 1
            raise SetupError("no room")
        write()
        self.point()


class Watched:
    """``Clients`` of an edge server, with a point before and after each answer."""

    def __init__(self, edge: Edge) -> None:
        self.edge = edge

    def ask(
        self, tasks: Mapping[str, bytes], deadline: float | None = None, enough: int | None = None
    ) -> Iterator[tuple[str, bytes | FedgeError]]:
        del deadline, enough
        for client, answer in self.edge.fleet.ask(tasks):
            assert isinstance(self.edge.journal, Fragile)
            self.edge.journal.point()
            yield client, answer
            self.edge.journal.point()


def _story(edge: Edge, prepared: Prepared) -> list[bytes]:
    """Answers to three rounds, of which the second is not counted, and the last weights; started anew when
    it was killed, and asked the same again, as a parent does."""
    edge.clients = Watched(edge)
    edge.started()
    answers: list[bytes] = []

    def ask(frame: bytes) -> bytes:
        while True:
            try:
                return edge.server(frame)
            except Killed:
                edge.started()
            except SetupError:
                continue

    ask(encode_task(Welcome(CHALLENGE, prepared.plan.to_dict(), prepared.snapshot)))
    lineage, counted = begin(prepared.snapshot), 0
    steps: tuple[tuple[Step, ...], ...] = ()
    for number in (1, 2, 3):
        frame = first_task(prepared, number, counted=counted, lineage=lineage, steps=steps)
        answers.append(ask(frame))
        assert ask(frame) == answers[-1]
        counted = number if number != 2 else counted
        step = Step(StepKind.UPDATE, _step_of(answers[-1], prepared))
        lineage, steps = follow(lineage, [step]), ((step,),)
    last = ask(first_task(prepared, 4, counted=3, lineage=lineage, steps=steps, learning_rate=0.0))
    return [*answers, last]


def _left(edge: Edge) -> tuple[bytes, list[bytes | None], list[Any]]:
    """Everything that is left of a story, without the time that it took.

    The last weights are handed out once more, if they are asked for once more: that is one more record.
    """
    left_out = ("round", "seconds", "initial_down")
    records = {
        r["task"]: {k: v for k, v in r.items() if k not in left_out} for r in edge.journal.rounds()[::-1]
    }
    state = replace(edge.state, rounds=len(records)).to_bytes()
    return state, [edge.fleet.store(c).content for c in edge.fleet.devices], list(records.values())


def test_an_edge_server_killed_after_any_step_gives_the_same_run(
    make: Make, small_prepared: Prepared, wide: bool
) -> None:
    whole = make("edge-1", kind=Fragile)
    answers = _story(whole, small_prepared)
    assert isinstance(whole.journal, Fragile)
    points = whole.journal.points
    assert points == 2 + 3 * (3 * 2 + 2) + 2 * 3 + (2 * 3 + 2)  # a welcome of three; three rounds; the end
    for at in range(1, points + 1, 1 if wide else 3):
        edge = _again(make, whole, at)
        assert _story(edge, small_prepared) == answers, f"killed at {at} of {points}"
        for mine, theirs in zip(_left(edge), _left(whole), strict=True):
            assert mine == theirs, f"killed at {at} of {points}"


def _again(make: Make, whole: Edge, at: int) -> Edge:
    """The same edge server, in a journal of its own, which dies at a point."""
    edge = make(f"killed-{at}", kind=Fragile)
    edge.name = whole.name
    assert isinstance(edge.journal, Fragile)
    edge.journal.dies_at = at
    return edge


def test_a_journal_that_cannot_be_written_loses_nothing_and_counts_nothing_twice(
    make: Make, small_prepared: Prepared
) -> None:
    whole = make("edge-1", kind=Fragile)
    answers = _story(whole, small_prepared)
    edge = _again(make, whole, -1)
    assert isinstance(edge.journal, Fragile)
    edge.journal.fails = 3
    assert _story(edge, small_prepared) == answers
    assert _left(edge) == _left(whole)


def test_a_damaged_journal_is_refused_with_one_line(make: Make, small_prepared: Prepared) -> None:
    edge = make()
    welcome(edge, small_prepared)
    content = edge.state.to_bytes()
    for damaged in (b"", content[:-7], b"x" * 100, content[:200] + bytes([content[200] ^ 1]) + content[201:]):
        edge.journal.set_state(damaged)
        with pytest.raises(SetupError, match="damaged"):
            edge.started()


# ----- what the parent did not count


def test_an_answer_that_the_parent_did_not_count_is_in_the_next_one_for_less(
    make: Make, small_prepared: Prepared
) -> None:
    prepared = lossless(small_prepared)
    edge = make()
    said = heard(edge)
    welcome(edge, prepared)
    edge.server(first_task(prepared))
    answer = edge.server(first_task(prepared, 2, version=1, lineage=edge.state.above.lineage, steps=((),)))
    both = [
        [(change_of(said[c][i], prepared), trained_of(said[c][i]).weight) for c in sorted(said)]
        for i in (0, 1)
    ]
    old, fresh = (sum(weight for _, weight in one) for one in both)
    less = discounted(old, 1)
    expected = naive_mean([(naive_mean(both[1]), fresh), (naive_mean(both[0]), less)])
    assert trained_of(answer).weight == fresh + less
    assert largest_difference(change_of(answer, prepared), expected) < 1e-6
    # to its clients it counted: they go on from what they have not sent yet
    for client, tasks in edge.fleet.tasks.items():
        assert [round_of(t).counted for t in tasks if is_training(t)] == [0, 1], client


def test_it_weighs_less_the_longer_it_took(make: Make, small_prepared: Prepared) -> None:
    edge = make()
    welcome(edge, small_prepared)
    old = trained_of(edge.server(first_task(small_prepared))).weight
    task = first_task(small_prepared, 9, version=8, steps=((),) * 8)
    fresh = sum(len(d.data.train) for d in edge.fleet.devices.values())
    assert trained_of(edge.server(task)).weight == fresh + discounted(old, 8)
    assert discounted(old, 8) < discounted(old, 1)


def test_an_answer_that_counted_is_not_in_the_next_one(make: Make, small_prepared: Prepared) -> None:
    edge = make()
    welcome(edge, small_prepared)
    edge.server(first_task(small_prepared))
    answer = edge.server(first_task(small_prepared, 2, counted=1, version=1, steps=((),)))
    fresh = sum(len(d.data.train) for d in edge.fleet.devices.values())
    assert trained_of(answer).weight == fresh


def test_answers_that_are_lost_on_the_way_up_are_in_the_model_in_the_end(
    three_tiers: Any, two: Edges
) -> None:
    two.lost = {("edge-1", 2), ("edge-1", 3)}
    state, records, _ = three_tiers(4)
    weights = [trained_of(a).weight for a in two.answers["edge-1"][1:5]]
    fresh = weights[0]
    assert weights[1] == fresh + 0
    assert weights[2] == fresh + discounted(weights[1], 1)
    assert weights[3] == fresh + discounted(weights[2], 1)
    assert "edge-1" in records[3]["counted"]
    check_records(two, state)


def test_a_round_that_is_asked_for_in_other_words_gets_the_same_update(
    make: Make, small_prepared: Prepared
) -> None:
    """A parent that tries a round again may choose other judges. Nobody trains twice for it."""
    edge = make()
    welcome(edge, small_prepared)
    first = trained_of(edge.server(first_task(small_prepared)))
    asked = {c: len(t) for c, t in edge.fleet.tasks.items()}
    task = first_task(small_prepared, candidate=Step(StepKind.CHANGE, b"a candidate"))
    again = edge.server(task)
    assert replace(trained_of(again), signature=b"") == replace(first, signature=b"")
    assert {c: len(t) for c, t in edge.fleet.tasks.items()} == asked
    check_trained("edge-1", again, round_of(task), _parent(edge, small_prepared))
    # and when it counts, it has counted once
    answer = edge.server(first_task(small_prepared, 2, counted=1, version=1, steps=((),)))
    assert trained_of(answer).weight == first.weight


def _parent(edge: Edge, prepared: Prepared) -> Any:
    """A federation of the parent's, to check answers with."""
    federation, _ = above(edge.world, prepared, Edges({edge.name: edge}), edge.journal)
    return federation


# ----- nobody there


def test_nobody_there_gives_no_weight_and_the_same_task_later_an_update(
    make: Make, small_prepared: Prepared
) -> None:
    edge = make()
    welcome(edge, small_prepared)
    edge.present = list
    edge.started()
    task = first_task(small_prepared)
    nothing = edge.server(task)
    assert (trained_of(nothing).weight, trained_of(nothing).payload) == (0, b"")
    assert sound_change(trained_of(nothing), _parent(edge, small_prepared), None) is None  # type: ignore[arg-type]
    edge.present = None
    assert trained_of(edge.server(task)).weight == sum(len(d.data.train) for d in edge.fleet.devices.values())


def test_what_is_owed_outlives_rounds_with_nobody_there(make: Make, small_prepared: Prepared) -> None:
    edge = make()
    welcome(edge, small_prepared)
    old = trained_of(edge.server(first_task(small_prepared))).weight
    edge.present = list
    assert trained_of(edge.server(first_task(small_prepared, 2, version=1, steps=((),)))).weight == 0
    edge.present = None
    answer = edge.started()(first_task(small_prepared, 3, version=2, steps=((),) * 2))
    assert trained_of(answer).weight == old + discounted(old, 2)


def test_a_round_below_the_quorum_counts_nothing_and_says_so(make: Make, small_prepared: Prepared) -> None:
    edge = make(quorum=1.0)
    missing = next(iter(edge.fleet.devices))
    welcome(edge, small_prepared)
    edge.fleet.absent = {missing}
    assert trained_of(edge.server(first_task(small_prepared))).weight == 0
    (told,) = edge.watcher.of("given_up")
    assert (told["round"], told["counted"], told["needed"]) == (1, 2, 3)
    assert {r.counted for r in edge.state.below.clients.values()} == {0}
    edge.fleet.absent = set()
    assert trained_of(edge.server(first_task(small_prepared))).weight > 0
    assert {r.counted for r in edge.state.below.clients.values()} == {1}


# ----- lies


LIES: dict[str, dict[str, Any]] = {
    "too heavy": {"weight": MOST_WINDOWS + 1},
    "better than perfect": {"score": 1.5},
    "no payload": {"payload": b""},
    "another round": {"round": 7},
    "not a number": {"loss": math.nan},
}


def lies(world: World, prepared: Prepared, liar: str, other: str) -> dict[str, Tamper]:
    """What a client may send in the second round; each of them is an answer ``(task, honest) -> bytes``."""
    first: list[bytes] = []

    def replayed(_task: bytes, answer: bytes) -> bytes:
        first.append(answer)
        return first[0]

    signed: dict[str, Tamper] = {
        name: resigned(world, prepared, liar, **fields) for name, fields in LIES.items()
    }
    return signed | {
        "forged": lambda _t, a: encode_reply(replace(trained_of(a), score=1.0)),
        "garbage": lambda _t, _a: b"\2garbage",
        "somebody else's": resigned(world, prepared, other),
        "replayed": replayed,
    }


@pytest.mark.parametrize("lie", [*LIES, "forged", "garbage", "somebody else's", "replayed"])
def test_a_lie_of_a_client_stops_at_its_edge_server(
    lie: str, make: Make, small_world: World, small_prepared: Prepared
) -> None:
    """The sum that goes up is as if the liar had not been there."""
    edges = [make("silent"), make("lied")]
    liar, other = list(edges[0].fleet.devices)[:2]
    tamper = lies(small_world, small_prepared, liar, other)[lie]

    def tampered(task: bytes, answer: bytes) -> bytes | FedgeError:
        if not is_training(task) or (round_of(task).round == 1 and lie != "replayed"):
            return answer
        return tamper(task, answer)

    edges[0].fleet.tamper[liar] = lambda t, a: (
        FedgeError("away") if is_training(t) and round_of(t).round == 2 else a
    )
    edges[1].fleet.tamper[liar] = tampered
    said = []
    for edge in edges:
        edge.name = "edge-1"
        edge.started()
        welcome(edge, small_prepared)
        edge.server(first_task(small_prepared))
        said.append(trained_of(edge.server(first_task(small_prepared, 2, counted=1, version=1, steps=((),)))))
    assert (said[0].payload, said[0].weight) == (said[1].payload, said[1].weight)
    (told,) = edges[1].watcher.of("refused")
    assert (told["client"], told["round"]) == (liar, 2)
    assert [e.state.below.clients[liar].counted for e in edges] == [1, 1]


def test_a_client_that_lies_again_and_again_is_barred_by_its_edge_server(
    make: Make, small_world: World, small_prepared: Prepared
) -> None:
    edge = make(offences=2)
    liar = next(iter(edge.fleet.devices))
    welcome(edge, small_prepared)
    edge.fleet.tamper[liar] = resigned(small_world, small_prepared, liar, payload=b"")
    for number in (1, 2, 3):
        edge.server(
            first_task(
                small_prepared, number, counted=number - 1, version=number - 1, steps=((),) * (number - 1)
            )
        )
    trained = [t for t in edge.fleet.tasks[liar] if is_training(t)]
    assert [round_of(t).round for t in trained] == [1, 2]
    assert edge.state.below.clients[liar].barred > 3


EDGE_LIES: dict[str, tuple[str, dict[str, Any]]] = {
    "too heavy": ("UnsoundError", {"weight": MOST_WINDOWS + 1}),
    "no payload": ("UnsoundError", {"payload": b""}),
    "judged nothing": ("UnsoundError", {"judged": Scores(0, 1, 1, 1, 1)}),
    "another round": ("UpdateError", {"round": 9}),
}


@pytest.mark.parametrize("lie", [*EDGE_LIES, "forged", "cut off", "replayed", "another edge server's"])
def test_a_lie_of_an_edge_server_stops_at_the_parent(
    lie: str, small_world: World, small_prepared: Prepared, three_tiers: Any, two: Edges
) -> None:
    first: list[bytes] = []

    def replayed(_task: bytes, answer: bytes) -> bytes:
        first.append(answer)
        return first[0]

    tampers: dict[str, tuple[str, Tamper]] = {
        name: (kind, resigned(small_world, small_prepared, "edge-1", **fields))
        for name, (kind, fields) in EDGE_LIES.items()
    }
    tampers |= {
        "forged": ("SignatureError", lambda _t, a: encode_reply(replace(trained_of(a), score=1.0))),
        "cut off": ("PayloadError", lambda _t, a: a[:-1]),
        "replayed": ("UpdateError", replayed),
        "another edge server's": ("SignatureError", resigned(small_world, small_prepared, "edge-2")),
    }
    kind, tamper = tampers[lie]
    early = 1 if lie == "replayed" else 2
    two.tamper["edge-1"] = lambda t, a: (
        tamper(t, a) if is_training(t) and early <= round_of(t).round <= 2 else a
    )
    _, records, watcher = three_tiers(3)
    (told,) = watcher.of("refused")
    assert (told["client"], told["round"], told["kind"]) == ("edge-1", 2, kind)
    assert [r["counted"] for r in records] == [list(NAMES), ["edge-2"], list(NAMES)]
    # it was not counted, so what its clients learned in that round is in the next answer
    weights = [trained_of(a).weight for a in two.answers["edge-1"][1:4]]
    assert weights == [weights[0], weights[0], weights[0] + discounted(weights[0], 1)]


# ----- judges


def test_the_judges_of_an_edge_server_speak_with_one_voice() -> None:
    """The mean of each number; a score that one side lacks says nothing."""
    nan = math.nan
    scores = {
        "a": Scores(10, 1.0, 0.5, 0.8, 0.7),
        "b": Scores(20, 3.0, nan, 1.0, 1.0),
        "c": Scores(5, 2.0, 0.7, 3.0, nan),
    }
    whole = judged(scores)
    assert whole is not None
    assert replace(whole, loss_candidate=0.0) == Scores(35, 2.0, 0.5, 0.0, 0.7)
    assert whole.loss_candidate == pytest.approx(1.6)
    assert judged({}) is None
    only = judged({"b": scores["b"]})
    assert only is not None
    assert math.isnan(only.score_held)
    assert math.isnan(only.score_candidate)
    many = judged({str(i): replace(scores["a"], windows=MOST_WINDOWS) for i in range(3)})
    assert many is not None
    assert many.windows == MOST_WINDOWS


@pytest.mark.parametrize("mode", ["ensemble", "gradient"])
@pytest.mark.parametrize("good", [True, False])
def test_candidates_are_judged_by_the_clients_of_edge_servers(
    mode: str, good: bool, small_world: World, small_prepared: Prepared, three_tiers: Any, two: Edges
) -> None:
    """What the clients say decides, whatever they are asked through; all take the same step then, or none."""
    loss = 0.5 if good else 2.0
    for edge in two.edges.values():
        for client in edge.fleet.devices:
            edge.fleet.tamper[client] = _judges(small_world, small_prepared, client, loss)
    redistil = replace(small_world.config.redistill, mode=mode, every=2)
    state, records, _ = three_tiers(4, redistill=redistil)
    said = [r["redistillation"] for r in records if r["redistillation"]]
    assert said
    assert all(s["accepted"] == good for s in said)
    for one in said:
        assert [j["client"] for j in one["judges"]] == list(NAMES)
        assert [j["windows"] for j in one["judges"]] == [30, 30]
        assert [(j["aggregate_loss"], j["candidate_loss"]) for j in one["judges"]] == [(1.0, loss)] * 2
    taken = [s.kind for t in two.tasks["edge-1"][1:] for group in round_of(t).steps for s in group]
    assert (StepKind.CHANGE in taken) == (good and mode == "ensemble")
    for edge in two.edges.values():
        for client in edge.fleet.devices:
            assert same_weights(ClientState.load(edge.fleet.store(client)).weights, state.weights)
    check_records(two, state)


def _judges(world: World, prepared: Prepared, client: str, loss: float) -> Tamper:
    """The client gives a judgement of its own making, where it is asked for one."""

    def judge(task: bytes, answer: bytes) -> bytes:
        if not is_training(task) or trained_of(answer).judged is None:
            return answer
        return resigned(world, prepared, client, judged=Scores(10, 1.0, 0.5, loss, 0.5))(task, answer)

    return judge


# ----- releases


def test_releases_go_through_an_edge_server_and_verdicts_come_back(
    small_world: World, three_tiers: Any, two: Edges, tmp_path: Path
) -> None:
    """All clients take the same bytes; the second release comes to them as a delta."""
    release = replace(small_world.config.release, every=2, margin=1.0)
    state, records, _ = three_tiers(4, folder=tmp_path, release=release)
    made = [r["release"] for r in records if r["release"]]
    assert [m["version"] for m in made] == [1, 2]
    assert {c: r.release for c, r in state.clients.items()} == dict.fromkeys(NAMES, 2)
    for edge in two.edges.values():
        assert {r.release for r in edge.state.below.clients.values()} == {2}
        passed = [r["release"] for r in edge.journal.rounds() if r["release"]]
        assert [p["sha256"] for p in passed] == [m["sha256"] for m in made]
        assert [len(p["decisions"]) for p in passed] == [3, 3]
        assert all(d["taken"] for p in passed for d in p["decisions"])
        assert passed[1]["bytes"] < 0.7 * passed[0]["bytes"]
        said = [replied(a) for a in two.answers[edge.name] if isinstance(replied(a), Verdict)]
        assert [(v.version, v.taken) for v in said] == [(1, True), (2, True)]
        assert said[1].windows == sum(d["windows"] for d in passed[1]["decisions"])


def test_an_offer_that_comes_again_gets_the_same_answer(
    small_world: World, three_tiers: Any, two: Edges, tmp_path: Path
) -> None:
    three_tiers(2, folder=tmp_path, release=replace(small_world.config.release, every=2, margin=1.0))
    edge = two.edges["edge-1"]
    frame = two.tasks["edge-1"][-1]
    offered = {c: len(t) for c, t in edge.fleet.tasks.items()}
    assert edge.started()(frame) == two.answers["edge-1"][-1]
    assert {c: len(t) for c, t in edge.fleet.tasks.items()} == offered


def test_an_edge_server_that_lost_its_mirror_is_sent_all_of_the_next_release(
    small_world: World, three_tiers: Any, two: Edges, tmp_path: Path
) -> None:
    edge = two.edges["edge-1"]

    def lose(_task: bytes, answer: bytes) -> bytes:
        reply = replied(answer)
        if isinstance(reply, Verdict) and reply.version == 1:
            shutil.rmtree(tmp_path / "edge-1")
        return answer

    two.tamper["edge-1"] = lose
    release = replace(small_world.config.release, every=1, margin=1.0)
    state, records, _ = three_tiers(3, folder=tmp_path, release=release)
    said = [next(d for d in r["release"]["decisions"] if d["client"] == "edge-1") for r in records]
    assert [(d["taken"], d["reason"]) for d in said][1] == (False, BROKEN)
    assert [d["taken"] for d in said] == [True, False, True]
    assert state.clients["edge-1"].release == 3
    assert {r.release for r in edge.state.below.clients.values()} == {3}


def test_what_all_clients_made_of_a_release_is_one_verdict() -> None:
    nan = math.nan
    taken, refused = Verdict(3, True, "not_worse", 0.5, 0.75, 10), Verdict(3, False, "worse", 0.5, 0.25, 20)
    said = together(3, {"a": taken, "b": refused, "c": refused})
    assert replace(said, candidate=0.0) == Verdict(3, True, "not_worse", 0.5, 0.0, 50)
    assert said.candidate == pytest.approx(1.25 / 3)
    assert together(3, {"b": refused}).code == "worse"
    assert not together(3, {"b": refused}).taken
    assert together(3, {}).code == NOBODY
    assert not together(3, {}).taken
    shouts = {str(i): replace(taken, windows=2**62, current=nan) for i in range(4)}
    assert replied(encode_reply(together(3, shouts))).windows == MOST_WINDOWS


def test_without_a_mirror_no_release_is_passed_on(make: Make, small_prepared: Prepared) -> None:
    edge = make()
    welcome(edge, small_prepared)
    server = EdgeServer("edge-1", edge.world.key("edge-1"), edge.journal, edge._members, None)
    with pytest.raises(UpdateError, match="passes no releases on"):
        server(encode_task(Offer(b"a package")))


# ----- welcomed again


def test_welcomed_again_before_the_first_step_nothing_is_lost(make: Make, small_prepared: Prepared) -> None:
    """The parent died in its first round: it asks the same again, and gets the same."""
    edge = make()
    welcome(edge, small_prepared)
    answer = edge.server(first_task(small_prepared))
    asked = {c: len(t) for c, t in edge.fleet.tasks.items()}
    welcome(edge, small_prepared)
    assert edge.server(first_task(small_prepared)) == answer
    assert {c: len(t) for c, t in edge.fleet.tasks.items()} == asked


def test_welcomed_again_by_a_parent_that_begins_anew_its_clients_hold_the_new_weights(
    make: Make, small_prepared: Prepared
) -> None:
    """The same student, and another history: nobody may train on the weights of the old one."""
    edge = make()
    welcome(edge, small_prepared)
    edge.server(first_task(small_prepared))
    step = Step(StepKind.UPDATE, _step_of(edge.server(first_task(small_prepared)), small_prepared))
    lineage = follow(begin(small_prepared.snapshot), [step])
    edge.server(first_task(small_prepared, 2, counted=1, lineage=lineage, steps=((step,),)))
    standing = {c: r.offences for c, r in edge.state.below.clients.items()}
    with pytest.raises(UpdateError, match="older"):
        edge.server(first_task(small_prepared))
    welcome(edge, small_prepared)
    answer = trained_of(edge.server(first_task(small_prepared)))
    fresh = make("fresh")
    fresh.name = "edge-1"
    fresh.started()
    welcome(fresh, small_prepared)
    assert answer.payload == trained_of(fresh.server(first_task(small_prepared))).payload
    assert answer.weight == sum(len(d.data.train) for d in edge.fleet.devices.values())
    for client in edge.fleet.devices:
        assert ClientState.load(edge.fleet.store(client)).lineage == begin(small_prepared.snapshot)
    assert {c: r.offences for c, r in edge.state.below.clients.items()} == standing


@pytest.mark.parametrize("what", ["another student", "another plan"])
def test_welcomed_to_another_federation_everything_begins_anew(
    what: str, make: Make, small_prepared: Prepared
) -> None:
    edge = make()
    welcome(edge, small_prepared)
    edge.server(first_task(small_prepared))
    other = replace(small_prepared, plan=replace(small_prepared.plan, federation="f" * 32))
    if what == "another student":
        weights = {n: np.where(w != 0, w * np.float32(0.5), w) for n, w in small_prepared.weights.items()}
        other = replace(other, snapshot=encode_dense(weights, 8))
    welcome(edge, other)
    assert edge.state.below.clients == {}
    answer = edge.server(first_task(other))
    check_trained("edge-1", answer, round_of(first_task(other)), _parent(edge, other))
    with pytest.raises(FedgeError):
        check_trained("edge-1", answer, round_of(first_task(small_prepared)), _parent(edge, small_prepared))
    for client in edge.fleet.devices:
        held = ClientState.load(edge.fleet.store(client))
        assert (held.plan.federation, held.lineage) == ("f" * 32, begin(other.snapshot))


def test_a_task_before_the_welcome_or_for_other_weights_is_refused(
    make: Make, small_prepared: Prepared
) -> None:
    edge = make()
    with pytest.raises(UpdateError, match="must be welcomed first"):
        edge.server(first_task(small_prepared))
    welcome(edge, small_prepared)
    before = edge.state.to_bytes()
    for wrong, error in (
        (first_task(small_prepared, lineage=b"8 bytes!"), UpdateError),
        (first_task(small_prepared, 3, version=1, steps=((),)), PayloadError),
        (
            first_task(small_prepared, 2, version=1, steps=((Step(StepKind.UPDATE, b"no step"),),)),
            PayloadError,
        ),
        (b"\2", PayloadError),
        (b"", PayloadError),
        (encode_task(Welcome(CHALLENGE, small_prepared.plan.to_dict(), b"no student")), PayloadError),
        (encode_task(Welcome(CHALLENGE, {}, small_prepared.snapshot)), PayloadError),
    ):
        with pytest.raises(error):
            edge.server(wrong)
    assert edge.state.to_bytes() == before
    assert edge.fleet.tasks == {}
    (text,) = [replied(edge.server(encode_task(Offer(b"no package"))))]
    assert (text.code, text.taken) == (BROKEN, False)


# ----- late, heavy, robust


class Dawdling:
    """One client's answer to the first round comes in the second."""

    def __init__(self, edge: Edge, slow: str) -> None:
        self.edge, self.slow, self.held = edge, slow, b""

    def ask(
        self, tasks: Mapping[str, bytes], deadline: float | None = None, enough: int | None = None
    ) -> Iterator[tuple[str, bytes | FedgeError]]:
        del deadline, enough
        for client, answer in self.edge.fleet.ask(tasks):
            if client == self.slow and is_training(tasks[client]) and round_of(tasks[client]).round == 1:
                assert isinstance(answer, bytes)
                self.held = answer
                yield client, NotYetError("no answer within 1 s")
            else:
                yield client, answer
        if self.held and self.slow not in tasks and any(map(is_training, tasks.values())):
            yield self.slow, self.held


def test_a_late_answer_counts_for_less_in_the_next_sum_that_goes_up(
    make: Make, small_prepared: Prepared
) -> None:
    edge = make(late="count", deadline_seconds=1.0)
    slow = next(iter(edge.fleet.devices))
    edge.clients = Dawdling(edge, slow)
    edge.started()
    welcome(edge, small_prepared)
    weights = {c: len(d.data.train) for c, d in edge.fleet.devices.items()}
    others = sum(weights.values()) - weights[slow]
    assert trained_of(edge.server(first_task(small_prepared))).weight == others
    assert edge.state.below.late.keys() == {slow}
    answer = edge.server(first_task(small_prepared, 2, counted=1, version=1, steps=((),)))
    assert trained_of(answer).weight == others + discounted(weights[slow], 1)
    assert edge.state.below.late == {}
    assert edge.state.below.clients[slow].counted == 1
    answer = edge.server(first_task(small_prepared, 3, counted=2, version=2, steps=((),)))
    assert trained_of(answer).weight == sum(weights.values())


def test_late_answers_alone_make_a_sum_in_asynchronous_rounds(make: Make, small_prepared: Prepared) -> None:
    """A round may end with answers to older tasks only: they are what it was waiting for."""
    edge = make(late="count", deadline_seconds=1.0)
    slow = next(iter(edge.fleet.devices))
    edge.clients = Dawdling(edge, slow)
    edge.started()
    welcome(edge, small_prepared)
    edge.server(first_task(small_prepared))
    edge.fleet.absent = set(edge.fleet.devices) - {slow}
    answer = trained_of(edge.server(first_task(small_prepared, 2, counted=1, version=1, steps=((),))))
    assert answer.weight == discounted(len(edge.fleet.devices[slow].data.train), 1)
    assert edge.state.below.clients[slow].counted == 1


def test_a_late_answer_is_waited_for_as_long_as_in_two_tiers(make: Make, small_prepared: Prepared) -> None:
    edge = make(late="count", deadline_seconds=1.0, late_rounds=2)
    slow = next(iter(edge.fleet.devices))
    edge.clients = clients = Dawdling(edge, slow)
    edge.started()
    welcome(edge, small_prepared)
    edge.server(first_task(small_prepared))
    clients.held = b""
    waited = []
    for number in (2, 3, 4):
        edge.server(first_task(small_prepared, number, counted=number - 1, version=number - 1, steps=((),)))
        waited.append(slow in edge.state.below.late)
    assert waited == [True, False, False]


def test_an_edge_server_of_many_windows_claims_what_the_parent_takes(
    make: Make, small_world: World, small_prepared: Prepared
) -> None:
    edge = make(max_weight=MOST_WINDOWS)
    for client in edge.fleet.devices:
        edge.fleet.tamper[client] = resigned(small_world, small_prepared, client, weight=MOST_WINDOWS)
    welcome(edge, small_prepared)
    answer = edge.server(first_task(small_prepared))
    trained = check_trained(
        "edge-1", answer, round_of(first_task(small_prepared)), _parent(edge, small_prepared)
    )
    assert trained.weight == MOST_WINDOWS
    # what is owed is no more than what was claimed
    again = edge.server(first_task(small_prepared, 2, version=1, steps=((),)))
    assert trained_of(again).weight == MOST_WINDOWS
    assert largest_difference(change_of(again, small_prepared), change_of(answer, small_prepared)) < 1.0


def test_a_robust_edge_server_keeps_one_hostile_client_out(
    make: Make, small_world: World, small_prepared: Prepared
) -> None:
    """With a median in place of the mean, the largest lie moves the sum by less than the honest ones do."""
    prepared = lossless(small_prepared)
    honest, robust, naive = make("honest"), make("robust"), make("naive")
    liar = next(iter(honest.fleet.devices))
    loud = {n: np.full(s, 0.9, np.float32) for n, s in prepared.support.shapes().items()}
    uplink = build_codec(prepared.plan.uplink)
    payload = uplink.encode(uplink.init(prepared.support.shapes()), loud)[1]
    robust.robust = _median
    changes = []
    for edge in (honest, robust, naive):
        if edge is not honest:
            edge.fleet.tamper[liar] = resigned(small_world, prepared, liar, payload=payload)
        welcome(edge, prepared)
        changes.append(change_of(edge.server(first_task(prepared)), prepared))
    assert largest_difference(changes[1], changes[0]) < 0.1
    assert largest_difference(changes[2], changes[0]) > 0.2


def _median(changes: list[Weights], _weights: list[int]) -> Weights:
    return {n: np.median([c[n] for c in changes], axis=0).astype(np.float32) for n in changes[0]}


def test_too_few_for_a_robust_sum_count_nothing(make: Make, small_prepared: Prepared) -> None:
    def refuse(_changes: list[Weights], _weights: list[int]) -> Weights:
        raise UpdateError("three are too few")

    edge = make()
    edge.robust = refuse
    welcome(edge, small_prepared)
    assert trained_of(edge.server(first_task(small_prepared))).weight == 0
    assert any("too few" in w["text"] for w in edge.watcher.of("warning"))
    assert {r.counted for r in edge.state.below.clients.values()} == {0}


def test_an_edge_servers_state_is_kept_exactly(make: Make, small_prepared: Prepared) -> None:
    edge = make()
    welcome(edge, small_prepared)
    edge.server(first_task(small_prepared))
    content = edge.state.to_bytes()
    again = EdgeState.from_bytes(content)
    assert again.to_bytes() == content
    assert same_weights(again.above.weights, small_prepared.weights)
    assert again.above.memory.keys() > {"weight", "round"}
    assert with_owed(None, again.above.memory, round_of(first_task(small_prepared))) is None


def test_what_is_owed_is_let_go_rather_than_overflow() -> None:
    task = Train(3, 0, 2, b"8 bytes!", (), 0.1)
    total = Update.of({"a": np.full(2, 1000.0, np.float32)}, MOST_WINDOWS, 2)
    huge = {"a": np.full(2, 1e6, np.float32)}
    assert with_owed(total, owed(huge, MOST_WINDOWS, 2), task) is total
    small = with_owed(total, owed({"a": np.ones(2, np.float32)}, 4, 2), task)
    assert small is not None
    assert small.weight == total.weight + discounted(4, 1)
