"""What one client trains on, judges candidates on, and keeps for its own evaluation."""

import numpy as np
from numpy.typing import NDArray

from fedge.data._overlap import shares_samples
from fedge.data.types import ClientData, Windows
from fedge.errors import ConfigError

ENOUGH_GROUPS = 4
"""Groups that a class must have in a client before they are kept whole."""

_Mask = NDArray[np.bool_]


def split_client(windows: Windows, later_share: float = 0.25, judge_share: float = 0.1) -> ClientData:
    """Split one client's windows, per class and in time order; the same input gives the same parts.

    First the last ``later_share`` of each class becomes ``later``, then the last ``judge_share`` of each
    class of the rest becomes ``judge``; what remains is ``train``. Each time, the earlier windows that
    share samples with the held-out ones are dropped.

    Where a class has ``ENOUGH_GROUPS`` groups or more, its groups stay whole, and so do the windows of other
    classes in those groups: the last groups are held out whose windows come nearest to the share. A class
    with fewer groups is cut between windows, at the nearest number (halves up). Groups that hold several
    classes are decided for the first of them. Apart from those, a class keeps something on the earlier side
    before overlaps are dropped: a class with a single window keeps it in ``train``. A client with two windows
    or more always has some in ``later`` if ``later_share`` is above 0: when every class would keep all of its
    windows, the last window (or its whole group) goes there.

    A client with a single window has nothing in ``later``. A client whose few windows all overlap has
    nothing in ``train``. Callers must expect both.

    Args:
        windows: ``[n, time, channels]``, in time order.
        later_share: of each class, in ``[0, 1)``.
        judge_share: of what is left of each class, in ``[0, 1)``.

    Raises:
        ConfigError: a share out of range.
    """
    for name, share in (("later_share", later_share), ("judge_share", judge_share)):
        if not 0 <= share < 1:
            raise ConfigError(f"{name} is {share}; it must be 0 or more and below 1")
    whole = _whole_groups(windows)
    held = _held_out(windows, later_share, whole)
    if later_share > 0 and len(windows) > 1 and not held.any():
        held = _last_unit(windows, whole)
    rest, later = windows.take(~held), windows.take(held)
    rest = rest.take(~shares_samples(rest.x, later.x))
    held = _held_out(rest, judge_share, whole)
    train, judge = rest.take(~held), rest.take(held)
    train = train.take(~shares_samples(train.x, judge.x))
    return ClientData(train, judge, later, len(windows) - len(train) - len(judge) - len(later))


def _whole_groups(windows: Windows) -> NDArray[np.int64]:
    """Groups that hold a window of a class with enough groups."""
    found = [np.unique(windows.group[windows.y == label]) for label in np.unique(windows.y)]
    kept = [groups for groups in found if len(groups) >= ENOUGH_GROUPS]
    return np.unique(np.concatenate(kept)) if kept else np.empty(0, np.int64)


def _units(windows: Windows, whole: NDArray[np.int64]) -> NDArray[np.int64]:
    """``[n]``: windows with the same number stay together: a whole group, or one window by itself."""
    place = np.searchsorted(whole, windows.group)
    alone = len(whole) + np.arange(len(windows))
    return np.where(np.isin(windows.group, whole), place, alone)


def _held_out(windows: Windows, share: float, whole: NDArray[np.int64]) -> _Mask:
    """``[n]``: the last units of each class, as near to ``share`` of its windows as they come."""
    unit = _units(windows, whole)
    held = np.zeros(len(windows), np.bool_)
    decided = np.zeros(len(windows), np.bool_)
    for label in np.unique(windows.y):
        mine = windows.y == label
        undecided = unit[mine & ~decided]
        target = share * np.count_nonzero(mine) - np.count_nonzero(held & mine)
        held |= np.isin(unit, _last_units(undecided, target))
        decided |= np.isin(unit, undecided)
    return held


def _last_units(unit: NDArray[np.int64], target: float) -> NDArray[np.int64]:
    """The last of the units, never all, that hold together as near to ``target`` windows as can be."""
    kinds, first, sizes = np.unique(unit, return_index=True, return_counts=True)
    backwards = np.argsort(first)[::-1]
    held = np.concatenate([[0], np.cumsum(sizes[backwards])])[: max(1, len(kinds))]
    count = len(held) - 1 - int(np.argmin(np.abs(held - target)[::-1]))  # of two as near, the larger
    return kinds[backwards[:count]]


def _last_unit(windows: Windows, whole: NDArray[np.int64]) -> _Mask:
    unit = _units(windows, whole)
    last: _Mask = unit == unit[-1]
    return last
