"""What the score of a run is called and how it is written: each metric in its own unit.

In ``report.json`` every metric is better the higher it is, so an error stands there with a minus sign
(``negative_rmse``). ``Measure.of`` turns it round where it is read; everything after that sees an error as
people write it, and asks ``Measure.gain`` what is better.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from fedge.report.read import Record, number, part, rows
from fedge.report.svg import Axis, linear
from fedge.report.words import NOT_MEASURED, clean, signed

_MOST_DECIMALS = 6


@dataclass(frozen=True)
class Measure:
    """One metric.

    Attributes:
        name: as people write it.
        lower: whether it is an error: lower is better, and the report holds it with a minus sign.
        points: whether a difference is given in points, hundredths of the score, or else in its own unit.
        decimals: digits behind the point.
        bounds: lowest and highest possible value, as shown.
    """

    name: str
    lower: bool = False
    points: bool = False
    decimals: int = 3
    bounds: tuple[float, float] = (-math.inf, math.inf)

    @property
    def direction(self) -> str:
        """A remark for where the metric is first named."""
        return " (lower is better)" if self.lower else ""

    @property
    def unit(self) -> str:
        """A remark for where the metric is explained."""
        return ", in the unit of the target," if self.lower else ""

    def of(self, record: Record, *keys: str) -> float | None:
        """The value at that path of the report, as people write it; ``None``: not measured, not defined."""
        value = number(record, *keys)
        return 0.0 - value if value is not None and self.lower else value

    def shown(self, value: float | None) -> str:
        """``0.912``, or ``13.5``."""
        if value is None:
            return NOT_MEASURED
        rounded = round(value, self.decimals) + 0.0
        return f"{rounded:,.{self.decimals}f}".replace("-", "\u2212")

    def ticks(self, axis: Axis) -> Callable[[float], str]:
        """How the values on an axis are shown: all with as many decimals as they need, shares with two."""
        least = 0 if self.lower else min(2, self.decimals)
        enough = (d for d in range(least, self.decimals) if all(_exact(t, d) for t in axis.ticks))
        return replace(self, decimals=next(enough, self.decimals)).shown

    def bare(self, difference: float | None) -> str:
        """A difference, with its sign and without its unit."""
        if difference is None:
            return ""
        return signed(100 * difference, 1) if self.points else signed(difference, self.decimals)

    def change(self, difference: float) -> str:
        """A difference: ``+2.4 points``, or ``-1.2`` in the unit of the metric."""
        return self.bare(difference) + (" points" if self.points else "")

    def gain(self, difference: float) -> float:
        """How much better, as far as it shows: above 0 for better, below 0 for worse."""
        rounded = round(difference, self.decimals)
        return -rounded if self.lower else rounded

    def axis(self, values: Iterable[float], wanted: int = 5, digits: int = 20) -> Axis:
        """An axis over all values; no shorter than so many times the last digit shown, within the bounds."""
        return linear(values, wanted, digits * 10.0**-self.decimals, self.bounds)


def _exact(value: float, decimals: int) -> bool:
    return math.isclose(value, round(value, decimals), rel_tol=1e-9, abs_tol=1e-9)


_SHARE = (0.0, 1.0)
_KNOWN: Mapping[str, Measure] = {
    "accuracy": Measure("accuracy", points=True, bounds=_SHARE),
    "macro_f1": Measure("macro F1", points=True, bounds=_SHARE),
    "auroc": Measure("AUROC", bounds=_SHARE),
    "auprc": Measure("AUPRC", bounds=_SHARE),
    "negative_rmse": Measure("RMSE", lower=True, bounds=(0.0, math.inf)),
}


def measure(report: Record) -> Measure:
    """The metric of the report's scores."""
    values = [number(report, "score", key) for key in part(report, "score")]
    if not any(values):
        values = [number(row, key) for row in rows(report, "clients_log") for key in _OF_CLIENTS]
    return named(clean(report.get("metric") or "score", 40), values)


_OF_CLIENTS = ("score_initial", "score_final")


def named(metric: str, values: Iterable[float | None]) -> Measure:
    """The metric of that name; an error to three digits of the largest of ``values``."""
    known = _KNOWN.get(metric) or Measure(metric.replace("_", " "))
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    if not known.lower or not largest:
        return known
    decimals = 2 - math.floor(math.log10(largest))
    return replace(known, decimals=min(max(decimals, 0), _MOST_DECIMALS))
