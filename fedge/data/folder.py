"""A folder with one CSV or Parquet file per client, cut into windows."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fedge.data._names import check_name, natural_sorted, nearest, shorten
from fedge.data._table import Recording, describe_difference, is_table, read_recording
from fedge.data.npz import MAX_CLASSES, MAX_CLIENTS, MAX_TIME
from fedge.data.types import Dataset, Windows
from fedge.errors import ConfigError, DataError

__all__ = ["Recording", "cut", "is_table", "load_folder", "load_table", "read_recording"]

MAX_WINDOW_VALUES = 2**30
"""Most values in the windows of one data set."""


def load_folder(folder: Path | str, time: int, step: int, *, min_clients: int = 3) -> Dataset:
    """Read every file of ``folder``; the client's id is the file's name without its ending.

    All files have the same channels. The classes are the different labels of all files, in natural order.

    Args:
        folder: holds one ``.csv`` or ``.parquet`` file per client, and nothing else (hidden files aside).
        time: samples in a window.
        step: samples from the start of one window to the start of the next.
        min_clients: fewest clients.

    Raises:
        DataError: a file or a set of files that cannot be used.
        ConfigError: ``time`` or ``step`` is out of range.
        SetupError: a Parquet file, and pyarrow is not installed.
    """
    folder = Path(folder)
    files = _client_files(folder)
    if len(files) < min_clients:
        raise DataError(f"{folder}: holds {len(files)} client file(s); {min_clients} or more are needed")
    recordings = {client: _labelled(files[client]) for client in natural_sorted(list(files))}
    channels = next(iter(recordings.values())).channels
    classes = tuple(natural_sorted(list({label for r in recordings.values() for label in r.labels})))
    if not 2 <= len(classes) <= MAX_CLASSES:
        raise DataError(f"{folder}: has {len(classes)} different label(s) ({shorten(classes)}); "
                        f"2 to {MAX_CLASSES} are needed")  # fmt: skip
    clients = {
        client: _windows(_arranged(recording, channels, files[client]), time, step, classes, files[client])
        for client, recording in recordings.items()
    }
    _check_clients(clients, classes, folder)
    return Dataset(folder.resolve().name, clients, classes, channels)


def load_table(path: Path, time: int, step: int, classes: Sequence[str] | None = None) -> Dataset:
    """One client's labelled file, for a device; ``classes`` None takes the labels that are in it.

    Raises:
        DataError, ConfigError, SetupError: as ``load_folder``.
    """
    recording = _labelled(path)
    names = tuple(classes) if classes is not None else recording.labels
    client = check_name(path.stem, f"{path}: the client's name")
    return Dataset(
        path.stem, {client: _windows(recording, time, step, names, path)}, names, recording.channels
    )


def cut(recording: Recording, time: int, step: int, classes: Sequence[str]) -> Windows:
    """Cut a recording into windows of one label each.

    A gap in time of more than twice the median period ends one stretch and begins another; ``group``
    counts the stretches. Windows begin every ``step`` samples from the start of a stretch, and a window
    inside which the label changes is dropped, as is an incomplete one at the end of a stretch.

    Args:
        recording: with labels, all of them among ``classes``.
        time: samples in a window, 1 to ``MAX_TIME``.
        step: samples, 1 or more.
        classes: names of the classes.

    Returns:
        ``[n, time, channels]``, ``n`` may be 0.

    Raises:
        ConfigError: ``time`` or ``step`` is out of range.
        DataError: the windows would take too much memory, or the recording has no labels.
    """
    if not 1 <= time <= MAX_TIME or step < 1:
        raise ConfigError(f"a window of {time} samples with step {step}: give 1 to {MAX_TIME}, and 1 or more")
    if recording.label is None:
        raise DataError("the recording has no column 'label'; unlabelled data is not supported yet")
    codes = recording.label
    starts, group = _starts(recording.timestamp, time, step)
    changes = np.concatenate([[0], np.cumsum(codes[1:] != codes[:-1])])
    same = changes[starts] == changes[starts + time - 1]
    starts, group = starts[same], group[same]
    if starts.size * time * recording.x.shape[1] > MAX_WINDOW_VALUES:
        raise DataError(f"{starts.size} windows of {time} samples take too much memory; use a larger step")
    if not len(starts):
        return Windows(np.empty((0, time, recording.x.shape[1]), np.float32), starts, group)
    x = np.ascontiguousarray(sliding_window_view(recording.x, time, axis=0)[starts].transpose(0, 2, 1))
    index = np.array([list(classes).index(name) for name in recording.labels], np.int64)
    return Windows(x, index[codes[starts]], group)


def _starts(
    timestamp: NDArray[np.float64], time: int, step: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where windows begin, and the number of the stretch that each is in."""
    period = np.diff(timestamp)
    breaks = np.flatnonzero(period > 2 * np.median(period)) + 1 if len(period) else np.empty(0, np.int64)
    edges = np.concatenate([[0], breaks, [len(timestamp)]])
    parts = [np.arange(a, b - time + 1, step) for a, b in itertools.pairwise(edges)]
    return np.concatenate(parts).astype(np.int64), np.repeat(np.arange(len(parts)), [len(p) for p in parts])


def _client_files(folder: Path) -> dict[str, Path]:
    try:
        entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read as a folder ({error.strerror})") from None
    if len(entries) > MAX_CLIENTS:
        raise DataError(f"{folder}: holds {len(entries)} files; at most {MAX_CLIENTS} are allowed")
    files: dict[str, Path] = {}
    for path in entries:
        if not is_table(path):
            raise DataError(
                f"{path}: is neither .csv nor .parquet; the folder holds one such file per client"
            )
        client = check_name(path.stem, f"{path}: the client's name")
        if client in files:
            raise DataError(f"{path}: {files[client].name} is the same client's; keep one of them")
        files[client] = path
    return files


def _labelled(path: Path) -> Recording:
    recording = read_recording(path)
    if recording.label is None:
        raise DataError(f"{path}: has no column 'label'; unlabelled data is not supported yet")
    return recording


def _arranged(recording: Recording, channels: tuple[str, ...], path: Path) -> Recording:
    """The same recording with its channels in the order of ``channels``."""
    if set(recording.channels) != set(channels):
        difference = describe_difference(recording.channels, channels)
        raise DataError(f"{path}: {difference}, unlike the first file; all files need the same columns")
    order = [recording.channels.index(c) for c in channels]
    return replace(recording, x=recording.x[:, order], channels=channels)


def _windows(recording: Recording, time: int, step: int, classes: Sequence[str], path: Path) -> Windows:
    unknown = [name for name in recording.labels if name not in classes]
    if unknown:
        raise DataError(
            f"{path}: has the label {unknown[0]!r}, which is no class; {nearest(unknown[0], classes)}"
        )
    windows = cut(recording, time, step, classes)
    if not len(windows):
        raise DataError(
            f"{path}: {len(recording.timestamp)} samples give no window of {time} samples without a gap or a "
            "change of label; leave the file out, or use shorter windows"
        )
    return windows


def _check_clients(clients: Mapping[str, Windows], classes: Sequence[str], folder: Path) -> None:
    found = {int(label) for windows in clients.values() for label in np.unique(windows.y)}
    if len(found) < 2:
        raise DataError(f"{folder}: every window has the class {classes[found.pop()]!r}; two are needed")
    first = next(iter(clients.values())).x[0, 0]
    if all(bool((windows.x == first).all()) for windows in clients.values()):
        raise DataError(f"{folder}: nothing ever changes: every channel is constant in all files")
    total = sum(windows.x.size for windows in clients.values())
    if total > MAX_WINDOW_VALUES:
        raise DataError(f"{folder}: the windows hold {total} values; at most {MAX_WINDOW_VALUES} are read")
