"""An update: what a client changed in the global weights, how much it counts, and against which version."""

import hashlib
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


def weights_hash(arrays: Arrays) -> bytes:
    """8 bytes that name the exact global weights: names, shapes and values in order."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in arrays.items():
        digest.update(f"{name}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value, "<f4").tobytes())
    return digest.digest()
