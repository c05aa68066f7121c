"""Re-distillation end to end: made, judged, taken or refused on evidence, sent to everyone."""

import copy
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from federated.build import (
    WINDOWS,
    Fleet,
    Recorder,
    federation_of,
    fleet_of,
    is_training,
    same_state,
    same_weights,
    without_time,
)
from fedge.compress.quantize import bounded
from fedge.config import load_config
from fedge.data.types import Windows
from fedge.distill import Answers
from fedge.errors import SetupError
from fedge.federated import frames, lessons, server, teaching
from fedge.federated.answers import answering
from fedge.federated.client_state import ClientState
from fedge.federated.coding import apply_step, build_codec
from fedge.federated.frames import StepKind
from fedge.federated.journal import Journal
from fedge.federated.plan import Coding
from fedge.federated.prepare import Prepared, prepare
from fedge.federated.redistill import (
    School,
    _sureness,
    ensemble,
    make_candidate,
    server_step,
    teach_teacher,
    teaching_signal,
)
from fedge.federated.server_data import ServerData
from fedge.federated.state import ClientRecord, FederationState
from fedge.federated.strategy import Judgement, close_round
from fedge.federated.training import tensors
from fedge.models.normalised import Normalised
from fedge.models.student import activations, forward
from fedge.models.student_families import build_spec
from fedge.observe import silent
from fedge.plugins import load
from fedge.simulation.world import World, build_world
from fedge.tasks import outputs_of
from fedge.update import Update

SETTINGS: dict[str, Any] = {"epochs": 8, "learning_rate": 0.01, "interpolation": 1.0, "mode": "teacher"}


@pytest.fixture(scope="module")
def knowing(small_world: World, small_prepared: Prepared) -> Prepared:
    """A teacher that saw everyone's training data, and those data to teach with."""
    everyone = Windows.joined([small_world.parts[c].train for c in small_world.roles.participants])
    teacher = replace(small_world.config.teacher, epochs=15)
    config = replace(small_world.config, teacher=teacher)
    data = small_world.dataset
    other = prepare(config, small_world.task, ServerData(everyone), len(data.classes), data.channels, silent)
    x = torch.from_numpy(small_prepared.plan.preprocess.apply(everyone.x))
    mean_scale = [(p.plan.preprocess.mean, p.plan.preprocess.scale) for p in (other, small_prepared)]

    def signal(windows: torch.Tensor) -> torch.Tensor:
        """The windows arrive as this federation's student takes them; the teacher has its own scaling."""
        (mean, scale), (own_mean, own_scale) = (
            [torch.tensor(v)[:, None] for v in pair] for pair in mean_scale
        )
        return other.teacher((windows * own_scale + own_mean - mean) / scale)  # type: ignore[no-any-return]

    return replace(small_prepared, teacher=_Teacher(signal).eval(), x=x, y=torch.from_numpy(everyone.y))


class _Teacher(torch.nn.Module):
    def __init__(self, signal: Any) -> None:
        super().__init__()
        self._signal = signal

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self._signal(x)  # type: ignore[no-any-return]


def _ignorant(prepared: Prepared) -> Prepared:
    """A teacher that is sure of the wrong class, and labels as wrong."""

    def signal(windows: torch.Tensor) -> torch.Tensor:
        return -20 * prepared.teacher(windows)  # type: ignore[no-any-return]

    return replace(prepared, teacher=_Teacher(signal).eval(), y=(prepared.y + 1) % 3)


def _run(
    world: World, prepared: Prepared, folder: Path, rounds: int = 4
) -> tuple[FederationState, Fleet, list[dict[str, Any]], Recorder]:
    redistil = replace(world.config.redistill, **SETTINGS)
    settings = replace(world.config.rounds, rounds=rounds)
    fleet = fleet_of(world)
    with Journal(folder / "journal") as journal:
        federation, watcher = federation_of(
            world, prepared, fleet, journal, redistill=redistil, rounds=settings
        )
        return server.run_rounds(federation), fleet, journal.rounds(), watcher


Ran = tuple[FederationState, Fleet, list[dict[str, Any]], Recorder]


@pytest.fixture(scope="module")
def heard(small_world: World, knowing: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The run whose teacher knows more."""
    return _run(small_world, knowing, tmp_path_factory.mktemp("heard"))


def test_a_teacher_that_knows_more_is_heard(small_world: World, heard: Ran) -> None:
    state, fleet, records, watcher = heard
    assert [bool(r["redistillation"]) for r in records] == [False, False, True, False]
    evidence = records[2]["redistillation"]
    assert evidence["accepted"]
    assert (evidence["round"], evidence["judged_in_round"], evidence["mode"]) == (2, 3, "teacher")
    assert evidence["candidate"] >= evidence["aggregate"]
    assert len(evidence["judges"]) == small_world.config.redistill.judges
    assert all(j["windows"] == 9 for j in evidence["judges"])
    weighed = sum(j["windows"] * j["candidate"] for j in evidence["judges"]) / (9 * len(evidence["judges"]))
    assert evidence["candidate"] == pytest.approx(weighed)
    assert [e["accepted"] for e in watcher.of("redistillation")] == [True]
    assert same_weights(ClientState.load(fleet.store("1")).weights, state.weights)


def test_an_accepted_student_reaches_every_client_in_the_next_round_and_is_counted(heard: Ran) -> None:
    state, fleet, records, _ = heard
    judges = {j["client"] for j in records[2]["redistillation"]["judges"]}
    for client, tasks in fleet.tasks.items():
        training = [frames.decode_task(t) for t in tasks if is_training(t)]
        fourth = training[3]
        assert isinstance(fourth, frames.Train)
        (group,) = fourth.steps
        assert group[0].kind in (StepKind.CHANGE, StepKind.SNAPSHOT)
        assert len(group[0].payload) == records[2]["redistillation"]["bytes"]
        sent = [len(t) for t in tasks if is_training(t)]
        assert records[2]["down"][client] == sent[2]
        assert records[3]["down"][client] == sent[3] + sent[4]
        third = training[2]
        assert isinstance(third, frames.Train)
        assert (third.candidate is not None) == (client in judges)
        assert same_weights(ClientState.load(fleet.store(client)).weights, state.weights)


def test_a_teacher_that_knows_less_is_refused_and_changes_nothing(
    small_world: World, small_prepared: Prepared, tmp_path: Path
) -> None:
    (tmp_path / "with").mkdir()
    state, _, records, _ = _run(small_world, _ignorant(small_prepared), tmp_path / "with")
    evidence = records[2]["redistillation"]
    assert not evidence["accepted"]
    assert evidence["reason"]
    losses = [(j["aggregate_loss"], j["candidate_loss"]) for j in evidence["judges"]]
    assert sum(c for _, c in losses) > sum(a for a, _ in losses)
    without, _, others, _ = _without(small_world, small_prepared, tmp_path)
    assert same_weights(state.weights, without.weights)
    assert [r["scores"] for r in records] == [r["scores"] for r in others]
    judges = {j["client"] for j in evidence["judges"]}
    for client in small_world.roles.participants:
        more = records[2]["down"][client] - others[2]["down"][client]
        assert (more > evidence["bytes"]) if client in judges else (more == 0)


def _without(
    world: World, prepared: Prepared, folder: Path
) -> tuple[FederationState, Fleet, list[dict[str, Any]], Recorder]:
    redistil = replace(world.config.redistill, mode="none")
    fleet = fleet_of(world)
    with Journal(folder / "without") as journal:
        federation, watcher = federation_of(world, prepared, fleet, journal, redistill=redistil)
        return server.run_rounds(federation), fleet, journal.rounds(), watcher


def _school(world: World, prepared: Prepared, number: int = 2, **settings: Any) -> School:
    config = replace(world.config, redistill=replace(world.config.redistill, **settings))
    return School(config, world.task, prepared, prepared.weights, (), number)


def test_a_candidate_is_the_same_each_time_and_keeps_zeros(
    small_world: World, small_prepared: Prepared
) -> None:
    codec = build_codec(small_prepared.plan.downlink)
    school = _school(small_world, small_prepared, epochs=2)
    step = make_candidate(school)
    assert step == make_candidate(school)
    assert step != make_candidate(replace(school, number=4))
    taken = apply_step(step, small_prepared.weights, small_prepared.support, codec)
    assert not same_weights(taken, small_prepared.weights)
    for name, alive in small_prepared.support.alive.items():
        assert not taken[name][~alive].any()


def _moved(prepared: Prepared) -> dict[str, Any]:
    """An aggregate after some rounds: its weights lie on no grid any more."""
    random = np.random.default_rng(1)
    return {
        n: w + prepared.support.alive[n] * random.normal(0, 0.05, w.shape).astype(np.float32)
        for n, w in prepared.weights.items()
    }


def test_no_interpolation_keeps_the_aggregate(small_world: World, small_prepared: Prepared) -> None:
    codec, aggregate = build_codec(small_prepared.plan.downlink), _moved(small_prepared)
    for bits in (2, 3, 8):
        school = _school(small_world, small_prepared, interpolation=0.0, bits=bits)
        step = make_candidate(replace(school, weights=aggregate))
        assert same_weights(apply_step(step, aggregate, small_prepared.support, codec), aggregate)


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_interpolation_goes_that_share_of_the_way(
    share: float, small_world: World, small_prepared: Prepared
) -> None:
    p, codec, aggregate = small_prepared, build_codec(small_prepared.plan.downlink), _moved(small_prepared)
    fine = replace(small_world.config.quantize, download_bits=8)  # a snapshot would be longer than the change

    def way(share: float) -> dict[str, Any]:
        school = _school(small_world, p, interpolation=share, epochs=2, bits=4)
        config = replace(school.config, quantize=fine)
        step = make_candidate(replace(school, config=config, weights=aggregate))
        assert step.kind is StepKind.CHANGE
        taken = apply_step(step, aggregate, p.support, codec)
        return {n: taken[n] - w for n, w in aggregate.items()}

    whole, part = way(1.0), way(share)
    for name, change in whole.items():
        rounding = float(np.abs(change).max()) / 7
        assert rounding > 0
        np.testing.assert_allclose(part[name], share * change, atol=rounding)


def test_a_proximal_term_keeps_the_student_nearer_to_the_aggregate(
    small_world: World, small_prepared: Prepared
) -> None:
    p = small_prepared

    def distance(proximal: float) -> float:
        change = server_step(
            _school(
                small_world, p, mode="gradient", gradient_weight=1.0, gradient_epochs=3, proximal=proximal
            )
        )
        return float(np.sqrt(sum(np.square(c).sum() for c in change.values())))

    free, held, fast = (distance(v) for v in (0.0, 1.0, 100.0))
    assert free > 1.2 * held > 1.2 * fast > 0


def test_the_servers_step_is_the_lesson_times_its_weight(
    small_world: World, small_prepared: Prepared
) -> None:
    p = small_prepared
    once, twice, none = (
        server_step(_school(small_world, p, mode="gradient", gradient_weight=w)) for w in (0.5, 1.0, 0.0)
    )
    assert {n: c.shape for n, c in once.items()} == p.support.shapes()
    for name in once:
        np.testing.assert_array_equal(2 * once[name], twice[name])
        assert twice[name].any()
        assert not none[name].any()


def test_the_servers_step_fades_so_that_the_clients_have_the_last_word(
    small_world: World, small_prepared: Prepared
) -> None:
    last = small_world.config.rounds.rounds

    def size(number: int, final: float, weight: float = 1.0) -> float:
        settings = {"mode": "gradient", "gradient_weight": weight, "gradient_final": final}
        change = server_step(_school(small_world, small_prepared, number, **settings))
        return float(np.sqrt(sum(np.square(c).sum() for c in change.values())))

    assert size(last, 0.0) == 0
    assert size(last, 0.25) == pytest.approx(size(last, 1.0) / 4, rel=1e-5)
    assert size(1, 0.0) == pytest.approx(size(1, 1.0), rel=1e-5)


@pytest.mark.parametrize("mode", ["teacher", "ensemble", "gradient"])
def test_a_lesson_says_nothing_of_classes_that_the_server_has_no_window_of(
    small_world: World, small_prepared: Prepared, mode: str
) -> None:
    """Without that, every window that is of another class is a lesson that there is none of the missing."""
    missing = int(small_prepared.y[0])
    kept = small_prepared.y != missing
    lacking = replace(small_prepared, x=small_prepared.x[kept], y=small_prepared.y[kept])
    full, less = (
        server_step(_school(small_world, p, 1, mode=mode, proximal=0.0)) for p in (small_prepared, lacking)
    )
    support = small_prepared.support
    full, less = (support.scatter(c) for c in (full, less))
    # What is left is the decay of weights, which AdamW does by itself.
    moved, still = (np.abs(c["head.weight"][missing]).max() for c in (full, less))
    assert still < moved / 20


# ----- who teaches: the ensemble


def _probabilities(models: int, n: int, classes: int, seed: int) -> torch.Tensor:
    return torch.randn(models, n, classes, generator=torch.Generator().manual_seed(seed)).softmax(dim=2)


def test_the_weights_of_each_class_add_up_to_one_and_the_surer_model_has_more() -> None:
    """Against a loop: the mean probability that a model gives a class on windows of that class."""
    y = torch.tensor([0, 2, 2, 1, 0, 1, 2])
    said = _probabilities(3, len(y), 3, 0)
    sure = _sureness(said, y, taught=True)
    for label in range(3):
        means = [float(said[m, y == label, label].mean()) for m in range(3)]
        np.testing.assert_allclose(sure[:, label], np.array(means) / sum(means), rtol=1e-5)
    better = said.clone()
    better[1] = 0.1 * said[1] + 0.9 * torch.nn.functional.one_hot(y, 3)
    assert bool((_sureness(better, y, taught=True)[1] > sure[1]).all())


@pytest.mark.parametrize(("taught", "expected"), [(True, [0.0, 0.5, 0.5]), (False, [1 / 3, 1 / 3, 1 / 3])])
def test_a_class_that_the_server_never_saw_is_left_to_those_who_did(
    taught: bool, expected: list[float]
) -> None:
    y = torch.tensor([0, 2, 2, 0])
    sure = _sureness(_probabilities(3, len(y), 4, 1), y, taught)
    for unseen in (1, 3):
        np.testing.assert_allclose(sure[:, unseen], expected, rtol=1e-6)
    torch.testing.assert_close(sure.sum(dim=0), torch.ones(4))


def test_a_teacher_alone_keeps_its_classes_and_a_model_that_is_never_right_does_no_harm() -> None:
    y = torch.tensor([0, 0])
    assert _sureness(_probabilities(1, 2, 3, 0), y, taught=True).tolist() == [[1.0, 1.0, 1.0]]
    wrong = torch.tensor([[[0.0, 1.0, 0.0]] * 2] * 2)
    sure = _sureness(wrong, y, taught=False)
    assert bool(torch.isfinite(sure).all())
    torch.testing.assert_close(sure.sum(dim=0), torch.ones(3))


def test_the_ensemble_mixes_probabilities_class_by_class(
    small_world: World, small_prepared: Prepared
) -> None:
    """Against a loop over models, windows and classes, in float64; with a member that knows its classes."""
    p = small_prepared
    member = {n: w + np.float32(0.02) * p.support.alive[n] for n, w in p.weights.items()}
    school = replace(_school(small_world, p, mode="ensemble"), members=(member,))
    asked = teaching.ask(school.config, p.plan.spec, p.teacher)
    says = ensemble(school, asked)(p.x[:7]).outputs.double().softmax(dim=1)
    numerics = bounded(p.plan.spec, p.plan.scales)
    with torch.no_grad():
        logits = [p.teacher(p.x)] + [
            forward(p.plan.spec, tensors(w), p.x, numerics) for w in (p.weights, member)
        ]
    given = [np.asarray(v.double().softmax(dim=1)) for v in logits]
    y = p.y.numpy()
    sure = np.array([[g[y == c, c].mean() for c in range(3)] for g in given])
    for row in range(7):
        mixed = [sum(sure[m, c] / sure[:, c].sum() * given[m][row, c] for m in range(3)) for c in range(3)]
        np.testing.assert_allclose(says[row], np.array(mixed) / sum(mixed), rtol=1e-4, atol=1e-6)


def test_the_mode_says_whether_the_teacher_teaches_alone(
    small_world: World, small_prepared: Prepared
) -> None:
    x = small_prepared.x[:5]
    with torch.no_grad():
        teacher = small_prepared.teacher(x)
    alone = teaching_signal(_school(small_world, small_prepared, mode="teacher"))(x).outputs
    torch.testing.assert_close(alone, teacher)
    for mode in ("ensemble", "gradient"):
        mixed = teaching_signal(_school(small_world, small_prepared, mode=mode))(x).outputs
        assert not torch.allclose(mixed.softmax(1), teacher.softmax(1), atol=1e-3)


@pytest.mark.parametrize("name", ["remaining_life", "anomaly"])
def test_numbers_and_reconstructions_are_averaged(name: str) -> None:
    """The students differ from the teacher by a known shift of the last layer's bias."""
    task = load("task", name).TASK
    x = torch.randn(9, 2, 16, generator=torch.Generator().manual_seed(0))
    outputs = outputs_of(task, 0, 2)
    spec = answering(task, build_spec("plain", "tiny", (16, 2), outputs), x, torch.arange(9.0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        weights = {n: v.detach().numpy() for n, v in Normalised(spec).folded().items()}
    shifted = {n: w + np.float32(3 if n == "head.bias" else 0) for n, w in weights.items()}
    scales = dict.fromkeys(activations(spec), 1.0)
    plan = SimpleNamespace(spec=spec, scales=scales)
    prepared: Any = SimpleNamespace(plan=plan, x=x, y=torch.arange(9.0))
    config = load_config(None, {"task": name})
    school = School(config, task, prepared, weights, (shifted,), 1)
    with torch.no_grad():
        base = forward(spec, tensors(weights), x, bounded(spec, scales))
    features = torch.ones(9, 4)
    signal = ensemble(school, lambda _x: Answers(base + 6, features))(x)
    torch.testing.assert_close(signal.outputs, base + 3)
    assert signal.features is features
    assert ensemble(school, None)(x).features is None


# ----- gradient mode


Decide = Callable[[int], bool]


def _gradient(
    world: World, prepared: Prepared, folder: Path, monkeypatch: pytest.MonkeyPatch, decide: Decide
) -> Ran:
    """Six rounds in gradient mode; ``decide`` is the judges' verdict, by the candidate's round."""
    made = iter(range(1000))

    def verdict(_config: Any, _scores: Any) -> Judgement:
        return Judgement(decide(next(made)), "as told", None, None)

    monkeypatch.setattr(server, "judge", verdict)
    redistil = replace(world.config.redistill, mode="gradient", every=3, epochs=1, gradient_weight=0.5)
    fleet = fleet_of(world)
    folder.mkdir()
    with Journal(folder / "journal") as journal:
        federation, watcher = federation_of(
            world, prepared, fleet, journal, redistill=redistil, rounds=replace(world.config.rounds, rounds=6)
        )
        return server.run_rounds(federation), fleet, journal.rounds(), watcher


def test_the_servers_step_begins_once_the_judges_agree_and_stops_when_they_refuse(
    small_world: World, small_prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nudged: list[int] = []

    def spy(school: School) -> Any:
        nudged.append(school.number)
        return server_step(school)

    monkeypatch.setattr(lessons, "server_step", spy)
    _, _, records, _ = _gradient(
        small_world, small_prepared, tmp_path / "a", monkeypatch, lambda number: number == 0
    )
    tried = [r["redistillation"]["round"] for r in records if r["redistillation"]]
    assert tried == [1, 3]  # as soon as it can be judged, and then every third round
    assert [r["round"] for r in records if r["redistillation"]] == [2, 4]
    assert nudged == [3, 4]  # accepted in round 2, refused in round 4


def test_the_servers_step_costs_the_clients_no_byte_but_the_judges_candidate(
    small_world: World, small_prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_step = _gradient(small_world, small_prepared, tmp_path / "a", monkeypatch, lambda _: True)
    without = _gradient(small_world, small_prepared, tmp_path / "b", monkeypatch, lambda _: False)
    assert not same_weights(with_step[0].weights, without[0].weights)
    for client, tasks in with_step[1].tasks.items():
        training = [frames.decode_task(t) for t in tasks if is_training(t)]
        for task in training:
            assert isinstance(task, frames.Train)
            judges = {
                j["client"]
                for r in with_step[2]
                if r["redistillation"] and r["round"] == task.round
                for j in r["redistillation"]["judges"]
            }
            assert (task.candidate is not None) == (client in judges)
            for group in task.steps:  # never a step of its own: it travels within the update
                assert [s.kind for s in group] == [StepKind.UPDATE]


def test_the_servers_step_is_added_to_the_mean_update(small_world: World, small_prepared: Prepared) -> None:
    p, codec = small_prepared, build_codec(Coding("raw", {}))
    random = np.random.default_rng(0)
    nudge = {n: random.normal(0, 0.01, s).astype(np.float32) for n, s in p.support.shapes().items()}
    mean = {n: random.normal(0, 0.01, s).astype(np.float32) for n, s in p.support.shapes().items()}
    begun = FederationState(
        0, p.weights, codec.init(p.support.shapes()), clients={"a": ClientRecord(0, b"8 bytes!")}
    )
    told: dict[str, Any] = {"a": b"8 bytes!"}
    total = Update.of(mean, 1, 0)
    after = close_round(
        small_world.config, begun, total, told, told, (), None, nudge, p.support, codec
    ).weights
    for name, alive in p.support.alive.items():
        moved = after[name][alive] - p.weights[name][alive]
        np.testing.assert_allclose(moved, total.mean()[name] + nudge[name], atol=1e-6)


# ----- judges on the server


@pytest.fixture(scope="module")
def held_back(small_world: World) -> World:
    """Four clients' data are the server's, of which two people judge."""
    config = replace(
        small_world.config,
        data=replace(small_world.config.data, server_clients=("0", "1", "2", "3")),
        redistill=replace(small_world.config.redistill, judge="server", mode="teacher"),
    )
    return build_world(config)


def test_people_held_back_are_seen_neither_by_the_teacher_nor_by_the_student(held_back: World) -> None:
    data = held_back.server_data()
    assert held_back.judges() == ("2", "3")
    assert set(data.judges) == {"2", "3"}
    for name, windows in data.judges.items():
        np.testing.assert_array_equal(windows.x, held_back.dataset.clients[name].x)
    for name in ("2", "3"):
        for window in held_back.dataset.clients[name].x:
            assert not (data.labelled.x == window).all(axis=(1, 2)).any()
    assert len(data.labelled) == sum(len(held_back.dataset.clients[c]) for c in ("0", "1"))
    assert not any(len(p.judge) for p in held_back.parts.values())  # the clients keep nothing back


def test_judges_on_the_server_cost_the_clients_no_byte(held_back: World, tmp_path: Path) -> None:
    data, settings = held_back.dataset, replace(held_back.config.redistill, epochs=2)
    prepared = prepare(
        held_back.config, held_back.task, held_back.server_data(), len(data.classes), data.channels, silent
    )
    sent, records = [], []
    for mode in ("teacher", "none"):
        fleet = fleet_of(held_back)
        with Journal(tmp_path / mode) as journal:
            federation, _ = federation_of(
                held_back,
                replace(prepared, teacher=_ignorant(prepared).teacher),  # refused: the weights stay the same
                fleet,
                journal,
                redistill=replace(settings, mode=mode),
                rounds=replace(held_back.config.rounds, rounds=3),
            )
            server.run_rounds(federation)
            sent.append(fleet.tasks)
            records.append(journal.rounds())
    evidence = records[0][2]["redistillation"]
    assert not evidence["accepted"]
    assert [j["client"] for j in evidence["judges"]] == ["2", "3"]
    assert [j["windows"] for j in evidence["judges"]] == [WINDOWS, WINDOWS]
    assert all(j["candidate_loss"] > j["aggregate_loss"] for j in evidence["judges"])
    for with_judges, without in zip(*(r for r in records), strict=True):
        assert with_judges["down"] == without["down"]
        assert with_judges["up"] == without["up"]
    for client, tasks in sent[0].items():
        training = [t for t in tasks if is_training(t)]
        assert training == [t for t in sent[1][client] if is_training(t)]


# ----- the teacher learns too


def test_the_teacher_comes_nearer_to_the_ensemble_on_windows_without_labels(
    small_world: World, small_prepared: Prepared
) -> None:
    others = small_world.parts[small_world.roles.participants[0]].train
    more = torch.from_numpy(small_prepared.plan.preprocess.apply(others.x))
    prepared = replace(small_prepared, unlabelled=more, teacher=copy.deepcopy(small_prepared.teacher))
    school = _school(small_world, prepared, mode="ensemble", teacher_epochs=20, teacher_rate=3e-3)
    signal = ensemble(school, None)

    def distance() -> float:
        with torch.no_grad():
            wanted, says = signal(more).outputs.softmax(1), prepared.teacher(more).log_softmax(1)
            return float(torch.nn.functional.kl_div(says, wanted, reduction="batchmean"))

    before = distance()
    teach_teacher(school)
    assert distance() < 0.6 * before
    assert not prepared.teacher.training


def _taught(
    world: World, prepared: Prepared, folder: Path, stop: int = 0
) -> tuple[FederationState, list[dict[str, Any]], dict[str, bytes]]:
    """Six rounds with a teacher that learns every second one; ``stop``: after so many it is killed once."""
    redistil = replace(world.config.redistill, mode="ensemble", every=2, teacher_epochs=1)
    fleet = fleet_of(world)
    settings = replace(world.config.rounds, rounds=6)
    for last in ([stop] if stop else []) + [0]:
        with Journal(folder / "journal") as journal:
            federation, watcher = federation_of(
                world, prepared, fleet, journal, redistill=redistil, rounds=settings
            )

            def die(kind: str, fields: Mapping[str, object], last: int = last) -> None:
                if kind == "round" and fields["round"] == last:
                    raise KeyboardInterrupt

            watcher._stop = die
            with suppress(KeyboardInterrupt):
                state = server.run_rounds(federation)
            stages = {f"teacher-{n}": journal.stage(f"teacher-{n}") for n in range(7)}
            records = [without_time(r) for r in journal.rounds()]
    return state, records, {n: s for n, s in stages.items() if s is not None}


def test_what_the_teacher_has_learned_survives_a_crash_bit_for_bit(
    small_world: World, small_prepared: Prepared, tmp_path: Path
) -> None:
    before = {n: v.clone() for n, v in small_prepared.teacher.state_dict().items()}
    (tmp_path / "whole").mkdir()
    whole, records, stages = _taught(small_world, small_prepared, tmp_path / "whole")
    assert list(stages) == ["teacher-4"]  # round 6 is the last: nobody would judge; older ones are dropped
    assert whole.taught == 4
    for stop in (2, 3, 4):
        folder = tmp_path / str(stop)
        folder.mkdir()
        again, others, other_stages = _taught(small_world, small_prepared, folder, stop)
        assert same_state(again, whole)
        assert others == records
        assert other_stages == stages
    for name, value in small_prepared.teacher.state_dict().items():
        assert torch.equal(value, before[name])  # a copy learns: the prepared one is for everybody


def test_a_teacher_that_the_journal_has_lost_is_missed(
    small_world: World, small_prepared: Prepared, tmp_path: Path
) -> None:
    with Journal(tmp_path / "journal") as journal:
        federation, _ = federation_of(
            small_world,
            small_prepared,
            fleet_of(small_world),
            journal,
            redistill=replace(small_world.config.redistill, teacher_epochs=1),
        )
        state = FederationState(3, small_prepared.weights, {}, taught=2)
        with pytest.raises(SetupError, match="the teacher is missing"):
            lessons.make_copy(federation, state)
        assert lessons.make_copy(federation, replace(state, taught=0)).prepared.teacher is not (
            small_prepared.teacher
        )
