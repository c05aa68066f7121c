"""What ``fedge bench learning`` and the report say of anomalies beside the task's own score."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedge.config import load_config
from fedge.data.types import ClientData, Dataset, Roles, Windows
from fedge.simulation.summary import more_scores
from fedge.simulation.world import World
from fedge.tasks import anomaly

N = 20


def _windows(level: NDArray[np.float64], y: list[int], trainable: list[bool] | None = None) -> Windows:
    x = np.broadcast_to(level[:, None, None], (len(level), 4, 1)).astype(np.float32)
    usable = None if trainable is None else np.array(trainable)
    return Windows(x, np.array(y, np.int64), np.zeros(len(y), np.int64), usable)


def _levels(x: NDArray[Any]) -> NDArray[np.float32]:
    """The 'model': a window's level is its score."""
    return x.mean(axis=(1, 2))[:, None].astype(np.float32)


def _world(unseen: dict[str, Windows], own: dict[str, tuple[Windows, Windows]]) -> World:
    nothing = next(iter(unseen.values())).take(np.zeros(0, np.int64))
    parts = {c: ClientData(train, nothing, later, 0) for c, (train, later) in own.items()}
    everyone = {c: Windows.joined([train, later]) for c, (train, later) in own.items()} | unseen
    dataset = Dataset("made up", everyone, ("normal", "anomalous"), ("level",))
    config = replace(load_config("watch", {}), task="anomaly")
    return World(config, anomaly.TASK, dataset, Roles((), tuple(own), tuple(unseen)), parts)


def _scores(world: World) -> dict[str, Any]:
    return more_scores(world, {c: _levels(w.x) for c, w in world.held_out().items()}, _levels)


def _naive_f1(levels: NDArray[np.float64], y: list[int], edge: float) -> float:
    hits = sum(v > edge and a == 1 for v, a in zip(levels, y, strict=True))
    alarms, wanted = sum(v > edge for v in levels), sum(a == 1 for a in y)
    return 2 * hits / (alarms + wanted)


def test_a_participant_sets_its_threshold_on_what_it_trains_on() -> None:
    source = np.random.default_rng(1)
    train, later = source.normal(0, 1, N), np.sort(source.normal(1, 2, N))
    y = [0] * 12 + [1] * 8
    unseen = _windows(np.arange(4.0), [0, 0, 1, 1])
    world = _world({"u": unseen}, {"c": (_windows(train, [0] * N), _windows(later, y))})
    assert _scores(world)["f1_own"]["clients"] == pytest.approx(_naive_f1(later, y, max(train)))


@pytest.mark.parametrize("marked", [False, True])
def test_an_unseen_client_sets_it_on_its_first_normal_windows_and_is_scored_on_the_rest(marked: bool) -> None:
    """Of ten normal windows the first five; where it is said which are to be learned from, of those."""
    levels = np.array([1.0, 2.0, 3.0, 2.0, 1.0, 2.0, 9.0, 2.0, 1.0, 1.0, 4.0, 2.5, 8.0, 9.0])
    y = [0] * 10 + [1] * 4
    trainable = [True] * 4 + [False] * 10 if marked else None
    first = 2 if marked else 5
    unseen = _windows(levels, y, trainable)
    world = _world({"u": unseen}, {"c": (_windows(levels, [0] * 14), unseen)})
    expected = _naive_f1(levels[first:], y[first:], max(levels[:first]))
    assert _scores(world)["f1_own"]["unseen"] == pytest.approx(expected)


def test_clients_that_cannot_be_scored_are_left_out_of_the_mean() -> None:
    levels, y = np.array([1.0, 1.0, 0.5, 5.0]), [0, 0, 0, 1]
    healthy = _windows(np.ones(6), [0] * 6)
    broken = _windows(np.array([5.0, 6.0]), [1, 1])  # no normal window: no threshold
    sound = _windows(levels, y)
    world = _world(
        {"u": sound, "healthy": healthy, "broken": broken}, {"c": (sound.take(sound.y == 0), healthy)}
    )
    found = _scores(world)["f1_own"]
    assert found["unseen"] == 1.0, "u alone"
    assert found["clients"] is None


def test_pooled_scores_are_over_all_unseen_windows_together() -> None:
    """Each client alone is perfect; together they are not, because their levels differ."""
    one, other = _windows(np.array([0.0, 1.0]), [0, 1]), _windows(np.array([2.0, 3.0]), [0, 1])
    world = _world({"a": one, "b": other}, {"c": (one.take(one.y == 0), one)})
    found = _scores(world)
    assert found["auroc_pooled"]["unseen"] == 0.75
    assert found["auprc_pooled"]["unseen"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
