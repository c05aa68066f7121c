"""One ``.npz`` file with everyone's windows: the format of ``--data FILE.npz``, parsed with limits.

====================  ==========================  ===============================================
``X``                 ``[n, time, channels]``     windows, float or integer
``y``                 ``[n]``                     class index
``client``            ``[n]``                     whose window it is, integer or text
``classes``           ``[classes]``, optional     names of the classes
``channels``          ``[channels]``, optional    names of the channels
``scale``             ``[channels]``, optional    multiplied onto ``X``
``order``             ``[n]``, optional           time order inside a client; default: as stored
``group``             ``[n]``, optional           the recording or object a window comes from
====================  ==========================  ===============================================

Other arrays are ignored, unless their name looks like a slip of one of these.
"""

import difflib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedge.data._names import check_name, natural_sorted, shorten
from fedge.data._zip import read_arrays
from fedge.data.types import Dataset, Windows
from fedge.errors import DataError

REQUIRED = ("X", "y", "client")
KNOWN = (*REQUIRED, "classes", "channels", "scale", "order", "group")

MAX_WINDOWS = 10_000_000
MAX_TIME = 65_536
MAX_CHANNELS = 1_024
MAX_CLASSES = 1_000
MAX_CLIENTS = 100_000

_KINDS = {"iuSU": "integers or text", "biuf": "class indices", "iuf": "numbers"}


def read_npz(path: Path | str, *, min_clients: int = 3, min_classes: int = 2) -> Dataset:
    """Read and check a data set.

    Args:
        path: the ``.npz`` file; see the module for its arrays.
        min_clients: fewest different clients; 1 for a device's own file.
        min_classes: fewest different classes among the labels; 1 for a device's own file.

    Returns:
        The windows of each client, float32, in time order.

    Raises:
        DataError: anything wrong with the file or its content: where it is, and what to do.
    """
    path = Path(path)
    arrays, present = read_arrays(path, KNOWN)
    _check_keys(present, path)
    n, _, channels = _check_windows(arrays["X"], path)
    ids, owner = _clients(arrays["client"], n, min_clients, path)
    y = _labels(arrays["y"], n, path)
    classes = _class_names(arrays.get("classes"), y, min_classes, path)
    names = _channel_names(arrays.get("channels"), channels, path)
    order = _order(arrays.get("order"), n, path)
    group = _groups(arrays.get("group"), owner, n, path)
    x = _scaled(arrays["X"], arrays.get("scale"), path)
    _check_values(x, path)
    everyone = Windows(x, y, group)
    position = np.lexsort((order, owner))
    parts = np.split(position, np.cumsum(np.bincount(owner, minlength=len(ids)))[:-1])
    clients = {name: everyone.take(part) for name, part in zip(ids, parts, strict=True)}
    return Dataset(path.stem, clients, classes, names)


def _check_keys(present: tuple[str, ...], path: Path) -> None:
    for key in present:
        near = difflib.get_close_matches(key.lower(), [k.lower() for k in KNOWN], n=1, cutoff=0.8)
        if key not in KNOWN and near:
            known = next(k for k in KNOWN if k.lower() == near[0])
            raise DataError(f"{path}: has an array {key!r}; did you mean {known!r}? Rename or remove it")
    held = f"the file holds {shorten(present)}" if present else "the file holds no array at all"
    missing = [key for key in REQUIRED if key not in present]
    if missing == ["y"]:
        raise DataError(f"{path}: has no labels 'y' ({held}); unlabelled data is not supported yet")
    if missing:
        raise DataError(f"{path}: has no array {shorten(missing)}; {held}; needed are {shorten(REQUIRED)}")


def _check_windows(x: NDArray[Any], path: Path) -> tuple[int, int, int]:
    where = f"{path}: 'X'"
    if x.ndim == 4:
        raise DataError(f"{where} has the shape {x.shape}: images are not supported yet, only windows "
                        "[n, time, channels]")  # fmt: skip
    if x.ndim != 3:
        raise DataError(f"{where} has the shape {x.shape}; give windows [n, time, channels]")
    if x.dtype.kind not in "iuf" or x.dtype.itemsize > 8:
        raise DataError(f"{where} has elements of type {x.dtype}; give floats or integers of 64 bits or less")
    for length, most, what in zip(
        x.shape, (MAX_WINDOWS, MAX_TIME, MAX_CHANNELS), ("windows", "time steps", "channels"), strict=True
    ):
        if not 1 <= length <= most:
            raise DataError(f"{where} has {length} {what}; 1 to {most} are allowed")
    return x.shape[0], x.shape[1], x.shape[2]


def _vector(array: NDArray[Any], key: str, n: int, kinds: str, path: Path) -> None:
    """Check that ``array`` has one element for each of ``n`` things, of one of the dtype kinds."""
    if array.shape != (n,):
        raise DataError(f"{path}: {key!r} has the shape {array.shape}; it must be ({n},), as 'X' says")
    if array.dtype.kind not in kinds:
        raise DataError(f"{path}: {key!r} has elements of type {array.dtype}; give {_KINDS[kinds]}")


def _texts(array: NDArray[Any], key: str, path: Path, at: NDArray[np.int64] | None = None) -> list[str]:
    """The elements as checked names; bytes are read as UTF-8. ``at`` is where each stands in the file."""
    names = []
    for index, value in zip(range(len(array)) if at is None else at.tolist(), array.tolist(), strict=True):
        where = f"{path}: {key!r} at index {index}"
        try:
            text = value.decode() if isinstance(value, bytes) else str(value)
        except UnicodeDecodeError:
            raise DataError(f"{where} is not UTF-8 text") from None
        names.append(check_name(text, where))
    return names


def _clients(
    client: NDArray[Any], n: int, min_clients: int, path: Path
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Ids in natural order, and for each window the position of its client among them."""
    _vector(client, "client", n, "iuSU", path)
    values, first, inverse = np.unique(client, return_index=True, return_inverse=True)
    if len(values) > MAX_CLIENTS:
        raise DataError(f"{path}: 'client' names {len(values)} clients; at most {MAX_CLIENTS} are allowed")
    names = _texts(values, "client", path, first)
    if len(names) < min_clients:
        raise DataError(
            f"{path}: has {len(names)} client(s) ({shorten(names)}); {min_clients} or more are needed: "
            "the server's own data, those who take part, and one that is never seen in training"
        )
    ids = natural_sorted(names)
    rank = {name: index for index, name in enumerate(ids)}
    return tuple(ids), np.array([rank[name] for name in names], np.int64)[inverse.reshape(-1)]


def _labels(y: NDArray[Any], n: int, path: Path) -> NDArray[np.int64]:
    if y.dtype.kind in "SU":
        raise DataError(f"{path}: 'y' is text; give class indices in 'y' and the names in 'classes'")
    _vector(y, "y", n, "biuf", path)
    if y.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            wrong = np.flatnonzero(~(np.isfinite(y) & (y == np.floor(y))))
        if len(wrong):
            raise DataError(
                f"{path}: 'y' is {y[wrong[0]]} at index {wrong[0]}, which is no class index; "
                "real-valued targets are not supported yet"
            )
    wrong = np.flatnonzero((y < 0) | (y >= MAX_CLASSES))
    if len(wrong):
        raise DataError(
            f"{path}: 'y' is {y[wrong[0]]} at index {wrong[0]}; class indices are 0 to {MAX_CLASSES - 1}"
        )
    return y.astype(np.int64)


def _class_names(
    given: NDArray[Any] | None, y: NDArray[np.int64], min_classes: int, path: Path
) -> tuple[str, ...]:
    last = int(y.max())
    names = _name_list(given, "classes", path) if given is not None else tuple(map(str, range(last + 1)))
    if last >= len(names):
        at = int(np.argmax(y >= len(names)))
        raise DataError(f"{path}: 'y' is {y[at]} at index {at}, but 'classes' names only {len(names)}")
    if len(names) > MAX_CLASSES:
        raise DataError(f"{path}: 'classes' names {len(names)}; at most {MAX_CLASSES} are allowed")
    found = np.unique(y)
    if len(found) < min_classes:
        raise DataError(f"{path}: every window has the class {names[found[0]]!r}; two or more are needed")
    if given is None and min_classes > 1 and len(found) < len(names):
        never = next(i for i in range(len(names)) if i not in found)
        raise DataError(
            f"{path}: 'y' goes up to {last}, but no window has the class {never}; number the classes without "
            "gaps, or name all of them in 'classes'"
        )
    return names


def _channel_names(given: NDArray[Any] | None, channels: int, path: Path) -> tuple[str, ...]:
    if given is None:
        return tuple(f"channel{i}" for i in range(channels))
    names = _name_list(given, "channels", path)
    if len(names) != channels:
        raise DataError(f"{path}: 'channels' names {len(names)}, but 'X' has {channels} channels")
    return names


def _name_list(given: NDArray[Any], key: str, path: Path) -> tuple[str, ...]:
    if given.ndim != 1 or given.dtype.kind not in "iuSU":
        raise DataError(
            f"{path}: {key!r} has the shape {given.shape} and type {given.dtype}; give a list of names"
        )
    names = _texts(given, key, path)
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise DataError(f"{path}: {key!r} names {twice[0]!r} twice; names must differ")
    return tuple(names)


def _order(order: NDArray[Any] | None, n: int, path: Path) -> NDArray[Any]:
    if order is None:
        return np.zeros(n, np.int8)
    _vector(order, "order", n, "iuf", path)
    if not np.isfinite(order).all():
        at = int(np.argmin(np.isfinite(order)))
        raise DataError(f"{path}: 'order' is {order[at]} at index {at}; give finite numbers")
    return order


def _groups(group: NDArray[Any] | None, owner: NDArray[np.int64], n: int, path: Path) -> NDArray[np.int64]:
    if group is None:
        return owner
    _vector(group, "group", n, "iuSU", path)
    return np.unique(group, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _scaled(x: NDArray[Any], scale: NDArray[Any] | None, path: Path) -> NDArray[np.float32]:
    """``X`` times ``scale`` in float32; the product is formed in float64, one channel at a time."""
    if scale is None:
        with np.errstate(over="ignore"):
            return x.astype(np.float32)
    channels = x.shape[2]
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
            out[:, :, channel] = x[:, :, channel].astype(np.float64) * float(scale[channel])
    return out


def _check_values(x: NDArray[np.float32], path: Path) -> None:
    finite = np.isfinite(x)
    if not finite.all():
        window, time, channel = (int(i) for i in np.unravel_index(int(np.argmin(finite)), x.shape))
        count = int(x.size - np.count_nonzero(finite))
        raise DataError(
            f"{path}: 'X' has {count} value(s) that are NaN, infinite or beyond float32, the first in window "
            f"{window}, time {time}, channel {channel}; repair or leave out those windows"
        )
    if (x == x[:1, :1]).all():
        raise DataError(f"{path}: 'X' never changes: every channel is constant over all windows")
