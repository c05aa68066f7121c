"""A folder with one CSV or Parquet file per client, cut into windows."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fedge.data._labels import MAX_CLASSES
from fedge.data._names import check_name, natural_sorted, nearest, shorten
from fedge.data._table import Recording, describe_difference, is_table, read_recording
from fedge.data._target import ANOMALY_CLASSES, Target, check_everyone
from fedge.data.npz import MAX_CLIENTS, MAX_TIME
from fedge.data.types import Dataset, TargetKind, Windows
from fedge.errors import ConfigError, DataError

__all__ = ["Recording", "cut", "is_table", "load_folder", "load_table", "read_recording"]

MAX_WINDOW_VALUES = 2**30
"""Most values in the windows of one data set."""

_ANOMALOUS = {"0": 0, "False": 0, "normal": 0, "1": 1, "True": 1, "anomalous": 1}


def load_folder(
    folder: Path | str, time: int, step: int, *, min_clients: int = 3, target: TargetKind = "class"
) -> Dataset:
    """Read every file of ``folder``; the client's id is the file's name without its ending.

    All files have the same channels. The classes are the different labels of all files, in natural order.

    Args:
        folder: holds one ``.csv`` or ``.parquet`` file per client, and nothing else (hidden files aside).
        time: samples in a window.
        step: samples from the start of one window to the start of the next.
        min_clients: fewest clients.
        target: what the column ``label`` holds: classes, numbers, or 0 or normal, 1 or anomalous. For an
            anomaly task it may be absent: then nothing is known to be anomalous.

    Raises:
        DataError: a file or a set of files that cannot be used.
        ConfigError: ``time`` or ``step`` is out of range.
        SetupError: a Parquet file, and pyarrow is not installed.
    """
    folder = Path(folder)
    files = _client_files(folder)
    if len(files) < min_clients:
        raise DataError(f"{folder}: holds {len(files)} client file(s); {min_clients} or more are needed")
    recordings = {client: _labelled(files[client], target) for client in natural_sorted(list(files))}
    channels = next(iter(recordings.values())).channels
    classes = _classes(recordings.values(), target)
    if target == "class" and not 2 <= len(classes) <= MAX_CLASSES:
        raise DataError(f"{folder}: has {len(classes)} different label(s) ({shorten(classes)}); "
                        f"2 to {MAX_CLASSES} are needed")  # fmt: skip
    clients = {
        client: _windows(
            _arranged(recording, channels, files[client]), time, step, classes, target, files[client]
        )
        for client, recording in recordings.items()
    }
    _check_clients(clients, classes, target, folder)
    return Dataset(folder.resolve().name, clients, classes, channels)


def load_table(
    path: Path,
    time: int,
    step: int,
    classes: Sequence[str] | None = None,
    *,
    target: TargetKind = "class",
) -> Dataset:
    """One client's file, for a device; ``classes`` None takes the labels that are in it.

    Raises:
        DataError, ConfigError, SetupError: as ``load_folder``.
    """
    recording = _labelled(path, target)
    names = _classes([recording], target)
    if classes is not None and target == "class":
        names = tuple(classes)
    client = check_name(path.stem, f"{path}: the client's name")
    windows = _windows(recording, time, step, names, target, path)
    return Dataset(path.stem, {client: windows}, names, recording.channels)


def cut(
    recording: Recording, time: int, step: int, classes: Sequence[str], target: TargetKind = "class"
) -> Windows:
    """Cut a recording into windows.

    A gap in time of more than twice the median period ends one stretch and begins another; ``group``
    counts the stretches. Windows begin every ``step`` samples from the start of a stretch; an incomplete
    one at the end of a stretch is dropped.

    A window inside which the class changes is dropped too. It takes the number of its last sample, and is
    anomalous where any of its samples is, so that no short anomaly is lost.

    Args:
        recording: with labels, all of them among ``classes`` (for anomalies: ones that say yes or no).
        time: samples in a window, 1 to ``MAX_TIME``.
        step: samples, 1 or more.
        classes: names of the classes.
        target: what the labels are.

    Returns:
        ``[n, time, channels]``, ``n`` may be 0.

    Raises:
        ConfigError: ``time`` or ``step`` is out of range.
        DataError: the windows would take too much memory, or the recording has no labels.
    """
    if not 1 <= time <= MAX_TIME or step < 1:
        raise ConfigError(f"a window of {time} samples with step {step}: give 1 to {MAX_TIME}, and 1 or more")
    starts, group = _starts(recording.timestamp, time, step)
    usable, y = _labels(recording, starts, time, classes, target)
    starts, group, y = starts[usable], group[usable], y[usable]
    if starts.size * time * recording.x.shape[1] > MAX_WINDOW_VALUES:
        raise DataError(f"{starts.size} windows of {time} samples take too much memory; use a larger step")
    trainable = y == 0 if target == "anomaly" else None
    if not len(starts):
        return Windows(np.empty((0, time, recording.x.shape[1]), np.float32), y, group, trainable)
    x = np.ascontiguousarray(sliding_window_view(recording.x, time, axis=0)[starts].transpose(0, 2, 1))
    return Windows(x, y, group, trainable)


def _labels(
    recording: Recording, starts: NDArray[np.int64], time: int, classes: Sequence[str], target: TargetKind
) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    """For each window whether it has one label, and that label as ``Windows.y`` holds it."""
    label, every = recording.label, np.ones(len(starts), np.bool_)
    if label is None:
        if target != "anomaly":
            raise DataError("the recording has no column 'label'; only an anomaly task can do without")
        return every, np.zeros(len(starts), np.int64)
    if target == "number":
        return every, label[starts + time - 1].astype(np.float32)
    known = _ANOMALOUS if target == "anomaly" else {name: i for i, name in enumerate(classes)}
    codes = np.array([known[name] for name in recording.labels], np.int64)[label]
    if target == "anomaly":
        count = np.concatenate([[0], np.cumsum(codes)])
        return every, (count[starts + time] > count[starts]).astype(np.int64)
    changes = np.concatenate([[0], np.cumsum(codes[1:] != codes[:-1])])
    return changes[starts] == changes[starts + time - 1], codes[starts]


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


def _labelled(path: Path, target: TargetKind) -> Recording:
    recording = read_recording(path, target)
    if recording.label is None and target != "anomaly":
        raise DataError(f"{path}: has no column 'label'; only an anomaly task can do without")
    return recording


def _classes(recordings: Iterable[Recording], target: TargetKind) -> tuple[str, ...]:
    if target == "anomaly":
        return ANOMALY_CLASSES
    return tuple(natural_sorted(list({label for r in recordings for label in r.labels})))


def _arranged(recording: Recording, channels: tuple[str, ...], path: Path) -> Recording:
    """The same recording with its channels in the order of ``channels``."""
    if set(recording.channels) != set(channels):
        difference = describe_difference(recording.channels, channels)
        raise DataError(f"{path}: {difference}, unlike the first file; all files need the same columns")
    order = [recording.channels.index(c) for c in channels]
    return replace(recording, x=recording.x[:, order], channels=channels)


def _windows(
    recording: Recording, time: int, step: int, classes: Sequence[str], target: TargetKind, path: Path
) -> Windows:
    known = _ANOMALOUS if target == "anomaly" else classes
    unknown = [name for name in recording.labels if name not in known]
    if unknown and target == "anomaly":
        raise DataError(f"{path}: has the label {unknown[0]!r}; give 0 or 'normal', and 1 or 'anomalous'")
    if unknown:
        raise DataError(
            f"{path}: has the label {unknown[0]!r}, which is no class; {nearest(unknown[0], classes)}"
        )
    windows = cut(recording, time, step, classes, target)
    if not len(windows):
        change = " or a change of label" if target == "class" else ""
        raise DataError(
            f"{path}: {len(recording.timestamp)} samples give no window of {time} samples without a gap"
            f"{change}; leave the file out, or use shorter windows"
        )
    return windows


def _check_clients(
    clients: Mapping[str, Windows], classes: Sequence[str], target: TargetKind, folder: Path
) -> None:
    found = {int(y) for windows in clients.values() for y in np.unique(windows.y)} if classes else set()
    if target == "class" and len(found) < 2:
        raise DataError(f"{folder}: every window has the class {classes[found.pop()]!r}; two are needed")
    check_everyone(clients.values(), Target(target), folder)
    first = next(iter(clients.values())).x[0, 0]
    if all(bool((windows.x == first).all()) for windows in clients.values()):
        raise DataError(f"{folder}: nothing ever changes: every channel is constant in all files")
    total = sum(windows.x.size for windows in clients.values())
    if total > MAX_WINDOW_VALUES:
        raise DataError(f"{folder}: the windows hold {total} values; at most {MAX_WINDOW_VALUES} are read")
