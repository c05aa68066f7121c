"""Checking the arrays of a file that hold one thing each: per window, or a list of names."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedge.data._names import check_name
from fedge.errors import DataError

_KINDS = {"iuSU": "integers or text", "biuf": "numbers", "iuf": "numbers"}


def check_vector(array: NDArray[Any], key: str, n: int, kinds: str, path: Path) -> None:
    """Check that ``array`` has one element for each of ``n`` windows, of one of the dtype kinds.

    Raises:
        DataError: it has another shape, or elements of another kind.
    """
    if array.shape != (n,):
        raise DataError(f"{path}: {key!r} has the shape {array.shape}; it must be ({n},), as 'X' says")
    if array.dtype.kind not in kinds:
        raise DataError(f"{path}: {key!r} has elements of type {array.dtype}; give {_KINDS[kinds]}")


def texts(array: NDArray[Any], key: str, path: Path, at: NDArray[np.int64] | None = None) -> list[str]:
    """The elements as checked names; bytes are read as UTF-8. ``at`` is where each stands in the file.

    Raises:
        DataError: an element that can be no name, with its place.
    """
    names = []
    for index, value in zip(range(len(array)) if at is None else at.tolist(), array.tolist(), strict=True):
        where = f"{path}: {key!r} at index {index}"
        try:
            text = value.decode() if isinstance(value, bytes) else str(value)
        except UnicodeDecodeError:
            raise DataError(f"{where} is not UTF-8 text") from None
        names.append(check_name(text, where))
    return names


def name_list(given: NDArray[Any], key: str, path: Path) -> tuple[str, ...]:
    """A list of different names.

    Raises:
        DataError: no list, no names, or a name twice.
    """
    if given.ndim != 1 or given.dtype.kind not in "iuSU":
        raise DataError(
            f"{path}: {key!r} has the shape {given.shape} and type {given.dtype}; give a list of names"
        )
    names = texts(given, key, path)
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise DataError(f"{path}: {key!r} names {twice[0]!r} twice; names must differ")
    return tuple(names)
