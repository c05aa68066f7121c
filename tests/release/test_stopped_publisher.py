"""A publisher that stops on the way, at any operation: devices find the old state or the new one."""

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fedge.errors import SetupError
from fedge.release.chain import read_chain
from fedge.release.offline import renew
from fedge.release.trust import install

from .power import restore, states, watched
from .simulator import Simulator, StockClient, model_of


class KilledError(BaseException):
    """A process that ends here."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is flushed is recorded; the real disk may take its time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def found(simulator: Simulator, home: Path, place: Path) -> int:
    """The version that a new device finds, with its model."""
    device = StockClient(home, simulator.root)
    pointer = device.update(place, simulator.now)
    assert pointer is not None
    assert device.model == model_of(pointer.version)
    return pointer.version


def publish_second(simulator: Simulator) -> None:
    simulator.publish(2)


def promote_first(simulator: Simulator) -> None:
    simulator.promote(1)


def refresh_late(simulator: Simulator) -> None:
    simulator.repository.refresh()


def rotate(simulator: Simulator) -> None:
    metadata = renew(simulator.folder, simulator.now, simulator.keys.root, simulator.keys.targets)
    install(simulator.folder, metadata)
    simulator.repository.refresh()


Change = Callable[[Simulator], None]
CHANGES = [publish_second, promote_first, refresh_late, rotate]


class Before:
    """A repository with one release, four days old, and a copy of it; each trial starts from the copy."""

    def __init__(self, tmp_path: Path) -> None:
        self.simulator = Simulator(tmp_path / "releases")
        self.simulator.publish(1)
        self.simulator.wait(4)
        self.copy = self.simulator.copy("before")
        self.device = StockClient(tmp_path / "device", self.simulator.root)
        self.device.update(self.copy, self.simulator.now)
        self._homes = tmp_path / "homes"
        self._count = 0

    def reset(self) -> None:
        shutil.rmtree(self.simulator.folder)
        shutil.copytree(self.copy, self.simulator.folder)

    def look(self, place: Path) -> int:
        """What a device that knows the old state, and a new one, find; they agree."""
        self._count += 1
        behind = self.device.copy(self._homes / str(self._count))
        pointer = behind.update(place, self.simulator.now)
        assert pointer is not None
        assert behind.model == model_of(pointer.version)
        assert found(self.simulator, self._homes / f"new{self._count}", place) == pointer.version
        return pointer.version


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_power_cut_at_any_operation_leaves_what_devices_accept(tmp_path: Path, change: Change) -> None:
    """The old state or the new one; and the change can be made again on what is left."""
    before, rng, ends = Before(tmp_path), random.Random(1), set()
    simulator = before.simulator
    with watched(simulator.folder) as done:
        change(simulator)
    assert {"sync", "rename", "flush"} <= {operation.name for operation in done}
    for number, files in states(before.copy, list(done), simulator.folder, rng):
        shutil.rmtree(simulator.folder)
        restore(simulator.folder, files)
        ends.add(version := before.look(simulator.folder))
        if number == len(done):
            assert version == (2 if change is publish_second else 1)
        change(simulator)
        assert before.look(simulator.folder) == (2 if change is publish_second else 1)
        chain = read_chain(simulator.folder)
        for name, pointer in (("latest.json", chain.latest), ("promoted.json", chain.promoted)):
            assert pointer is None or (simulator.folder / name).read_bytes() == pointer.to_bytes()
        assert not list(simulator.folder.rglob(".*"))
    assert ends == ({1, 2} if change is publish_second else {1})


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KilledError()], ids=["full", "killed"]
)
@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_full_disk_or_death_at_any_operation_leaves_what_devices_accept(
    tmp_path: Path, change: Change, error: BaseException
) -> None:
    before = Before(tmp_path)
    simulator = before.simulator
    with watched(simulator.folder) as done:
        change(simulator)
    for stop_at in range(len(done)):
        before.reset()
        with watched(simulator.folder, stop_at, error), pytest.raises((SetupError, KilledError)):
            change(simulator)
        if isinstance(error, OSError):
            assert not list(simulator.folder.rglob(".*")), "a full disk gets back what was taken"
        before.look(simulator.folder)
        change(simulator)
        assert before.look(simulator.folder) == (2 if change is publish_second else 1)
