"""Charts of any width: horizontal places are per cent, vertical ones and text are pixels.

So a chart fills its column on a desk and on a telephone, and its text keeps its size. Lines are drawn
segment by segment, since a path cannot take per cent. A chart stands in a box with room at its sides,
where its labels go.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fedge.report.html import Html, el, folded, join


@dataclass(frozen=True)
class Axis:
    """A scale from values to fractions of the axis, and the values worth a tick."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """Where ``value`` stands: 0 at the low end, 1 at the high end."""
        if not self.log:
            return (value - self.low) / (self.high - self.low)
        return math.log(max(value, 1e-9) / self.low) / math.log(self.high / self.low)


def linear(
    values: Iterable[float],
    wanted: int = 5,
    at_least: float = 1e-6,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Axis:
    """An axis over all values with about ``wanted`` round ticks, no shorter than ``at_least``.

    It grows upwards to be that long, but not beyond ``bounds`` where the values keep them and there is room.
    """
    known = list(values) or [0.0, 1.0]
    low, high = min(known), max(known)
    span = max(high - low, at_least, 1e-9 * max(abs(low), abs(high)))
    if bounds[0] <= low and high <= bounds[1]:
        low = max(bounds[0], min(low, bounds[1] - span))
    step = _round_step(span / max(wanted - 1, 1))
    first, last = math.floor(low / step + 1e-6), math.ceil((low + span) / step - 1e-6)
    last = max(last, first + 1)
    return Axis(first * step, last * step, tuple(round(k * step, 12) for k in range(first, last + 1)))


def logarithmic(values: Iterable[float]) -> Axis:
    """An axis of whole decades over all positive values, a tick at each decade."""
    known = [value for value in values if value > 0] or [1.0, 10.0]
    first, last = math.floor(math.log10(min(known))), math.ceil(math.log10(max(known)))
    last = max(last, first + 1)
    return Axis(10.0**first, 10.0**last, tuple(10.0**k for k in range(first, last + 1)), log=True)


def _round_step(rough: float) -> float:
    """The next of 1, 2, 5 times a power of ten that is not below ``rough``."""
    unit = 10.0 ** math.floor(math.log10(rough))
    return next(unit * nice for nice in (1, 2, 5, 10) if unit * nice >= rough * (1 - 1e-9))


def percent(fraction: float) -> str:
    """A fraction of the width, as an attribute."""
    return f"{100 * fraction:.3f}".rstrip("0").rstrip(".") + "%"


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Html:
    """A straight line; x in fractions of the width, y in pixels."""
    return el("line", x1=percent(x1), y1=f"{y1:.1f}", x2=percent(x2), y2=f"{y2:.1f}", class_=kind)


def polyline(points: Sequence[tuple[float, float]], kind: str) -> Html:
    """A line through the points; a dot where there is only one."""
    if len(points) == 1:
        return dot(*points[0], kind=kind)
    return join(line(x1, y1, x2, y2, kind) for (x1, y1), (x2, y2) in pairwise(points))


def dot(x: float, y: float, kind: str, radius: float = 3.0) -> Html:
    """A round dot."""
    return el("circle", cx=percent(x), cy=f"{y:.1f}", r=f"{radius:g}", class_=kind)


def label(x: float, y: float, words: object, kind: str = "", *, anchor: str = "start", dx: float = 0) -> Html:
    """Text with its middle line at ``y``; ``dx`` pixels to the side of ``x``."""
    return el(
        "text", words, x=percent(x), y=f"{y:.1f}", dx=f"{dx:g}", dy="0.35em", text_anchor=anchor, class_=kind
    )


_MARKS = {
    "yes": "M-5 0L-1.5 4L5.5 -4.5",
    "no": "M-4.5 -4.5L4.5 4.5M4.5 -4.5L-4.5 4.5",
    "release": "M0 -5.5L5.5 0L0 5.5L-5.5 0Z",
}


def mark(x: float, y: float, kind: str, tip: str) -> Html:
    """A sign that is told apart by its shape: ``yes`` (a tick), ``no`` (a cross), ``release`` (a diamond)."""
    shape = el("path", d=_MARKS[kind], class_=f"mark {kind}")
    return el("svg", el("title", tip), shape, x=percent(x), y=f"{y:.1f}", overflow="visible")


def spread_apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The same places in the same order, moved as little as needed to be ``gap`` apart within the limits."""
    order = sorted(range(len(places)), key=lambda k: places[k])
    moved = [min(max(place, low), high) for place in places]
    for before, after in pairwise(order):
        moved[after] = max(moved[after], moved[before] + gap)
    for after, before in pairwise(order[::-1]):
        moved[after] = min(moved[after], high)
        moved[before] = min(moved[before], moved[after] - gap)
    return moved


def figure(name: str, finding: object, about: object, drawing: Html, numbers: Html) -> Html:
    """A chart with what it shows above it, and the same numbers as a table below it, closed at first."""
    head = el("figcaption", el("strong", finding), el("span", about))
    return el("figure", head, drawing, folded("Numbers", numbers), id=name)


def canvas(name: str, title: str, words: str, height: float, sides: tuple[int, int], *body: object) -> Html:
    """The drawing itself, with a title and a description for those who cannot see it.

    Args:
        name: prefix of the ids.
        title: what the chart is.
        words: what it shows, in a sentence.
        height: pixels.
        sides: pixels kept free left and right for labels.
        body: elements.
    """
    drawing = el(
        "svg",
        el("title", title, id=f"{name}-title"),
        el("desc", words, id=f"{name}-words"),
        *body,
        width="100%",
        height=f"{height:g}",
        overflow="visible",
        role="img",
        aria_labelledby=f"{name}-title {name}-words",
    )
    return el("div", drawing, class_="plot", style=f"padding:0 {sides[1]}px 0 {sides[0]}px")


def grid(axis: Axis, place: Callable[[float], float], shown: Callable[[float], str]) -> Html:
    """Horizontal rules with their values on the left."""
    rules = [line(0, place(tick), 1, place(tick), "rule") for tick in axis.ticks]
    return join(rules + [label(0, place(t), shown(t), "tick", anchor="end", dx=-8) for t in axis.ticks])
