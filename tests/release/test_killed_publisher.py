"""A publisher that is killed for good, again and again: devices go on as if nothing had happened."""

import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from fedge.release import folder
from fedge.release.repository import Repository

from .simulator import Simulator, StockClient, model_of

KILLS = 200 if os.environ.get("FEDGE_FULL") == "1" else 20


def publish_on(simulator: Simulator, ready: Any) -> None:
    """Publish one release after the other, until killed."""
    ready.set()
    while True:
        simulator.publish(max(folder.versions(simulator.folder), default=0) + 1)
        simulator.now += 3 * 86_400
        simulator.repository.refresh()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_killed_at_random_points_it_leaves_the_old_state_or_the_new(tmp_path: Path) -> None:
    """The number of the release that a device sees never falls, and whatever it sees verifies."""
    simulator, rng = Simulator(tmp_path / "releases"), random.Random(3)
    device, seen, left_over = StockClient(tmp_path / "device", simulator.root), 0, 0
    context = multiprocessing.get_context("fork")
    for _ in range(KILLS):
        ready = context.Event()
        publisher = context.Process(target=publish_on, args=(simulator, ready))
        publisher.start()
        assert ready.wait(30)
        time.sleep(rng.uniform(0, 0.15))
        assert publisher.pid is not None
        os.kill(publisher.pid, signal.SIGKILL)
        publisher.join()
        left_over += any(simulator.folder.rglob(".unfinished-*"))
        pointer = device.update(simulator.folder, simulator.now)
        version = 0 if pointer is None else pointer.version
        assert version >= seen
        if pointer is not None:
            assert device.model == model_of(version)
        seen = version
        for old in folder.versions(simulator.folder)[:-3]:  # what a device still needs is in the last ones
            shutil.rmtree(simulator.folder / f"v{old:04d}")
    assert seen > 0
    assert left_over > 0, "no kill hit a write: this tests nothing"
    again = Repository(simulator.folder, simulator.keys.online, lambda: simulator.now)
    again.refresh()
    assert not list(simulator.folder.rglob(".unfinished-*"))
