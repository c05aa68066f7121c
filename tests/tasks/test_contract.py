"""What every task in the folder offers, and that a whole life runs on it."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedge import plugins
from fedge.distill import check_loss
from fedge.edge.gate import GateInputs, OpenRelease, judge
from fedge.edge.runtime import Runtime
from fedge.errors import ConfigError, DataError
from fedge.federated.answers import agreement, answering, targets
from fedge.metrics import METRICS, RANGES, TARGETS
from fedge.models.normalised import Normalised
from fedge.models.student import forward, scores
from fedge.models.student_families import FAMILIES, SIZES, build_spec
from fedge.models.teacher import SIZES as TEACHERS
from fedge.models.teacher import build_teacher
from fedge.release.manifest import parse
from fedge.simulation.world import build_world
from fedge.tasks import Task, Turning, outputs_of
from tasks.build import config_for, live, whole_life, write_data

TASKS: dict[str, Task] = {n: plugins.load("task", n).TASK for n in plugins.names("task")}
every_task = pytest.mark.parametrize("task", list(TASKS.values()), ids=list(TASKS))
classifying = pytest.mark.parametrize(
    "task", [t for t in TASKS.values() if t.target == "class"], ids=lambda t: t.name
)
CLASSES = 5
STILL = Turning()


def _sizes(task: Task) -> list[tuple[int, ...]]:
    """Shapes of windows or images, channels last."""
    return [(4, 4, 1), (9, 7, 3), (32, 32, 3)] if task.images else [(4, 1), (9, 3), (128, 6)]


def _x(n: int, window: tuple[int, ...], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, window[-1], *window[:-1], generator=generator)


def _y(task: Task, n: int) -> Tensor:
    """Labels or numbers as data have them."""
    if task.target == "number":
        return torch.linspace(-100, 300, n)
    return torch.arange(n) % (2 if task.target == "anomaly" else CLASSES)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _spec(task: Task, window: tuple[int, ...], family: str = "plain", size: str = "tiny") -> Any:
    spec = build_spec(family, size, window, outputs_of(task, CLASSES, window[-1]))
    return answering(task, spec, _x(12, window), _y(task, 12))


def _answers(task: Task, y: Any, off: float) -> Any:
    """Answers ``[n, scores]`` that are right where ``off`` is 0, and the worse the larger it is."""
    random = np.random.default_rng(0)
    if task.target == "class":
        right = np.eye(CLASSES, dtype=np.float32)[y]
        return right + off * random.normal(0, 1, right.shape).astype(np.float32)
    if task.target == "number":
        return (np.asarray(y) + off * 100)[:, None].astype(np.float32)
    return (np.asarray(y) + off * random.normal(0, 1, len(y)))[:, None].astype(np.float32)


@every_task
def test_a_task_has_the_name_of_its_file_and_says_nothing_that_does_not_exist(task: Task) -> None:
    assert plugins.load("task", task.name).TASK is task
    for metric in (task.metric, *task.also):
        assert metric in METRICS
        assert TARGETS[metric] == task.target
    check_loss(plugins.load("distillation loss", task.distillation), task.target, True)


@every_task
def test_a_higher_score_is_better(task: Task) -> None:
    y = _y(task, 60).numpy()
    found = [task.score(_answers(task, y, off), y) for off in (3.0, 0.5, 0.0)]
    assert found == sorted(found)
    assert found[0] < found[2]
    assert found[2] == RANGES[task.metric][1]  # nothing is better than right
    assert all(isinstance(s, float) for s in found)


@every_task
@pytest.mark.parametrize("size", ["small", "base"])
def test_its_teacher_answers_what_the_task_asks_for(task: Task, size: str) -> None:
    assert size in TEACHERS
    for window in _sizes(task):
        outputs = outputs_of(task, CLASSES, window[-1])
        teacher = build_teacher(task.teacher, size, window, outputs).eval()
        with torch.no_grad():
            assert teacher(_x(3, window)).shape == (3, outputs)


@every_task
@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("size", SIZES)
def test_a_student_answers_the_same_windows(task: Task, family: str, size: str) -> None:
    for window in _sizes(task):
        spec, x = _spec(task, window, family, size), _x(3, window)
        assert spec.window == window
        with torch.no_grad():
            outputs = forward(spec, Normalised(spec).folded(), x)
            given = scores(spec, x, outputs)
        assert outputs.shape == (3, outputs_of(task, CLASSES, window[-1]))
        assert given.shape == (3, spec.scores)
        assert bool(torch.isfinite(given).all())
        assert isinstance(task.score(given.numpy(), _y(task, 3).numpy()), float)


@every_task
def test_the_loss_falls_towards_the_targets_and_is_a_mean_over_windows(task: Task) -> None:
    window = _sizes(task)[1]
    spec, x, y = _spec(task, window), _x(12, window), _y(task, 12)
    wanted = targets(spec, x, y)
    outputs = torch.zeros(12, spec.outputs, requires_grad=True)
    value = task.loss(outputs, wanted)
    torch.autograd.backward(value)
    assert value.shape == ()
    assert outputs.grad is not None
    assert float(task.loss(outputs.detach() - outputs.grad, wanted)) < float(value.detach())
    single = [float(task.loss(outputs[i : i + 1].detach(), wanted[i : i + 1])) for i in range(12)]
    assert float(value.detach()) == pytest.approx(sum(single) / 12, rel=1e-5)


@every_task
def test_right_outputs_give_right_answers(task: Task) -> None:
    """What is compared with in training is what the score is about."""
    window = _sizes(task)[1]
    spec, x, y = _spec(task, window), _x(12, window), _y(task, 12)
    wanted = targets(spec, x, y)
    sure = task.target == "class"
    outputs = 10.0 * torch.nn.functional.one_hot(wanted, spec.outputs) if sure else wanted
    given = scores(spec, x, outputs).numpy()
    if task.target == "anomaly":
        assert abs(given).max() < 1e-10  # nothing is out of the ordinary that is reconstructed
    elif task.target == "number":
        np.testing.assert_allclose(given[:, 0], y, atol=1e-3)
    else:
        assert (given.argmax(1) == y.numpy()).all()


@every_task
def test_answers_agree_with_themselves_and_not_with_others(task: Task) -> None:
    spec, y = _spec(task, _sizes(task)[1]), _y(task, 60).numpy()
    right, wrong = (_answers(task, y, off) for off in (0.0, 2.0))
    assert agreement(task, spec, right, right, 0.5).all()
    assert not agreement(task, spec, right, wrong, 0.5).all()
    assert agreement(task, spec, right, wrong, 0.5).shape == (60,)


@every_task
@pytest.mark.parametrize("n", [1, 5])
def test_augmentation_keeps_the_shape_and_stays_finite(task: Task, n: int) -> None:
    smallest = (1, 1, 1) if task.images else (1, 1)
    for window in (smallest, *_sizes(task)):
        for scale in (0.0, 1.0, 1e3):
            x = scale * _x(n, window)
            varied = task.augment(x, _seeded(1), STILL)
            assert (varied.shape, varied.dtype) == (x.shape, torch.float32)
            assert bool(torch.isfinite(varied).all())


@every_task
def test_augmentation_follows_from_its_generator_only(task: Task) -> None:
    for window in _sizes(task):
        x = _x(4, window)
        kept = x.clone()
        torch.manual_seed(0)
        before = torch.random.get_rng_state()
        first = task.augment(x, _seeded(1), STILL)
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.manual_seed(9)
        assert torch.equal(task.augment(x, _seeded(1), STILL), first)
        assert not torch.equal(task.augment(x, _seeded(2), STILL), first)
        assert torch.equal(x, kept)


@every_task
def test_augmentation_varies_each_window_in_its_own_way(task: Task) -> None:
    window = _sizes(task)[-1]
    x = _x(1, window)
    varied = task.augment(x.expand(6, *x.shape[1:]), _seeded(1), STILL)
    assert len({v.numpy().tobytes() for v in varied}) == 6


@classifying
def test_an_augmented_window_is_still_recognised(task: Task) -> None:
    """Nearer to the window it was made from than to windows of other levels."""
    levels = torch.tensor([[3.0, 3.0], [3.0, -3.0], [-3.0, 3.0], [-3.0, -3.0]])
    window = (16, 16, 2) if task.images else (64, 2)
    flat = levels.repeat(50, 1).reshape(200, 2, *[1] * (len(window) - 1))
    varied = task.augment(flat + 0.5 * _x(200, window), _seeded(1), STILL)
    distance = torch.cdist(varied.mean(dim=tuple(range(2, varied.dim()))), levels)
    assert distance.argmin(dim=1).tolist() == [0, 1, 2, 3] * 50


# ----- a whole life on every task

Life = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module", params=list(TASKS))
def life(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, Life]:
    """Prepare, four rounds with re-distillation, two releases, the report; on data of the task's kind."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param)
    return TASKS[request.param], (folder, whole_life(TASKS[request.param], folder))


def test_a_life_ends_with_finite_scores_within_their_range(life: tuple[Task, Life]) -> None:
    task, (_, report) = life
    low, high = RANGES[task.metric]
    assert report["metric"] == task.metric
    for score in (*report["score"].values(), report["teacher"]["score_unseen"]):
        assert math.isfinite(score)
        assert low <= score <= high
    assert set(task.also) <= set(report["more_scores"])
    assert all(r["counted"] == report["clients"] for r in report["rounds_log"])


def test_int8_says_what_the_student_says(life: tuple[Task, Life]) -> None:
    task, (_, report) = life
    found = report["score"]
    for who in ("unseen", "clients"):
        unit = abs(found[who]) if task.target == "number" else 1.0
        assert abs(found[f"{who}_int8"] - found[who]) <= 0.05 * unit  # three of some 60 windows
    assert report["agreement"]["share"] >= 0.97


def test_a_life_is_better_than_no_life(life: tuple[Task, Life]) -> None:
    """Than guessing: a class at random, the middle of all numbers, a coin."""
    task, (folder, report) = life
    guess = {"class": 1 / 3, "anomaly": 0.5}
    if task.target == "number":
        y = np.load(folder / "data.npz")["y"]
        guess["number"] = -float(y.std())
    assert report["score"]["unseen"] > guess[task.target]


def test_the_gates_took_the_releases(life: tuple[Task, Life]) -> None:
    """Of every client that took part; and once more, by hand, on the data of someone unseen."""
    task, (folder, report) = life
    first, last = report["releases"]
    assert {d["reason"] for d in first["decisions"]} == {"no_current"}
    assert all(d["taken"] for d in first["decisions"])
    assert {d["reason"] for d in last["decisions"]} <= {"not_worse", "worse"}
    world = build_world(config_for(task, folder / "data.npz"))
    windows = world.dataset.clients[world.roles.unseen[0]]
    release = folder / report["release"]["path"]
    manifest, model = parse((release / "manifest.json").read_bytes()), (release / "model.onnx").read_bytes()
    tested = GateInputs(windows, latency_factor=None)
    decision = judge(manifest, model, None, tested)
    assert (decision.taken, decision.code) == (True, "no_current")
    again = judge(manifest, model, OpenRelease(manifest, Runtime(model)), tested)
    assert (again.taken, again.code) == (True, "not_worse")
    assert (manifest.threshold is not None) == (task.target == "anomaly")


@every_task
def test_data_of_another_kind_are_refused_in_one_line(task: Task, tmp_path: Path) -> None:
    other = replace(task, images=not task.images, target="class")
    data = write_data(other, tmp_path / "data.npz")
    with pytest.raises((ConfigError, DataError)) as caught:
        live(build_world(config_for(task, data)), tmp_path)
    assert "\n" not in str(caught.value)
