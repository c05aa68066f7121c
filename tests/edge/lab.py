"""A federation that publishes, and a device that takes what it publishes."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from release.build import FEDERATION
from release.simulator import Simulator, seeded_keys

from fedge.data.types import Windows
from fedge.edge.disk import Disk, FolderDisk
from fedge.edge.gate import GateInputs
from fedge.edge.home import Home
from fedge.edge.sources import FolderSource, Source
from fedge.edge.updater import Outcome, Updater
from fedge.edge.watch import WatchRules
from fedge.release.manifest import SelfTest
from fedge.release.offline import create
from fedge.release.repository import Repository

from .build import CLASSES, WEIGHTS, manifest, model, naive, windows


def weights_of(version: int) -> NDArray[np.float32]:
    """Another model for each version, with the same classes for all windows."""
    return (WEIGHTS * np.float32(1 + version / 1000)).astype(np.float32)


def content_of(version: int) -> bytes:
    """The ONNX file of a good release."""
    return model(weights=weights_of(version)).SerializeToString()


def facts(
    weights: NDArray[np.float32], *, factor: NDArray[np.float64] | float = 1.0, tolerance: float = 1e-2
) -> dict[str, Any]:
    """What the manifest of a model with ``weights`` says: fields of ``Manifest``."""
    x = windows(3, seed=9)
    z = np.clip((x - np.array([1, -2])) / np.array([0.5, 3]), -4, 4).mean(axis=1)
    usual = manifest(b"-")
    test = SelfTest.of(x, (z @ weights * factor).astype(np.float32), tolerance)
    return {
        "task": usual.task,
        "input": usual.input,
        "classes": usual.classes,
        "metric": usual.metric,
        "self_test": test,
    }


def labelled(n: int = 60) -> Windows:
    """Windows labelled as every good release answers them."""
    x = windows(n, seed=5)
    return Windows(x, naive(x).argmax(axis=1), np.zeros(n, np.int64))


def shuffled(version: int) -> NDArray[np.float32]:
    """A model that mixes up its classes, and says so in its own self-test: genuine, but worse."""
    return weights_of(version)[:, [1, 2, 0]].copy()


INPUTS = GateInputs(labelled(), latency_factor=None)
UNLABELLED = replace(INPUTS, labelled=labelled(0))
"""No labels at all: the self-test alone decides."""


class Federation(Simulator):
    """The simulator, with models that can be opened; ``first`` gives it other keys."""

    def __init__(self, folder: Path, *, first: int = 0, root_days: float = 1000.0) -> None:
        super().__init__(folder, root_days=root_days)
        if first:
            shutil.rmtree(folder)
            self.keys = seeded_keys(first)
            self.first = create(self.now, root_days, root_days, self.keys)
            self.root = self.first["1.root.json"]
            self.repository = Repository(folder, self.keys.online, clock=lambda: self.now)
            self.repository.start(self.first)

    def good(self, version: int, **changes: Any) -> None:
        """Publish a release that is as good as the others."""
        self.publish(version, content_of(version), **{**facts(weights_of(version)), **changes})

    def bad(self, version: int) -> None:
        """Publish a genuine release that mixes up the classes."""
        weights = shuffled(version)
        self.publish(version, model(weights=weights).SerializeToString(), **facts(weights))

    def made(self, version: int, weights: NDArray[np.float32] | None = None) -> tuple[int, bytes, bytes]:
        """Version, manifest and model of a release that is not published: what a thief of keys could sign."""
        weights = weights_of(version) if weights is None else weights
        content = model(weights=weights).SerializeToString()
        return (version, *self.release(version, content, **facts(weights)))


class Device:
    """A home and its updater; its clock is the federation's."""

    def __init__(
        self,
        federation: Federation,
        disk: Disk | Path,
        rules: WatchRules | None = None,
        *,
        insist: bool = False,
        name: str = FEDERATION,
    ) -> None:
        self.federation = federation
        self.disk = FolderDisk(disk) if isinstance(disk, Path) else disk
        self.home = Home(self.disk, rules)
        self.updater = Updater(
            self.home,
            federation.root,
            name,
            lambda: int(federation.now),
            insist_on_promoted=insist,
        )

    def update(self, source: Source | Path | None = None, test: GateInputs = INPUTS) -> Outcome:
        """Take what the federation, or another place, offers."""
        if source is None or isinstance(source, Path):
            source = FolderSource(source or self.federation.folder)
        return self.updater.update(source, test)

    @staticmethod
    def disk_of(place: Path) -> FolderDisk:
        """The disk of a home at ``place``."""
        return FolderDisk(place)

    @property
    def version(self) -> int:
        """Of the model that it would run now; 0 for none."""
        found = self.home.current()
        return 0 if found is None else found.version


def answers(home: Home) -> bool:
    """Whether the current model opens, and answers as the good release of its version does."""
    from fedge.edge.runtime import Runtime

    found = home.current()
    assert found is not None
    x = windows(4, seed=3)
    scores = Runtime(found.model).predict(x)
    return scores.shape == (4, CLASSES) and bool(np.isfinite(scores).all())
