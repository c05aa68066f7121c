"""Labels as numbers: what a user writes, what a window is given, which windows a later label reaches."""

import difflib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedge.errors import DataError
from fedge.release.manifest import Manifest

if TYPE_CHECKING:
    from fedge.data.types import TargetKind

Label = float
"""A class index; a number; 0 for normal and 1 for anomalous."""

_LARGEST = float(np.finfo(np.float32).max)
_ANOMALY = {"0": 0.0, "normal": 0.0, "1": 1.0, "anomalous": 1.0}
_Times = NDArray[np.float64]
_Mask = NDArray[np.bool_]


class Labels:
    """What a model's labels are called, and which windows they are of."""

    def __init__(self, target: "TargetKind", classes: Sequence[str]) -> None:
        """``classes``: their names, in the order of the scores; none where the target is a number."""
        self.target = target
        self.names = tuple(classes)
        self._known = {name: float(index) for index, name in enumerate(classes)}
        if target == "anomaly":
            self._known = {**_ANOMALY, **self._known}

    @staticmethod
    def of(manifest: Manifest) -> "Labels":
        """Those of a release."""
        return Labels(manifest.target, manifest.classes)

    def code(self, raw: str | float) -> Label:
        """A label as it was given, as a number.

        Raises:
            DataError: it is no class of the model, or no finite number.
        """
        if self.target == "number":
            return _number(raw)
        text = str(int(raw)) if isinstance(raw, float) and raw.is_integer() else str(raw)
        found = self._known.get(text)
        if found is None:
            close = difflib.get_close_matches(text, self.names, n=1, cutoff=0.5)
            hint = f"is {close[0]!r} meant?" if close else f"known: {', '.join(self.names[:8])}"
            raise DataError(f"the label {text!r:.40} is no class of the model; {hint}")
        return found

    def name(self, label: Label) -> str | float:
        """The class's name, or the number."""
        return label if self.target == "number" else self.names[int(label)]

    def of_window(self, labels: Sequence[str | float | None]) -> Label | None:
        """The label of a window from those of its samples, in their order; None if it has none.

        A class must be that of all samples. A number is that of the last one. A window is anomalous where
        any sample is, and normal where all are.

        Raises:
            DataError: one of them is no label.
        """
        if self.target == "number":
            return None if labels[-1] is None else self.code(labels[-1])
        codes = {None if raw is None else self.code(raw) for raw in set(labels)}
        if self.target == "anomaly" and 1.0 in codes:
            return 1.0
        (first, *others) = codes
        return None if others else first

    def reached(
        self, label: Label, start: float, stop: float, begin: _Times, end: _Times, now: _Times
    ) -> _Mask:
        """Which windows get ``label``, said of the samples from ``start`` to ``stop``.

        Those that lie within, as ``of_window`` would say: of a number, whose last sample does; anomalous
        are those that have any sample there, and they stay so when the rest is called normal.

        Args:
            label: the later label.
            start: its first moment.
            stop: its last.
            begin: ``[n]``, time of each window's first sample.
            end: ``[n]``, of its last.
            now: ``[n]``, the labels that they have; NaN for none.
        """
        if self.target == "number":
            return np.asarray((end >= start) & (end <= stop))
        if self.target == "anomaly" and label == 1:
            return np.asarray((end >= start) & (begin <= stop))
        within = (begin >= start) & (end <= stop)
        return np.asarray(within & (now != 1) if self.target == "anomaly" else within)


def _number(raw: Any) -> float:
    try:
        value = float(raw)
    except (ValueError, OverflowError):
        value = math.nan
    if not abs(value) <= _LARGEST:
        raise DataError(f"the label is {raw!r:.40}; this model tells a number: give one, finite in float32")
    return value
