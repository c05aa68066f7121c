"""Who plays which part in ``fedge bench learning``: the scenario's roles, folds, and an official split."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from fedge.config import Config
from fedge.data import load
from fedge.data._vectors import check_vector, texts
from fedge.data._zip import read_arrays
from fedge.data.types import TargetKind, Windows
from fedge.errors import InputError

OFFICIAL = "official_test"
"""The array of an ``.npz`` file that marks the windows of clients which are a published test set."""


def with_roles(config: Config, server: Sequence[str], unseen: Sequence[str]) -> Config:
    """``config`` with these clients as the server's and as unseen; the others take part."""
    data = replace(config.data, server_clients=tuple(server), unseen_clients=tuple(unseen))
    return replace(config, data=data)


def fold_roles(ids: Sequence[str], folds: int) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The server's and the unseen clients of each fold, by rotation.

    The sorted ``ids`` are cut into ``folds`` consecutive blocks, whose sizes differ by one at most. In fold
    ``k`` block ``k`` is unseen and block ``k + 1`` (after the last, the first) is the server's.

    Raises:
        InputError: two folds, which leave nobody to take part, or more folds than clients.
    """
    if not 3 <= folds <= len(ids):
        raise InputError(f"{folds} folds of {len(ids)} clients; give 1, or 3 to {len(ids)}")
    bounds = [len(ids) * k // folds for k in range(folds + 1)]
    blocks = [tuple(ids[a:b]) for a, b in pairwise(bounds)]
    return [(blocks[(k + 1) % folds], blocks[k]) for k in range(folds)]


def official_clients(config: Config) -> tuple[str, ...]:
    """Clients that the data set itself marks as its test set (array ``official_test``); often none.

    Raises:
        DataError: the file cannot be read, or the array has the wrong shape or type.
    """
    path = Path(config.data.source)
    if path.suffix != ".npz":
        return ()
    arrays, present = read_arrays(path, ("client", OFFICIAL))
    if OFFICIAL not in present or "client" not in present:
        return ()
    client, marked = arrays["client"], arrays[OFFICIAL]
    check_vector(client, "client", len(client), "iuSU", path)
    check_vector(marked, OFFICIAL, len(client), "biuf", path)
    places = np.flatnonzero(marked)
    values, first = np.unique(client[places], return_index=True)
    return tuple(texts(values, "client", path, places[first]))


def official_roles(ids: Sequence[str], official: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The server's (the first fifth of those that are not ``official``) and the unseen (the official ones).

    Raises:
        InputError: nobody is left to take part, or to be scored on.
    """
    test = set(official)
    others = [c for c in ids if c not in test]
    unseen = tuple(c for c in ids if c in test)
    if len(others) < 2 or not unseen:
        raise InputError(f"{OFFICIAL} marks {len(unseen)} of {len(ids)} clients: too few on one side")
    return tuple(others[: max(1, len(others) // 5)]), unseen


def last_windows(config: Config, target: TargetKind, clients: Sequence[str]) -> Windows:
    """The last window of each of ``clients``; numbers are bounded by ``data.most`` as in training.

    Clients with a single window count too, which nobody can be trained and scored on.
    """
    data = config.data
    everyone = load(
        data.source, window=data.window, step=data.step, target=target, key=data.target, normal=data.normal
    ).clients
    last = Windows.joined([everyone[c].take(np.array([len(everyone[c]) - 1])) for c in clients])
    return replace(last, y=np.minimum(last.y, np.float32(data.most))) if data.most else last
