"""What an experiment takes away from natural data: classes that a client, or the server, does not have."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedge.data.types import ClientData, Windows
from fedge.errors import ConfigError


def skewed(data: ClientData, classes_per_client: int, seed: int) -> ClientData:
    """Keep only some classes in ``train`` and ``judge``; ``later`` stays whole.

    Args:
        data: of one client, with classes as target.
        classes_per_client: how many classes to keep; all of them where the client has no more in ``train``.
        seed: draws which; give each client its own.

    Raises:
        ConfigError: fewer than 1, or the target is a number.
    """
    if classes_per_client < 1:
        raise ConfigError(f"{classes_per_client} classes per client asked for; give 1 or more")
    _check_classes(data.train)
    found = np.unique(data.train.y)
    if len(found) <= classes_per_client:
        return _only(data, found)
    chosen = np.random.default_rng(seed).choice(found, classes_per_client, replace=False)
    return _only(data, chosen)


def lacking(windows: Windows, classes: Sequence[int]) -> Windows:
    """The windows that are of none of these classes; there may be none left.

    Raises:
        ConfigError: the target is a number.
    """
    _check_classes(windows)
    return windows.take(~np.isin(windows.y, list(classes)))


def missing_classes(classes: int, count: int, seed: int) -> tuple[int, ...]:
    """Draw ``count`` of ``classes`` classes, one of which has to stay: their indices, ascending.

    Raises:
        ConfigError: ``count`` is not 0 to ``classes - 1``.
    """
    if not 0 <= count < classes:
        raise ConfigError(f"{count} missing of {classes} classes asked for; give 0 to {max(0, classes - 1)}")
    drawn = np.random.default_rng(seed).choice(classes, count, replace=False)
    return tuple(sorted(int(label) for label in drawn))


def _only(data: ClientData, classes: NDArray[Any]) -> ClientData:
    train, judge = (part.take(np.isin(part.y, classes)) for part in (data.train, data.judge))
    return replace(data, train=train, judge=judge)


def _check_classes(windows: Windows) -> None:
    if windows.y.dtype.kind == "f":
        raise ConfigError("classes cannot be taken away where the target is a number")
