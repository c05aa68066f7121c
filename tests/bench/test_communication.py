"""``fedge bench communication``: that both sides are run as they should be, and counted as they are sent."""

import json
import random
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federated.build import FAST, federation_of, fleet_of
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from fedge.bench._curves import Curve, mean_curve, stops_rising, target_of, trailing
from fedge.bench._fedavg import WIRES, CountingGrid, Wire, fedavg, random_start
from fedge.bench._fedge import fedge
from fedge.bench._shared import Bench, make_bench, shared_world
from fedge.bench.communication import Method, Plan, lines, measure, run
from fedge.errors import FedgeError, InputError
from fedge.federated.coding import Arrays, Support, Weights
from fedge.federated.journal import Journal
from fedge.federated.prepare import Prepared
from fedge.federated.server import run_rounds
from fedge.federated.training import fine_tune
from fedge.seeding import derive
from fedge.simulation.world import World

RATE, ROUNDS = 0.02, 2


def curve(clients: list[float], unseen: list[float], step: float = 10.0) -> Curve:
    """A curve with the same bytes both ways in every round."""
    traffic = tuple(step * r for r in range(len(clients)))
    return Curve(100.0, traffic, traffic, tuple(clients), tuple(unseen), (), 0.0)


# --- curves


def test_a_trailing_mean_never_counts_the_score_before_the_first_round() -> None:
    values = [100.0, 1.0, 2.0, 3.0, 4.0]
    naive = [100.0, 1.0, 1.5, 2.0, 3.0]
    assert [trailing(values, r, 3) for r in range(5)] == naive


def test_one_lucky_round_is_not_at_the_target() -> None:
    spike = curve([0.0, 0.1, 1.0, 0.1, 0.1], [1.0] * 5)
    assert spike.reaches({"clients": 0.9, "unseen": 0.9}) is None
    assert max(spike.clients) >= 0.9


def test_the_target_counts_on_both_scores_and_from_the_first_round_on_it() -> None:
    both = curve([0.0, 0.9, 0.9, 0.9, 0.9, 0.9], [0.0, 0.0, 0.9, 0.9, 0.9, 0.9])
    assert both.reaches({"clients": 0.9, "unseen": 0.9}) == 4
    assert both.reaches({"clients": 0.9, "unseen": 0.0}) == 3
    assert both.reaches({"clients": 0.9, "unseen": 0.91}) is None


def test_the_target_is_a_point_below_the_mean_of_the_last_three_rounds() -> None:
    target = target_of(curve([0.0, 0.2, 0.5, 0.6, 0.7], [0.0, 0.2, 0.3, 0.3, 0.3]))
    assert target == pytest.approx({"clients": 0.59, "unseen": 0.29})


def test_totals_hold_the_first_download_and_both_ways() -> None:
    assert curve([0.0] * 4, [0.0] * 4).total(3) == 100 + 30 + 30


def test_a_mean_curve_is_the_mean_of_every_number() -> None:
    mean = mean_curve([curve([0.0, 0.2], [0.0, 0.4], 10), curve([0.2, 0.4], [0.2, 0.8], 30)])
    assert mean.clients == pytest.approx((0.1, 0.3))
    assert mean.unseen == pytest.approx((0.1, 0.6))
    assert mean.uplink == (0.0, 20.0)


def test_rounds_end_where_the_smoothed_score_stops_rising() -> None:
    scores = [0.0, 0.1, 0.2, 0.3, 0.5, 0.5, 0.501, 0.5, 0.499]
    assert stops_rising(scores, window=1) == 4
    assert stops_rising([0.9, 0.5, 0.4], window=1) == 1


# --- how arrays travel


def _arrays() -> Arrays:
    source = np.random.default_rng(5)
    shapes = {"a": (30, 20), "b": (7,), "zero": (4,)}
    return {n: source.normal(0, s[0], s).astype(np.float32) * (n != "zero") for n, s in shapes.items()}


def test_float16_travels_as_numpy_rounds_it() -> None:
    wire, arrays = WIRES["float16"], _arrays()
    decoded = wire.unpack(wire.pack(arrays))
    for name, array in arrays.items():
        assert np.array_equal(decoded[name], array.astype(np.float16).astype(np.float32))


def test_8_bits_are_off_by_half_a_step_at_most() -> None:
    wire, arrays = WIRES["uint8"], _arrays()
    decoded = wire.unpack(wire.pack(arrays))
    for name, array in arrays.items():
        half = float(np.abs(array).max()) / 127 / 2
        assert np.abs(decoded[name] - array).max() <= half * 1.0001 + 1e-12
    assert not np.array_equal(decoded["a"], arrays["a"])


def test_fewer_bits_are_fewer_bytes() -> None:
    arrays = {"w": np.zeros((100, 100), np.float32)}
    entries = {n: (w.pack(arrays).count_bytes() - 10_000 * size) for n, w, size in _sizes()}
    assert all(0 < overhead < 600 for overhead in entries.values())


def _sizes() -> list[tuple[str, Wire, int]]:
    return [("float32", WIRES["float32"], 4), ("float16", WIRES["float16"], 2), ("uint8", WIRES["uint8"], 1)]


def test_a_wire_refuses_arrays_of_another_type() -> None:
    record = WIRES["float16"].pack(_arrays())
    with pytest.raises(FedgeError, match="float16, not float32"):
        WIRES["float32"].unpack(record)


# --- the baseline


@pytest.fixture(scope="module")
def bench(small_world: World, small_prepared: Prepared) -> Bench:
    config = small_world.config
    rounds = replace(config.rounds, rounds=ROUNDS)
    config = replace(config, rounds=rounds, redistill=replace(config.redistill, mode="none"))
    return make_bench(config, shared_world(config), small_prepared)


def _naive_round(bench: Bench, weights: Arrays, number: int, wire: Wire) -> Arrays:
    """McMahan et al. 2017, algorithm 1, in float64, with weights and changes as they arrive."""
    plan = replace(bench.plan, training=replace(bench.plan.training, epochs=1))
    held = wire.unpack(wire.pack(weights))
    total, windows = {n: np.zeros(w.shape) for n, w in weights.items()}, 0
    for client in bench.world.roles.participants:
        data = bench.world.parts[client].train
        x = torch.from_numpy(plan.preprocess.apply(data.x))
        alive = Support({n: np.ones(w.shape, bool) for n, w in weights.items()})
        seed = derive(derive(bench.config.seed, "device", client), "local", number)
        tuned, _ = fine_tune(plan, bench.world.task, held, alive, (x, torch.from_numpy(data.y)), RATE, seed)
        change = wire.unpack(wire.pack({n: tuned[n] - held[n] for n in held}))
        total = {n: t + len(data) * change[n].astype(np.float64) for n, t in total.items()}
        windows += len(data)
    return {n: (weights[n] + t / windows).astype(np.float32) for n, t in total.items()}


def _fedavg(bench: Bench, wire: Wire, folder: Path) -> Curve:
    return fedavg(bench, bench.prepared.weights, wire, RATE, 1, ROUNDS, folder)


def _seen(bench: Bench) -> tuple[Bench, list[Arrays]]:
    """The bench, and the weights that it is asked to score."""
    seen: list[Arrays] = []

    class Watched(Bench):
        def scores(self, weights, *, judge):  # type: ignore[no-untyped-def]
            seen.append(dict(weights))
            return super().scores(weights, judge=judge)

    return Watched(bench.config, bench.world, bench.prepared, bench.scorer), seen


def _flat(weights: Weights) -> NDArray[np.float64]:
    return np.concatenate([w.ravel().astype(np.float64) for w in weights.values()])


@pytest.mark.parametrize(
    "wire",
    [WIRES["float32"], replace(WIRES["float32"], plain=False), WIRES["float16"], WIRES["uint8"]],
    ids=["fp32", "fp32 as changes", "float16", "uint8"],
)
def test_the_baseline_is_federated_averaging(bench: Bench, wire: Wire, tmp_path: Path) -> None:
    """The distance to a naive loop is a small share of the way that the weights have gone."""
    watched, seen = _seen(bench)
    _fedavg(watched, wire, tmp_path)
    assert len(seen) == ROUNDS + 1
    weights = dict(bench.prepared.weights)
    for number in range(1, ROUNDS + 1):
        weights = _naive_round(bench, weights, number, wire)
        expected = _flat(wire.unpack(wire.pack(weights)))
        way = float(np.linalg.norm(expected - _flat(bench.prepared.weights)))
        assert way > 0.01
        assert np.linalg.norm(_flat(seen[number]) - expected) < 0.001 * way


def test_the_baseline_gives_the_same_numbers_again(bench: Bench, tmp_path: Path) -> None:
    random.seed(1)
    first = _fedavg(bench, WIRES["float32"], tmp_path)
    random.seed(2)
    assert _fedavg(bench, WIRES["float32"], tmp_path) == first


def test_the_baseline_is_charged_one_record_each_way_per_round_and_one_at_the_start(
    bench: Bench, tmp_path: Path
) -> None:
    found = _fedavg(bench, WIRES["float32"], tmp_path)
    record = WIRES["float32"].pack(bench.prepared.weights).count_bytes()
    assert found.initial == record
    assert found.total(ROUNDS) == record * (1 + 2 * ROUNDS)
    assert record > 4 * bench.plan.spec.parameters()


def test_a_client_that_fails_stops_the_bench(tmp_path: Path) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:  # noqa: ARG001  (Flower's signature)
        raise ValueError("out of memory")

    with CountingGrid(app, 2, tmp_path / "grid.sqlite") as grid:
        messages = [Message(RecordDict(), node, "train") for node in grid.get_node_ids()]
        with pytest.raises(FedgeError, match="out of memory"):
            grid.send_and_receive(messages)


def test_a_random_start_has_learned_nothing_and_follows_from_the_seed(bench: Bench) -> None:
    first, again = random_start(bench), random_start(bench)
    other = random_start(replace(bench, config=replace(bench.config, seed=bench.config.seed + 1)))
    for name, shape in bench.plan.spec.shapes().items():
        assert first[name].shape == shape
        assert np.array_equal(first[name], again[name])
        spread = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.0
        assert float(first[name].std()) == pytest.approx(spread, rel=0.3)
    assert not np.array_equal(first["conv1.weight"], other["conv1.weight"])


# --- fedge


def test_fedge_is_charged_every_byte_of_every_frame(bench: Bench, tmp_path: Path) -> None:
    fleet = fleet_of(bench.world)
    with Journal(tmp_path / "other.sqlite") as journal:
        federation, _ = federation_of(bench.world, bench.prepared, fleet, journal)
        state = run_rounds(federation)
    found = fedge(bench, tmp_path)
    clients = len(bench.world.roles.participants)
    assert found.total(ROUNDS) == pytest.approx((sum(fleet.sent) + sum(fleet.received)) / clients, abs=2)
    assert found.initial > len(bench.prepared.snapshot)
    tasks = fleet.tasks.values()  # of each client: welcome, round 1, round 2, the last weights
    assert found.downlink[0] == 0
    arrived = sum(len(t[1]) + len(t[2]) for t in tasks) / clients
    assert found.downlink[1] >= arrived - 2, "the weights of round 1 arrive with the task of round 2"
    end = bench.scores(state.weights, judge=False)
    assert (found.clients[-1], found.unseen[-1]) == (end.clients, end.unseen)
    start = bench.scores(bench.prepared.weights, judge=False)
    assert (found.clients[0], found.unseen[0]) == (start.clients, start.unseen)


def test_all_methods_train_on_the_same_windows_with_judge_windows_held_back(bench: Bench) -> None:
    plain = replace(bench.config, redistill=replace(bench.config.redistill, mode="none"))
    with_judges = replace(bench.config, redistill=replace(bench.config.redistill, mode="ensemble"))
    parts = [shared_world(c).parts for c in (plain, with_judges)]
    for client, part in parts[0].items():
        assert len(part.judge) > 0
        assert np.array_equal(part.train.x, parts[1][client].train.x)


# --- the whole bench

METHODS = (
    Method("fedavg_fp32", "FedAvg fp32", "float32"),
    Method("fedavg_random", "FedAvg fp32 from random", "float32", "random"),
    Method("fedge", "fedge"),
    Method("fedge_2bit", "fedge <2 bits>", student={"quantize.download_bits": 2}),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def result(fleet_file: Path, folder: Path) -> dict[str, Any]:
    settings = {k: v for k, v in FAST.items() if k not in ("seed", "rounds.rounds", "redistill.every")}
    plan = Plan(
        data=str(fleet_file),
        seeds=2,
        rounds=3,
        most_rounds=3,
        tuning_rounds=1,
        rates=(0.01, 0.03),
        epochs=(1,),
        methods=METHODS,
        settings=settings | {"student.epochs": 4, "teacher.epochs": 3},
        workers=1,
    )
    return measure(plan, folder)


def test_the_result_keeps_its_contract(result: dict[str, Any]) -> None:
    assert list(result["methods"]) == [m.name for m in METHODS]
    for row in result["methods"].values():
        assert set(row["score"]) == {"clients", "unseen"}
        assert row["total"] == pytest.approx(row["initial"] + row["uplink"] + row["downlink"])
        assert isinstance(row["rounds"], int)
    assert {"rounds", "total", "total_from_random"} <= set(result["ratio"])
    assert isinstance(result["score_gap"], float)
    json.dumps(result, allow_nan=False)


def test_ratios_and_gap_follow_from_the_rows(result: dict[str, Any]) -> None:
    base, ours = (result["methods"][n] for n in ("fedavg_fp32", "fedge"))
    gap = max(base["end"]["score"][k] - ours["score"][k] for k in ("clients", "unseen"))
    assert result["score_gap"] == pytest.approx(gap)
    if ours["reached"]:
        assert result["ratio"]["total"] == pytest.approx(base["total"] / ours["total"])
        assert gap <= 0.01 + 1e-12
    else:
        assert result["ratio"]["total"] is None


def test_a_smaller_first_download_is_a_smaller_first_download(result: dict[str, Any]) -> None:
    rows = result["methods"]
    assert rows["fedge_2bit"]["initial"] < rows["fedge"]["initial"] < rows["fedavg_fp32"]["initial"]


def test_the_grid_is_stated_with_what_was_chosen_from_it(result: dict[str, Any]) -> None:
    chosen = {row["start"]: row for row in result["grid"] if "rounds" in row}
    tried = {(row["start"], row["rate"], row["epochs"]) for row in result["grid"] if "rounds" not in row}
    assert set(chosen) == {"student", "random"}
    assert len(tried) == 4
    for start, row in chosen.items():
        assert (start, row["rate"], row["epochs"]) in tried
    assert result["methods"]["fedavg_fp32"]["end"]["rounds"] == chosen["student"]["rounds"]


def test_the_table_names_every_method_and_how_bytes_are_counted(result: dict[str, Any]) -> None:
    shown = "\n".join(lines(result))
    assert all(m.label in shown for m in METHODS)
    assert "payload handed to Flower" in shown


@pytest.mark.usefixtures("result")
def test_the_picture_is_sound_and_holds_every_method(folder: Path) -> None:
    text = (folder / "communication.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)  # noqa: S314  (our own)
    name = "{http://www.w3.org/2000/svg}"
    words = [t.text for t in root.iter(f"{name}text")]
    assert all(words.count(m.label) == 2 for m in METHODS), "each label once in each panel"
    curves = list(root.iter(f"{name}polyline"))
    assert len(curves) == 2 * len(METHODS)
    for drawn in curves:
        places = [float(p.split(",")[0]) for p in drawn.attrib["points"].split()]
        assert places == sorted(places), "bytes only grow"


@pytest.mark.parametrize(("seeds", "rounds"), [(0, None), (1, 1)])
def test_too_little_to_measure_is_refused(seeds: int, rounds: int | None) -> None:
    with pytest.raises(InputError, match="seeds"):
        run(None, None, seeds, rounds, None)
