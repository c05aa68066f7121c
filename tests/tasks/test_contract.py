"""What every task in the folder offers."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fedge import plugins
from fedge.models.student import SIZES, Normalised, forward
from fedge.models.teacher import SIZES as TEACHERS
from fedge.tasks import Task

TASKS: dict[str, Task] = {n: plugins.load("task", n).TASK for n in plugins.names("task")}
every_task = pytest.mark.parametrize("task", list(TASKS.values()), ids=list(TASKS))
WINDOWS = [(4, 1), (9, 3), (128, 6)]
every_window = pytest.mark.parametrize("window", WINDOWS)


def _x(n: int, window: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.randn(n, window[1], window[0], generator=torch.Generator().manual_seed(seed))


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@every_task
def test_a_task_has_the_name_of_its_file(task: Task) -> None:
    assert plugins.load("task", task.name).TASK is task
    assert task.metric


@every_task
def test_a_higher_score_is_better(task: Task) -> None:
    y = np.array([0, 1, 2, 2, 1, 0])
    right = np.eye(3, dtype=np.float32)[y]
    half = right.copy()
    half[:3] = right[:3, ::-1] * 0.5 + right[3:] * 0.1
    wrong = np.roll(right, 1, axis=1)
    scores = [task.score(s, y) for s in (wrong, half, right)]
    assert scores == sorted(scores)
    assert scores[0] < scores[2]
    assert all(isinstance(s, float) for s in scores)


@every_task
@every_window
@pytest.mark.parametrize("size", sorted(TEACHERS))
def test_a_teacher_answers_windows(task: Task, window: tuple[int, int], size: str) -> None:
    teacher = task.teacher(size, window, 5).eval()
    with torch.no_grad():
        assert teacher(_x(3, window)).shape == (3, 5)


@every_task
@every_window
@pytest.mark.parametrize("size", sorted(SIZES))
def test_a_student_answers_the_same_windows(task: Task, window: tuple[int, int], size: str) -> None:
    spec = task.student(size, window, 5)
    assert (spec.time, spec.channels, spec.classes) == (*window, 5)
    with torch.no_grad():
        assert forward(spec, Normalised(spec).folded(), _x(3, window)).shape == (3, 5)


@every_task
def test_the_loss_falls_towards_the_labels(task: Task) -> None:
    y = torch.tensor([0, 2, 1])
    logits = torch.zeros(3, 3, requires_grad=True)
    value = task.loss(logits, y)
    value.backward()  # type: ignore[no-untyped-call]
    assert value.shape == ()
    assert logits.grad is not None
    assert float(task.loss(logits.detach() - logits.grad, y)) < float(value.detach())


@every_task
@pytest.mark.parametrize("window", [(1, 1), *WINDOWS])
@pytest.mark.parametrize("n", [1, 5])
def test_augmentation_keeps_the_shape_and_stays_finite(task: Task, window: tuple[int, int], n: int) -> None:
    for scale in (0.0, 1.0, 1e3):
        x = scale * _x(n, window)
        varied = task.augment(x, _seeded(1))
        assert (varied.shape, varied.dtype) == (x.shape, torch.float32)
        assert bool(torch.isfinite(varied).all())


@every_task
@every_window
def test_augmentation_follows_from_its_generator_only(task: Task, window: tuple[int, int]) -> None:
    x = _x(4, window)
    kept = x.clone()
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = task.augment(x, _seeded(1))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(9)
    assert torch.equal(task.augment(x, _seeded(1)), first)
    assert not torch.equal(task.augment(x, _seeded(2)), first)
    assert torch.equal(x, kept)


@every_task
def test_augmentation_varies_each_window_in_its_own_way(task: Task) -> None:
    x = _x(1, (64, 2)).expand(3, 2, 64)
    varied = task.augment(x, _seeded(1))
    assert not torch.allclose(varied[0], varied[1])
    assert not torch.allclose(varied[1], varied[2])


@every_task
def test_an_augmented_window_is_still_recognised(task: Task) -> None:
    """Nearer to the window it was made from than to windows of other levels."""
    levels = torch.tensor([[3.0, 3.0], [3.0, -3.0], [-3.0, 3.0], [-3.0, -3.0]])
    x = levels.repeat(50, 1)[:, :, None] + 0.5 * _x(200, (64, 2))
    varied = task.augment(x, _seeded(1))
    distance = torch.cdist(varied.mean(dim=2), levels)
    assert distance.argmin(dim=1).tolist() == [0, 1, 2, 3] * 50
