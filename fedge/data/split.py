"""What one client trains on, judges candidates on, and keeps for its own evaluation."""

import numpy as np
from numpy.typing import NDArray

from fedge.data._overlap import overlaps
from fedge.data.types import ClientData, TargetKind, Windows
from fedge.errors import ConfigError

ENOUGH_GROUPS = 4
"""Groups that a class must have in a client before they are kept whole."""

_Mask = NDArray[np.bool_]
_Labels = NDArray[np.int64]


def split_client(
    windows: Windows,
    later_share: float = 0.25,
    judge_share: float = 0.1,
    *,
    target: TargetKind = "class",
) -> ClientData:
    """Split one client's windows, per class and in time order; the same input gives the same parts.

    First the last ``later_share`` of each class becomes ``later``, then the last ``judge_share`` of each
    class of the rest becomes ``judge``; what remains is ``train``. Each time, the earlier windows that
    share samples with the held-out ones are dropped, as are images that are held out too.

    Where the target is a number, all windows count as one class. For an anomaly task they do too, because
    what is out of the ordinary comes late in a machine's life and ``later`` must hold it; of the rest, only
    windows that may be trained on are kept, and the others are in no part.

    Where a class has ``ENOUGH_GROUPS`` groups or more, its groups stay whole, and so do the windows of other
    classes in those groups: the last groups are held out whose windows come nearest to the share. A class
    with fewer groups is cut between windows, at the nearest number (halves up). Groups that hold several
    classes are decided for the first of them. Apart from those, a class keeps something on the earlier side
    before overlaps are dropped: a class with a single window keeps it in ``train``. A client with two windows
    or more always has some in ``later`` if ``later_share`` is above 0: when every class would keep all of its
    windows, the last window (or its whole group) goes there. Where ``judge`` and the overlaps with it would
    take all that can be trained on, ``judge`` stays empty.

    A client with a single window has nothing in ``later``. A client whose few windows all overlap, or may
    not be trained on, has nothing in ``train``. Callers must expect both.

    Args:
        windows: ``[n, time, channels]`` or ``[n, height, width, channels]``, in time order.
        later_share: of each class, in ``[0, 1)``.
        judge_share: of what is left of each class, in ``[0, 1)``.
        target: what ``windows.y`` holds.

    Raises:
        ConfigError: a share out of range.
    """
    for name, share in (("later_share", later_share), ("judge_share", judge_share)):
        if not 0 <= share < 1:
            raise ConfigError(f"{name} is {share}; it must be 0 or more and below 1")
    label = windows.y if target == "class" else np.zeros(len(windows), np.int64)
    whole = _whole_groups(label, windows.group)
    held = _held_out(label, windows.group, later_share, whole)
    if later_share > 0 and len(windows) > 1 and not held.any():
        held = _last_unit(windows.group, whole)
    later = windows.take(held)
    rest, label, dropped = _apart(windows.take(~held), label[~held], later)
    if rest.trainable is not None:
        rest, label = rest.to_train_on(), label[rest.trainable]
    held = _held_out(label, rest.group, judge_share, whole)
    judge = rest.take(held)
    train, _, more = _apart(rest.take(~held), label[~held], judge)
    if not len(train) and len(judge):
        return ClientData(rest, rest.take(np.zeros(len(rest), np.bool_)), later, dropped)
    return ClientData(train, judge, later, dropped + more)


def _apart(windows: Windows, label: _Labels, held: Windows) -> tuple[Windows, _Labels, int]:
    """The windows that share nothing with the held-out ones, their labels, and how many others there were."""
    free = ~overlaps(windows.x, held.x)
    return windows.take(free), label[free], int(np.count_nonzero(~free))


def _whole_groups(label: _Labels, group: _Labels) -> _Labels:
    """Groups that hold a window of a class with enough groups."""
    found = [np.unique(group[label == one]) for one in np.unique(label)]
    kept = [groups for groups in found if len(groups) >= ENOUGH_GROUPS]
    return np.unique(np.concatenate(kept)) if kept else np.empty(0, np.int64)


def _units(group: _Labels, whole: _Labels) -> _Labels:
    """``[n]``: windows with the same number stay together: a whole group, or one window by itself."""
    place = np.searchsorted(whole, group)
    alone = len(whole) + np.arange(len(group))
    return np.where(np.isin(group, whole), place, alone)


def _held_out(label: _Labels, group: _Labels, share: float, whole: _Labels) -> _Mask:
    """``[n]``: the last units of each class, as near to ``share`` of its windows as they come."""
    unit = _units(group, whole)
    held = np.zeros(len(label), np.bool_)
    decided = np.zeros(len(label), np.bool_)
    for one in np.unique(label):
        mine = label == one
        undecided = unit[mine & ~decided]
        target = share * np.count_nonzero(mine) - np.count_nonzero(held & mine)
        held |= np.isin(unit, _last_units(undecided, target))
        decided |= np.isin(unit, undecided)
    return held


def _last_units(unit: _Labels, target: float) -> _Labels:
    """The last of the units, never all, that hold together as near to ``target`` windows as can be."""
    kinds, first, sizes = np.unique(unit, return_index=True, return_counts=True)
    backwards = np.argsort(first)[::-1]
    held = np.concatenate([[0], np.cumsum(sizes[backwards])])[: max(1, len(kinds))]
    count = len(held) - 1 - int(np.argmin(np.abs(held - target)[::-1]))  # of two as near, the larger
    return kinds[backwards[:count]]


def _last_unit(group: _Labels, whole: _Labels) -> _Mask:
    unit = _units(group, whole)
    last: _Mask = unit == unit[-1]
    return last
