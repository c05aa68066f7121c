"""``watch``: shoulder exercises recorded by a smartwatch, from the package ``seglearn``.

140 recordings of 10 people, each doing 7 exercises with either arm: acceleration and angular rate at
50 Hz (D. M. Burns et al., "Shoulder physiotherapy exercise recognition: machine learning the inertial
signals from a smartwatch", 2018, arXiv 1802.01489). A client is one arm of one person.
"""

import hashlib
import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fedge.data.types import Dataset, Windows
from fedge.errors import DataError, SetupError

TIME = 128
"""Samples in a window: 2.56 s at 50 Hz."""
STEP = 64
"""Samples from the start of one window to the start of the next."""

_SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
_BYTES = 18_118_091
_SIDES = ("left", "right")  # seglearn: "the extremity side, 1 = right, 0 = left"


def load_watch() -> Dataset:
    """The 20 clients ``p01-left`` to ``p10-right``; windows ``[n, 128, 6]``, ``group`` = the recording.

    Raises:
        SetupError: ``seglearn`` is not installed.
        DataError: its data file is not the one of version 1.2.5.
    """
    recordings = _recordings(_data_file())
    parts: dict[str, list[Windows]] = {}
    for index, signal in enumerate(recordings["X"]):
        client = f"p{int(recordings['subject'][index]):02d}-{_SIDES[int(recordings['side'][index])]}"
        parts.setdefault(client, []).append(_cut(signal, int(recordings["y"][index]), index))
    clients = {name: Windows.joined(parts[name]) for name in sorted(parts)}
    return Dataset("watch", clients, tuple(recordings["y_labels"]), tuple(recordings["X_labels"]))


def _data_file() -> Path:
    """Where the package keeps its data; finding the package does not import it."""
    spec = importlib.util.find_spec("seglearn")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        file = Path(folder) / "data" / "watch_dataset.npy"
        if file.is_file():
            return file
    raise SetupError(
        "the data set 'watch' comes with the package seglearn, which is not installed; "
        "run: pip install 'fedge[simulation]'"
    )


def _recordings(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        content = stream.read(_BYTES + 1)
    if hashlib.sha256(content).hexdigest() != _SHA256:
        raise DataError(f"{file}: is not the data of seglearn 1.2.5; run: pip install seglearn==1.2.5")
    # The only pickle that fedge ever opens. The bytes in memory, not the file, were compared with a hash
    # that is part of this source, so they are exactly the published ones, which hold NumPy arrays only.
    recordings: dict[str, Any] = np.load(io.BytesIO(content), allow_pickle=True).item()
    return recordings


def _cut(signal: NDArray[np.float64], label: int, recording: int) -> Windows:
    """Windows ``[n, TIME, 6]`` of one recording ``[samples, 6]``; an incomplete last one is left out."""
    views = sliding_window_view(signal, TIME, axis=0)[::STEP]
    x = np.ascontiguousarray(views.transpose(0, 2, 1), np.float32)
    return Windows(x, np.full(len(x), label, np.int64), np.full(len(x), recording, np.int64))
