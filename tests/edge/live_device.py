"""A device as a process of its own, to be killed: it updates, answers windows, and says what it runs.

    python -m edge.live_device HOME RELEASES ROOT

Each line that it prints is what it runs at that moment: ``ready``, then ``VERSION SCORE``.
"""

import contextlib
import sys
import time
from pathlib import Path

import numpy as np
from release.build import FEDERATION

from fedge.edge import trusted  # noqa: F401  # before it is ready: the kill shall hit the work, not the start
from fedge.edge.disk import FolderDisk
from fedge.edge.gate import GateInputs
from fedge.edge.home import Home, Seen
from fedge.edge.runtime import Runtime
from fedge.edge.sources import FolderSource
from fedge.edge.updater import Updater
from fedge.errors import FedgeError

from .lab import labelled


def main(place: Path, releases: Path, root: Path) -> None:
    """Work until killed."""
    home = Home(FolderDisk(place))
    updater = Updater(home, root.read_bytes(), FEDERATION, lambda: int(time.time()))
    inputs = GateInputs(labelled(), latency_factor=None)
    x = np.ones((1, 8, 2), np.float32)
    say("ready")
    while True:
        with contextlib.suppress(FedgeError):  # the repository may be in the middle of a change
            updater.update(FolderSource(releases), inputs)
        current = home.current()
        if current is None:
            say("none")
            continue
        home.started(current.version)
        score = float(Runtime(current.model).predict(x)[0, 0])
        home.confirmed(current.version)
        home.observe(Seen(current.version, answers=1, latency_us=50.0))
        say(f"{current.version} {score:.9g}")


def say(line: str) -> None:
    """Print it at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
