"""Made-up data for every kind of task, and a whole small life on them, in this process."""

from pathlib import Path
from typing import Any

import numpy as np
from federated.build import FAST, federation_of, fleet_of, write_fleet
from numpy.typing import NDArray

from fedge.config import Config, load_config
from fedge.federated.journal import Journal
from fedge.federated.prepare import prepare
from fedge.federated.server import run_rounds
from fedge.observe import silent
from fedge.simulation.scoring import Scorer
from fedge.simulation.summary import Run, make_report
from fedge.simulation.world import World, build_world
from fedge.tasks import Task

CLIENTS, WINDOWS = 8, 40

_Data = tuple[NDArray[Any], NDArray[Any]]


def write_data(task: Task, path: Path) -> Path:
    """Eight clients with 40 windows or images each, of the task's kind."""
    if task.target == "class" and not task.images:
        return write_fleet(path)
    random = np.random.default_rng(5)
    make = _images if task.images else {"number": _wearing, "anomaly": _failing}[task.target]
    parts = [make(random) for _ in range(CLIENTS)]
    x, y = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    np.savez(path, X=x, y=y, client=np.repeat(np.arange(CLIENTS), WINDOWS))
    return path


def _images(random: np.random.Generator) -> _Data:
    """A bright bar on the left, in the middle or on the right, 8 x 8 pixels, in each client's own light."""
    y = np.arange(WINDOWS) % 3
    x = random.normal(0, 0.5, (WINDOWS, 8, 8, 1)) + random.normal()
    for image, place in zip(x, 1 + 3 * y, strict=True):
        image[:, place - 1 : place + 1] += 1.5
    return x.astype(np.float32), y


def _wearing(random: np.random.Generator) -> _Data:
    """Three machines' channels that drift off as life runs out; the number is what is left of it."""
    left = np.linspace(60, 1, WINDOWS)
    level = (1 - left / 60)[:, None, None] * np.array([2.0, -2.0, 0.0])
    return (level + random.normal(0, 0.4, (WINDOWS, 16, 3))).astype(np.float32), left.astype(np.float32)


def _failing(random: np.random.Generator) -> _Data:
    """Normal windows, and at the end of life a tenth of them with another level."""
    y = (np.arange(WINDOWS) >= 0.9 * WINDOWS).astype(np.int64)
    x = random.normal(0, 0.5, (WINDOWS, 16, 3)) + 3 * y[:, None, None] * np.array([1.0, -1.0, 0.0])
    return x.astype(np.float32), y


def config_for(task: Task, data: Path, **settings: Any) -> Config:
    """Settings with which a whole life takes about two seconds."""
    changed = {key.replace("__", "."): value for key, value in settings.items()}
    return load_config(None, FAST | {"task": task.name, "data.source": str(data)} | changed, name="tiny")


def live(world: World, folder: Path) -> dict[str, Any]:
    """Prepare, rounds, releases, report: everything but the processes."""
    config, data = world.config, world.dataset
    made = prepare(config, world.task, world.server_data(), len(data.classes), data.channels, silent)
    with Journal(folder / "journal") as journal:
        federation, watcher = federation_of(world, made, fleet_of(world), journal, folder)
        state = run_rounds(federation)
        assert watcher.of("refused") == []
        run = Run(
            world, made, state, journal.rounds(), None, Scorer.of(world, made.plan), folder, "in this process"
        )
        return make_report(run)


def whole_life(task: Task, folder: Path, **settings: Any) -> dict[str, Any]:
    """The report of a life on made-up data."""
    data = write_data(task, folder / "data.npz")
    return live(build_world(config_for(task, data, **settings)), folder)
