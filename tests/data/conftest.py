import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def content() -> dict[str, Any]:
    """The arrays of a small good file: 4 clients with 6 windows of 8 samples and 2 channels each."""
    rng = np.random.default_rng(7)
    return {
        "X": rng.normal(size=(24, 8, 2)).astype(np.float32),
        "y": np.tile([0, 1], 12),
        "client": np.repeat(["p2", "p10", "p1", "p3"], 6),
    }


@pytest.fixture
def npz(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    def write(arrays: dict[str, Any]) -> Path:
        path = tmp_path / "file.npz"
        np.savez(path, **arrays)
        return path

    return write


@pytest.fixture
def development_data() -> Path:
    folder = os.environ.get("FEDGE_DEV_DATA")
    if not folder:
        pytest.skip("FEDGE_DEV_DATA names no folder with data sets")
    return Path(folder)
