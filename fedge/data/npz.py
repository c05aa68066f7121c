"""One ``.npz`` file with everyone's windows: the format of ``--data FILE.npz``, parsed with limits.

====================  ==========================  ===============================================
``X``                 ``[n, time, channels]``     windows, float or integer; or images
                                                  ``[n, height, width, channels]``
``y``                 ``[n]``                     class index, number, or 0 normal and 1 anomalous
``client``            ``[n]``                     whose window it is, integer or text
``classes``           ``[classes]``, optional     names of the classes
``channels``          ``[channels]``, optional    names of the channels
``scale``             ``[channels]``, optional    multiplied onto ``X``
``order``             ``[n]``, optional           time order inside a client; default: as stored
``group``             ``[n]``, optional           the recording or object a window comes from
``trainable``         ``[n]``, optional           anomaly only: 1 where a window may be trained on
====================  ==========================  ===============================================

Other arrays are ignored, unless their name looks like a slip of one of these.
"""

import difflib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedge.data._labels import anomalies, class_labels, class_names, numbers
from fedge.data._names import natural_sorted, shorten
from fedge.data._target import ANOMALY_CLASSES, Target, check_everyone, parse_target
from fedge.data._vectors import check_vector, name_list, texts
from fedge.data._zip import read_arrays
from fedge.data.types import Dataset, TargetKind, Windows
from fedge.errors import DataError

ALWAYS = ("X", "client", "classes", "channels", "scale", "order", "group")
KNOWN = (*ALWAYS, "y", "trainable")

MAX_WINDOWS = 10_000_000
MAX_TIME = 65_536
MAX_SIDE = 1_024
"""Largest height and width of an image."""
MAX_CHANNELS = 1_024
MAX_CLIENTS = 100_000
MAX_VALUES = 2**30
"""Most numbers in all windows together."""

_LIKE_LABELS = ("label", "labels", "target", "targets", "anomaly", "anomalies", "anomalous")
_Everyone = tuple[NDArray[Any], tuple[str, ...], NDArray[np.bool_] | None]


def read_npz(
    path: Path | str,
    *,
    min_clients: int = 3,
    min_classes: int = 2,
    target: TargetKind = "class",
    key: str = "y",
    normal: str = "",
) -> Dataset:
    """Read and check a data set.

    Args:
        path: the ``.npz`` file; see the module for its arrays.
        min_clients: fewest different clients; 1 for a device's own file.
        min_classes: fewest different classes among the labels; 1 for a device's own file.
        target: what is learned: a class, a number, or what is out of the ordinary.
        key: the array that holds it. For an anomaly task ``y`` may be absent: then nothing is known to be
            anomalous.
        normal: for an anomaly task, which windows may be trained on: ``NAME OP NUMBER`` over an array
            ``[n]`` of the file, such as ``rul > 100``. By default what the array ``trainable`` says, or
            all that are not labelled anomalous.

    Returns:
        The windows of each client, float32, in time order.

    Raises:
        DataError: anything wrong with the file or its content: where it is, and what to do.
        ConfigError: ``target``, ``key`` or ``normal`` makes no sense.
    """
    path, wanted = Path(path), parse_target(target, key, normal)
    arrays, present = read_arrays(path, (*ALWAYS, *wanted.arrays))
    _check_keys(present, wanted, path)
    _check_windows(arrays["X"], path)
    n, channels = len(arrays["X"]), arrays["X"].shape[-1]
    ids, owner = _clients(arrays["client"], n, min_clients, path)
    y, classes, trainable = _targets(arrays, wanted, n, min_classes, path)
    names = _channel_names(arrays.get("channels"), channels, path)
    order = _order(arrays.get("order"), n, path)
    group = _groups(arrays.get("group"), owner, n, path)
    x = _scaled(arrays["X"], arrays.get("scale"), path)
    _check_values(x, path)
    everyone = Windows(x, y, group, trainable)
    if min_clients > 1:
        check_everyone([everyone], wanted, path)
    position = np.lexsort((order, owner))
    parts = np.split(position, np.cumsum(np.bincount(owner, minlength=len(ids)))[:-1])
    clients = {name: everyone.take(part) for name, part in zip(ids, parts, strict=True)}
    return Dataset(path.stem, clients, classes, names)


def _targets(
    arrays: dict[str, NDArray[Any]], target: Target, n: int, min_classes: int, path: Path
) -> _Everyone:
    """What is to be learned of each window, the classes, and which windows may be trained on."""
    if target.kind == "number":
        return numbers(arrays[target.key], target.key, n, path), (), None
    if target.kind == "anomaly":
        y, trainable = anomalies(arrays, target, n, path)
        return y, ANOMALY_CLASSES, trainable
    y = class_labels(arrays[target.key], target.key, n, path)
    return y, class_names(arrays.get("classes"), y, target.key, min_classes, path), None


def _check_keys(present: tuple[str, ...], target: Target, path: Path) -> None:
    for key in present:
        near = difflib.get_close_matches(key.lower(), [k.lower() for k in KNOWN], n=1, cutoff=0.8)
        if key not in (*KNOWN, *target.arrays) and near:
            known = next(k for k in KNOWN if k.lower() == near[0])
            raise DataError(f"{path}: has an array {key!r}; did you mean {known!r}? Rename or remove it")
    held = f"the file holds {shorten(present)}" if present else "the file holds no array at all"
    missing = [key for key in ("X", "client") if key not in present]
    if missing:
        needed = shorten(("X", target.key, "client"))
        raise DataError(f"{path}: has no array {shorten(missing)}; {held}; needed are {needed}")
    rule = target.normal
    if rule and rule.name not in present:
        hint = "; 'trainable' says it already: leave data.normal out" if "trainable" in present else ""
        raise DataError(f"{path}: has no array {rule.name!r}, which data.normal asks for; {held}{hint}")
    if target.key not in present:
        _check_unlabelled(present, target, f"{path}: has no", held)


def _check_unlabelled(present: tuple[str, ...], target: Target, where: str, held: str) -> None:
    if target.key != "y":
        why = "; in a file that was split it is 'y'" if "y" in present else ""
        raise DataError(f"{where} array {target.key!r}, which data.target asks for; {held}{why}")
    if target.kind != "anomaly":
        raise DataError(f"{where} labels 'y' ({held}); only an anomaly task can do without")
    other = [key for key in present if key.lower() in _LIKE_LABELS]
    if other:
        raise DataError(
            f"{where} labels 'y', but {other[0]!r}; give --set data.target={other[0]}, or remove it"
        )


def _check_windows(x: NDArray[Any], path: Path) -> None:
    where = f"{path}: 'X'"
    limits = {"windows": MAX_WINDOWS, "time steps": MAX_TIME, "channels": MAX_CHANNELS}
    if x.ndim == 4:
        limits = {"images": MAX_WINDOWS, "rows": MAX_SIDE, "columns": MAX_SIDE, "channels": MAX_CHANNELS}
    if x.ndim not in (3, 4):
        raise DataError(f"{where} has the shape {x.shape}; give windows [n, time, channels] or images "
                        "[n, height, width, channels]")  # fmt: skip
    if x.dtype.kind not in "iuf" or x.dtype.itemsize > 8:
        raise DataError(f"{where} has elements of type {x.dtype}; give floats or integers of 64 bits or less")
    for length, (what, most) in zip(x.shape, limits.items(), strict=True):
        if not 1 <= length <= most:
            raise DataError(f"{where} has {length} {what}; 1 to {most} are allowed")
    if x.size > MAX_VALUES:
        raise DataError(f"{where} has {x.size} values {x.shape}; at most {MAX_VALUES} are read")


def _clients(
    client: NDArray[Any], n: int, min_clients: int, path: Path
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Ids in natural order, and for each window the position of its client among them."""
    check_vector(client, "client", n, "iuSU", path)
    values, first, inverse = np.unique(client, return_index=True, return_inverse=True)
    if len(values) > MAX_CLIENTS:
        raise DataError(f"{path}: 'client' names {len(values)} clients; at most {MAX_CLIENTS} are allowed")
    names = texts(values, "client", path, first)
    if len(names) < min_clients:
        raise DataError(
            f"{path}: has {len(names)} client(s) ({shorten(names)}); {min_clients} or more are needed: "
            "the server's own data, those who take part, and one that is never seen in training"
        )
    ids = natural_sorted(names)
    rank = {name: index for index, name in enumerate(ids)}
    return tuple(ids), np.array([rank[name] for name in names], np.int64)[inverse.reshape(-1)]


def _channel_names(given: NDArray[Any] | None, channels: int, path: Path) -> tuple[str, ...]:
    if given is None:
        return tuple(f"channel{i}" for i in range(channels))
    names = name_list(given, "channels", path)
    if len(names) != channels:
        raise DataError(f"{path}: 'channels' names {len(names)}, but 'X' has {channels} channels")
    return names


def _order(order: NDArray[Any] | None, n: int, path: Path) -> NDArray[Any]:
    if order is None:
        return np.zeros(n, np.int8)
    check_vector(order, "order", n, "iuf", path)
    if not np.isfinite(order).all():
        at = int(np.argmin(np.isfinite(order)))
        raise DataError(f"{path}: 'order' is {order[at]} at index {at}; give finite numbers")
    return order


def _groups(group: NDArray[Any] | None, owner: NDArray[np.int64], n: int, path: Path) -> NDArray[np.int64]:
    if group is None:
        return owner
    check_vector(group, "group", n, "iuSU", path)
    return np.unique(group, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _scaled(x: NDArray[Any], scale: NDArray[Any] | None, path: Path) -> NDArray[np.float32]:
    """``X`` times ``scale`` in float32; the product is formed in float64, one channel at a time."""
    if scale is None:
        with np.errstate(over="ignore"):
            return x.astype(np.float32)
    channels = x.shape[-1]
    if scale.shape != (channels,) or scale.dtype.kind not in "iuf":
        raise DataError(f"{path}: 'scale' has the shape {scale.shape}; give one number for each of the "
                        f"{channels} channels")  # fmt: skip
    wrong = np.flatnonzero(~np.isfinite(scale) | (scale == 0))
    if len(wrong):
        raise DataError(
            f"{path}: 'scale' is {scale[wrong[0]]} at index {wrong[0]}; give finite factors, not 0"
        )
    out = np.empty(x.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for channel in range(channels):
            out[..., channel] = x[..., channel].astype(np.float64) * float(scale[channel])
    return out


def _check_values(x: NDArray[np.float32], path: Path) -> None:
    finite = np.isfinite(x)
    if not finite.all():
        place = [int(i) for i in np.unravel_index(int(np.argmin(finite)), x.shape)]
        what = ("window", "time", "channel") if x.ndim == 3 else ("image", "row", "column", "channel")
        first = ", ".join(f"{name} {at}" for name, at in zip(what, place, strict=True))
        count = int(x.size - np.count_nonzero(finite))
        raise DataError(
            f"{path}: 'X' has {count} value(s) that are NaN, infinite or beyond float32, the first in "
            f"{first}; repair or leave out those {what[0]}s"
        )
    if (x == x[(0,) * (x.ndim - 1)]).all():
        raise DataError(f"{path}: 'X' never changes: every channel is constant over all windows")
