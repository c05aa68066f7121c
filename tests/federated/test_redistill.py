"""Re-distillation end to end: made, judged, taken or refused on evidence, sent to everyone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from federated.build import Fleet, Recorder, federation_of, fleet_of, is_training, same_weights
from fedge.config import Config
from fedge.federated import frames, server
from fedge.federated.client_state import ClientState
from fedge.federated.coding import apply_step, build_codec
from fedge.federated.frames import StepKind
from fedge.federated.journal import Journal
from fedge.federated.prepare import Prepared, prepare
from fedge.federated.redistill import make_candidate, teaching_signal
from fedge.federated.state import FederationState
from fedge.observe import silent
from fedge.simulation.world import World, joined

SETTINGS: dict[str, Any] = {"epochs": 8, "learning_rate": 0.01, "interpolation": 1.0, "mode": "teacher"}


@pytest.fixture(scope="module")
def knowing(small_world: World, small_prepared: Prepared) -> Prepared:
    """A teacher that saw everyone's training data, and those data to teach with."""
    everyone = joined([small_world.parts[c].train for c in small_world.roles.participants])
    teacher = replace(small_world.config.teacher, epochs=15)
    config = replace(small_world.config, teacher=teacher)
    other = prepare(config, small_world.task, everyone, len(small_world.dataset.classes), silent)
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


def _config(world: World, **settings: Any) -> Config:
    return replace(world.config, redistill=replace(world.config.redistill, **settings))


def test_a_candidate_is_the_same_each_time_and_keeps_zeros(
    small_world: World, small_prepared: Prepared
) -> None:
    config, codec = _config(small_world, epochs=2), build_codec(small_prepared.plan.downlink)
    step = make_candidate(config, small_world.task, small_prepared, small_prepared.weights, 2)
    assert step == make_candidate(config, small_world.task, small_prepared, small_prepared.weights, 2)
    assert step != make_candidate(config, small_world.task, small_prepared, small_prepared.weights, 4)
    taken = apply_step(step, small_prepared.weights, small_prepared.support, codec)
    assert not same_weights(taken, small_prepared.weights)
    for name, alive in small_prepared.support.alive.items():
        assert not taken[name][~alive].any()


def test_no_interpolation_keeps_the_aggregate(small_world: World, small_prepared: Prepared) -> None:
    config, codec = _config(small_world, interpolation=0.0), build_codec(small_prepared.plan.downlink)
    step = make_candidate(config, small_world.task, small_prepared, small_prepared.weights, 2)
    assert same_weights(
        apply_step(step, small_prepared.weights, small_prepared.support, codec), small_prepared.weights
    )


def test_the_ensemble_is_the_mean_of_two_answers(small_world: World, small_prepared: Prepared) -> None:
    from fedge.federated.training import tensors
    from fedge.models.student import forward

    x, weights = small_prepared.x[:7], small_prepared.weights
    with torch.no_grad():
        says = torch.softmax(
            teaching_signal(_config(small_world, mode="ensemble"), small_prepared, weights)(x), 1
        )
        teacher = torch.softmax(small_prepared.teacher(x).double(), 1)
        student = torch.softmax(forward(small_prepared.plan.spec, tensors(weights), x).double(), 1)
    torch.testing.assert_close(says.double(), (teacher + student) / 2, rtol=1e-5, atol=1e-6)
    assert (
        teaching_signal(_config(small_world, mode="teacher"), small_prepared, weights)
        is small_prepared.teacher
    )
