"""Kill -9 of a live device at random moments: it is never without a model, and no version falls."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fedge
from fedge.edge.disk import FolderDisk
from fedge.edge.home import Home
from fedge.edge.runtime import Runtime

from .lab import Federation, content_of

TESTS = Path(__file__).parent.parent
PATIENCE = 120.0
"""Seconds after which a process that should have said something fails the test."""


def started(tmp_path: Path) -> "subprocess.Popen[str]":
    path = os.pathsep.join([str(TESTS), str(Path(fedge.__file__).parent.parent)])
    command = [
        sys.executable,
        "-m",
        "edge.live_device",
        str(tmp_path / "home"),
        str(tmp_path / "releases"),
        str(tmp_path / "root.json"),
    ]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the device ended by itself"
    return line.strip()


def check(home: Home, at_least: int, at_most: int) -> int:
    """The device has one of the models that there are, whole, and none below that which it had."""
    current = home.current()
    assert current is not None
    assert at_least <= current.version <= at_most
    assert current.model == content_of(current.version)
    x = np.ones((1, 8, 2), np.float32)
    assert np.isfinite(Runtime(current.model).predict(x)).all()
    assert home.slots().highest >= current.version
    return current.version


@pytest.mark.full
def test_live_device_killed_at_random_moments_is_never_without_a_model(tmp_path: Path, wide: bool) -> None:
    """A new release lies ready for each life; it is killed while it takes or answers with it."""
    kills, rng = 200 if wide else 20, random.Random(11)
    federation = Federation(tmp_path / "releases")
    federation.good(1)
    (tmp_path / "root.json").write_bytes(federation.root)
    home, version, seen = Home(FolderDisk(tmp_path / "home")), 0, set()
    for kill in range(1, kills + 1):
        process = started(tmp_path)
        try:
            assert said(process) == "ready"
            while kill % 3 == 1 and not said(process).startswith(f"{kill} "):
                continue
            time.sleep(rng.uniform(0, 0.25))
        finally:
            process.send_signal(signal.SIGKILL)
            rest, _ = process.communicate(timeout=PATIENCE)
        told = [int(line.split()[0]) for line in rest.splitlines() if line[:1].isdigit()]
        version = check(home, max([version, *told]), kill)
        seen.add(version)
        federation.good(kill + 1)
    assert len(seen) > kills // 3, "a third of the lives was long enough for sure"
