"""The targets in an ``.npz`` file: classes, numbers, or what is normal and what is not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedge.data._names import shorten
from fedge.data._target import ANOMALY_CLASSES, Target
from fedge.data._vectors import check_vector, name_list
from fedge.errors import DataError

MAX_CLASSES = 1_000

_Arrays = Mapping[str, NDArray[Any]]
_Mask = NDArray[np.bool_]


def class_labels(y: NDArray[Any], key: str, n: int, path: Path) -> NDArray[np.int64]:
    """``[n]`` class indices.

    Raises:
        DataError: an element that is none, with its place.
    """
    if y.dtype.kind in "SU":
        raise DataError(f"{path}: {key!r} is text; give class indices and the names in 'classes'")
    check_vector(y, key, n, "biuf", path)
    if y.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            wrong = np.flatnonzero(~(np.isfinite(y) & (y == np.floor(y))))
        if len(wrong):
            raise DataError(
                f"{path}: {key!r} is {y[wrong[0]]} at index {wrong[0]}, which is no class index; a number "
                "is what a task like remaining_life learns"
            )
    wrong = np.flatnonzero((y < 0) | (y >= MAX_CLASSES))
    if len(wrong):
        at = wrong[0]
        raise DataError(f"{path}: {key!r} is {y[at]} at index {at}; class indices are 0 to {MAX_CLASSES - 1}")
    return y.astype(np.int64)


def class_names(
    given: NDArray[Any] | None, y: NDArray[np.int64], key: str, min_classes: int, path: Path
) -> tuple[str, ...]:
    """The names of all classes, of which ``y [n]`` holds ``min_classes`` or more.

    Raises:
        DataError: names and labels do not fit each other, or there are too few classes.
    """
    last = int(y.max())
    names = name_list(given, "classes", path) if given is not None else tuple(map(str, range(last + 1)))
    if last >= len(names):
        at = int(np.argmax(y >= len(names)))
        raise DataError(f"{path}: {key!r} is {y[at]} at index {at}, but 'classes' names only {len(names)}")
    if len(names) > MAX_CLASSES:
        raise DataError(f"{path}: 'classes' names {len(names)}; at most {MAX_CLASSES} are allowed")
    found = np.unique(y)
    if len(found) < min_classes:
        raise DataError(f"{path}: every window has the class {names[found[0]]!r}; two or more are needed")
    if given is None and min_classes > 1 and len(found) < len(names):
        never = next(i for i in range(len(names)) if i not in found)
        raise DataError(
            f"{path}: {key!r} goes up to {last}, but no window has the class {never}; number the classes "
            "without gaps, or name all of them in 'classes'"
        )
    return names


def numbers(y: NDArray[Any], key: str, n: int, path: Path) -> NDArray[np.float32]:
    """``[n]`` numbers.

    Raises:
        DataError: no number, NaN, infinite or beyond float32, with its place.
    """
    check_vector(y, key, n, "iuf", path)
    with np.errstate(over="ignore"):
        values: NDArray[np.float32] = y.astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise DataError(
            f"{path}: {key!r} is {y[wrong[0]]} at index {wrong[0]}: NaN, infinite or beyond float32; "
            "give finite numbers"
        )
    return values


def anomalies(arrays: _Arrays, target: Target, n: int, path: Path) -> tuple[NDArray[np.int64], _Mask]:
    """``[n]`` 0 (normal) or 1 (anomalous), and ``[n]`` which windows may be trained on.

    Without labels every window counts as normal. What may be trained on is said by ``target.normal``, else
    by the array ``trainable``, else by the labels.

    Raises:
        DataError: labels that are not 0 or 1, a bad array, or an anomalous window that would be trained on.
    """
    if "classes" in arrays:
        _check_two(name_list(arrays["classes"], "classes", path), path)
    y = np.zeros(n, np.int64)
    if target.key in arrays:
        y = _zero_or_one(arrays[target.key], target.key, n, path).astype(np.int64)
    trainable, reason = y == 0, ""
    if target.normal:
        values = arrays[target.normal.name]
        check_vector(values, target.normal.name, n, "biuf", path)
        if values.dtype.kind == "f" and np.isnan(values).any():
            at = int(np.argmax(np.isnan(values)))
            raise DataError(f"{path}: {target.normal.name!r} is nan at index {at}; data.normal needs numbers")
        trainable, reason = target.normal.holds(values), f"data.normal ({target.normal})"
    elif "trainable" in arrays:
        trainable, reason = _zero_or_one(arrays["trainable"], "trainable", n, path), "'trainable'"
    wrong = np.flatnonzero(trainable & (y == 1))
    if len(wrong):
        raise DataError(
            f"{path}: {reason} would train on {len(wrong)} window(s) that {target.key!r} calls anomalous, "
            f"the first at index {wrong[0]}; only normal ones may be trained on"
        )
    return y, trainable


def _check_two(names: tuple[str, ...], path: Path) -> None:
    if len(names) != 2:
        raise DataError(
            f"{path}: 'classes' names {len(names)} ({shorten(names)}); an anomaly task knows two, normal (0) "
            "and anomalous (1)"
        )
    if names == ANOMALY_CLASSES[::-1]:
        raise DataError(f"{path}: 'classes' names {shorten(names)}; 0 must be normal and 1 anomalous")


def _zero_or_one(values: NDArray[Any], key: str, n: int, path: Path) -> _Mask:
    if values.dtype.kind in "SU":
        raise DataError(f"{path}: {key!r} is text; give 0 or 1 for each window")
    check_vector(values, key, n, "biuf", path)
    wrong = np.flatnonzero(~((values == 0) | (values == 1)))
    if len(wrong):
        raise DataError(f"{path}: {key!r} is {values[wrong[0]]} at index {wrong[0]}; give 0 or 1")
    one: _Mask = values == 1
    return one
