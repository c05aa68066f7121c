"""Releases on a disk for the tests of ``fedge infer``: in a folder of their own, and in a device's home."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedge.edge.disk import Disk
from fedge.edge.home import Home
from fedge.edge.watch import Promise
from fedge.release.manifest import Manifest, SelfTest

from .build import CHANNELS, TIME, WEIGHTS, manifest, model, windows

GOOD = model().SerializeToString()


def weighted(weights: NDArray[np.float32]) -> bytes:
    """The model with other weights ``[channels, outputs]``."""
    output = ("scores", 1, ("batch", weights.shape[1]))
    return model(weights=weights.astype(np.float32), output=output).SerializeToString()


def scorer(**changes: Any) -> tuple[bytes, Manifest]:
    """A model with one output for an anomaly task; the score is that of the first class."""
    content = weighted(WEIGHTS[:, :1])
    test = SelfTest.of(windows(1), np.zeros((1, 1), np.float32), 1e3)
    values = {"classes": ("normal", "anomalous"), "metric": "auroc", "self_test": test, "threshold": 2.0}
    return content, manifest(content, **(values | changes))


def number(**changes: Any) -> tuple[bytes, Manifest]:
    """A model that tells a number."""
    content = weighted(WEIGHTS[:, :1])
    test = SelfTest.of(windows(1), np.zeros((1, 1), np.float32), 1e3)
    return content, manifest(content, classes=(), metric="negative_rmse", self_test=test, **changes)


def put(folder: Path, content: bytes = GOOD, said: Manifest | None = None) -> Path:
    """Write the folder of a release."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(content)
    (folder / "manifest.json").write_bytes((said or manifest(content)).to_bytes())
    return folder


def install(disk: Disk, version: int, content: bytes = GOOD, **changes: Any) -> Home:
    """A home in which ``version`` goes live, as the updater makes it do."""
    home = Home(disk)
    said = manifest(content, version=version, **changes)
    home.install(home.slots(), said.to_bytes(), content, Promise())
    return home


def csv_lines(x: NDArray[np.float32], rate: float = 50.0, start: float = 0.0, label: str = "") -> list[str]:
    """Samples ``[n, 2]`` as lines of CSV, with a header."""
    rows = [
        f"{start + i / rate:.6f},{a!r},{b!r},{label}" for i, (a, b) in enumerate(x.astype(float).tolist())
    ]
    return ["timestamp,a,b,label", *rows]


def signal(n: int, seed: int = 0) -> NDArray[np.float32]:
    """Samples ``[n, channels]``."""
    count = -(-n // TIME)
    return windows(count, seed).reshape(-1, CHANNELS)[:n]
