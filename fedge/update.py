"""An update: what a client changed in the global weights, how much it counts, and against which version."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fedge.errors import UpdateError

Arrays = Mapping[str, NDArray[np.float32]]

_STEPS = 2.0**32
"""Fixed-point steps per unit: a weighted sum stays exact, so the order of arrival cannot change it."""

_LARGEST = 2**62

_SPARSE = 4
"""An update of which at most one entry in so many is not zero is added entry by entry."""


@dataclass(frozen=True, eq=False)
class Update:
    """A weighted change to the global weights, or the sum of several.

    Sums are kept in fixed point (int64, ``2**-32`` steps): integer addition is exact, so any order and any
    grouping of the same updates gives the same bits.

    Attributes:
        total: for each weight, the sum of weight times change, in steps.
        weight: the sum of the weights (windows trained on).
        base: version of the global weights that the change is relative to.
    """

    total: Mapping[str, NDArray[np.int64]]
    weight: int
    base: int

    @staticmethod
    def of(arrays: Arrays, weight: int, base: int) -> "Update":
        """One client's change.

        Raises:
            UpdateError: not finite, or so large that the sum of updates could overflow; no weight.
        """
        if weight < 1:
            raise UpdateError(f"an update of weight {weight} counts for nothing")
        total = {}
        for name, value in arrays.items():
            steps = value.astype(np.float64) * (weight * _STEPS)
            if not np.all(np.abs(steps) < _LARGEST):
                raise UpdateError(
                    f"update of {name!r}: values are not finite or too large for weight {weight}"
                )
            total[name] = np.rint(steps).astype(np.int64)
        return Update(total, weight, base)

    def __add__(self, other: Self) -> "Update":
        """The content of both.

        Raises:
            UpdateError: they are relative to different versions or shapes, or the sum would overflow.
        """
        if self.base != other.base or self.total.keys() != other.total.keys():
            raise UpdateError(
                f"cannot add updates to versions {self.base} and {other.base}, or of other names"
            )
        total = {}
        for name, mine in self.total.items():
            theirs = other.total[name]
            if mine.shape != theirs.shape:
                raise UpdateError(f"update of {name!r}: shape {theirs.shape}, expected {mine.shape}")
            added = mine + theirs
            if np.any((mine ^ added) & (theirs ^ added) < 0):
                raise UpdateError(f"update of {name!r}: the sum overflows")
            total[name] = added
        return Update(total, self.weight + other.weight, self.base)

    def mean(self) -> dict[str, NDArray[np.float32]]:
        """The weighted mean change (FedAvg; McMahan et al. 2017, algorithm 1)."""
        scale = 1.0 / (_STEPS * self.weight)
        return {name: (value * scale).astype(np.float32) for name, value in self.total.items()}


@dataclass(frozen=True, eq=False)
class Term:
    """One client's change as ``Sum`` takes it.

    Attributes:
        shapes: of its arrays.
        at: positions in the concatenated arrays, or all of them.
        steps: ``weight`` times the change at these, in steps; everything else is zero.
        weight: windows trained on.
    """

    shapes: Mapping[str, tuple[int, ...]]
    at: NDArray[np.intp] | slice
    steps: NDArray[np.int64]
    weight: int

    @staticmethod
    def of(arrays: Arrays, weight: int) -> "Term":
        """The same numbers as in ``Update.of``.

        Raises:
            UpdateError: as there.
        """
        if weight < 1:
            raise UpdateError(f"an update of weight {weight} counts for nothing")
        flat = np.concatenate([np.zeros(0, np.float32), *(a.reshape(-1) for a in arrays.values())])
        filled = np.flatnonzero(flat != 0)
        at = filled if len(filled) * _SPARSE <= len(flat) else slice(None)
        steps = flat[at].astype(np.float64) * (weight * _STEPS)
        if not np.all(np.abs(steps) < _LARGEST):
            Update.of(arrays, weight, 0)  # says which array it is
        shapes = {name: value.shape for name, value in arrays.items()}
        return Term(shapes, at, np.rint(steps).astype(np.int64), weight)


class Sum:
    """Many updates to one version, added up in place: bit for bit what ``Update.__add__`` gives.

    The memory is one update's, and a sparse one costs the work of its own entries.
    """

    def __init__(self, base: int) -> None:
        """Nothing yet, relative to version ``base``."""
        self._base, self._weight = base, 0
        self._shapes: Mapping[str, tuple[int, ...]] = {}
        self._total = np.zeros(0, np.int64)

    def add(self, term: Term) -> None:
        """Add one.

        Raises:
            UpdateError: it has other names, order or shapes than the first, or the sum would overflow;
                nothing of it is added then.
        """
        if not self._weight:
            self._shapes = term.shapes
            self._total = np.zeros(sum(math.prod(s) for s in term.shapes.values()), np.int64)
        elif list(term.shapes.items()) != list(self._shapes.items()):
            raise UpdateError("cannot add updates of other names or shapes")
        mine = self._total[term.at]
        added = mine + term.steps
        if np.any((mine ^ added) & (term.steps ^ added) < 0):
            raise UpdateError("the sum of the updates overflows")
        self._total[term.at] = added
        self._weight += term.weight

    def update(self) -> Update | None:
        """The sum so far; ``None`` where nothing was added."""
        if not self._weight:
            return None
        ends = np.cumsum([math.prod(s) for s in self._shapes.values()])
        pieces = np.split(self._total.copy(), ends[:-1])
        total = {n: p.reshape(s) for (n, s), p in zip(self._shapes.items(), pieces, strict=True)}
        return Update(total, self._weight, self._base)


def weights_hash(arrays: Arrays) -> bytes:
    """8 bytes that name the exact global weights: names, shapes and values in order."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in arrays.items():
        digest.update(f"{name}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value, "<f4").tobytes())
    return digest.digest()
