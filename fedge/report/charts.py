"""The kinds of chart that the page uses: lines over rounds (or time), change per client, and bars."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fedge.report.html import Html, el, join
from fedge.report.measure import Measure
from fedge.report.svg import (
    Axis,
    canvas,
    dot,
    grid,
    label,
    line,
    linear,
    mark,
    percent,
    polyline,
    spread_apart,
)
from fedge.report.words import clean

MOST_POINTS = 300
"""More rounds than this are thinned out in a drawing; the table beside it has them all."""


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: what it is called at its end.
        kind: CSS classes of its line.
        points: ``(round, value)``, in order; or what stands in for rounds.
        shown: its last value, as text.
        reference: whether it is there to compare with: no dots, and not read out.
    """

    name: str
    kind: str
    points: Sequence[tuple[float, float]]
    shown: str
    reference: bool = False


@dataclass(frozen=True)
class Lane:
    """A strip below a chart with signs at some rounds: ``(round, sign, tip)``."""

    name: str
    signs: Sequence[tuple[float, str, str]]


@dataclass(frozen=True)
class Across:
    """What goes from left to right.

    Attributes:
        name: of its unit, as it stands below the chart.
        least: the shortest axis.
        start: where a logarithmic axis begins; 0 for a linear one, which begins at 0.
    """

    name: str = "round"
    least: float = 4
    start: float = 0.0

    def read(self, at: float) -> str:
        """A place on it, for the read-out."""
        return f"round {at:g}" if self.name == "round" else f"{at:.3g} {self.name}"

    def at(self, value: float, last: float) -> float:
        """Where ``value`` stands: 0 at the beginning, 1 at ``last``."""
        if not self.start:
            return value / last
        return math.log(max(value, self.start) / self.start) / math.log(last / self.start)

    def ticks(self, last: float) -> list[float]:
        """Round numbers up to ``last``, few enough for a telephone; of rounds, whole ones and the last."""
        if self.start:
            decades = range(math.floor(math.log10(self.start)), math.ceil(math.log10(last)) + 1)
            found = [round(k * 10.0**d, 12) for d in decades for k in ((1,) if len(decades) > 3 else (1, 3))]
            return [tick for tick in found if self.start <= tick <= last]
        found = [tick for tick in linear([0, last], 4, at_least=self.least).ticks if tick <= last]
        if self.name == "round" and found and last - found[-1] > 0.12 * last:
            found.append(last)
        return found


@dataclass(frozen=True)
class Chart:
    """Lines over rounds, or over whatever ``across`` is."""

    name: str
    title: str
    words: str
    series: Sequence[Series]
    axis: Axis
    shown: Callable[[float], str]
    read: Callable[[float], str]
    lanes: Sequence[Lane] = field(default_factory=tuple)
    height: float = 240.0
    right: int = 112
    across: Across = Across()


_TOP, _LANE, _MARKED = 26.0, 24.0, 12


def line_chart(chart: Chart) -> Html:
    """Draw a chart: rules, lines, names at their ends, lanes, and a read-out under the pointer."""
    bottom = chart.height
    last = max((x for one in chart.series for x, _ in one.points), default=1.0) or 1.0

    def place(value: float) -> float:
        return _TOP + (1 - chart.axis.at(value)) * (bottom - _TOP)

    body = [grid(chart.axis, place, chart.shown)]
    body += [_draw(one, chart.across, last, place) for one in chart.series]
    body.append(_names(chart, place))
    ticks_at = bottom + 16
    body.append(_below(chart.across, last, ticks_at))
    for k, lane in enumerate(chart.lanes):
        body.append(_lane(lane, chart.across, last, ticks_at + 12 + _LANE * (k + 0.6), bottom))
    height = ticks_at + 14 + _LANE * len(chart.lanes)
    body.append(_readouts(chart, last, height))
    return canvas(chart.name, chart.title, chart.words, height, (50, chart.right), *body)


def thin(pairs: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most about ``MOST_POINTS`` of the points, evenly chosen, the last one among them."""
    step = -(-len(pairs) // MOST_POINTS)
    return pairs if step <= 1 else [*pairs[:-1:step], pairs[-1]]


def _draw(one: Series, across: Across, last: float, place: Callable[[float], float]) -> Html:
    spots = [(across.at(x, last), place(y)) for x, y in thin(one.points)]
    if not spots:
        return Html("")
    drawn = polyline(spots, f"line {one.kind}")
    if one.reference:
        return drawn
    step = -(-len(spots) // _MARKED)
    dots = [dot(x, y, f"dot {one.kind}", 2.4) for x, y in spots[:-1:step]]
    return join([drawn, *dots, dot(*spots[-1], kind=f"dot {one.kind}", radius=4)])


def _names(chart: Chart, place: Callable[[float], float]) -> Html:
    """Each line's name and last value at its end, moved apart where they would overlap."""
    named = [one for one in chart.series if one.points]
    ends = [place(one.points[-1][1]) for one in named]
    places = spread_apart(ends, 15, _TOP, chart.height)
    words = [
        join([el("tspan", one.shown, class_="strong"), f" {one.name}"] if one.shown else [one.name])
        for one in named
    ]
    return join(
        label(1, y, text, f"end {one.kind}", dx=10) for one, y, text in zip(named, places, words, strict=True)
    )


def _below(across: Across, last: float, y: float) -> Html:
    """The ticks below."""
    words = [
        label(across.at(tick, last), y, f"{tick:g}", "tick", anchor="middle") for tick in across.ticks(last)
    ]
    return join([label(0, y, across.name, "tick", anchor="end", dx=-8), *words])


def _lane(lane: Lane, across: Across, last: float, y: float, bottom: float) -> Html:
    drawn = [line(0, y, 1, y, "lane"), label(1, y, lane.name, "tick", dx=10)]
    for at, sign, tip in lane.signs:
        x = min(across.at(at, last), 1.0)
        drawn += [line(x, _TOP, x, bottom, "drop"), line(x, bottom + 25, x, y, "drop"), mark(x, y, sign, tip)]
    return join(drawn)


def _readouts(chart: Chart, last: float, height: float) -> Html:
    """For each round a column that, under the pointer, shows its values; by CSS alone.

    It reaches half-way to the rounds beside it.
    """
    values: dict[float, list[str]] = {}
    for one in chart.series:
        if not one.reference:
            for at, y in thin(one.points):
                values.setdefault(at, []).append(f"{one.name} {chart.read(y)}")
    if not 1 < len(values) <= 2 * MOST_POINTS:
        return Html("")
    drawn, places = [], sorted(values)
    around = [2 * places[0] - places[1], *places, 2 * places[-1] - places[-2]]
    for before, at, after in zip(around, places, around[2:], strict=False):
        words = "  \u00b7  ".join([chart.across.read(at), *values[at]])
        early, x, late = (chart.across.at(one, last) for one in (before, at, after))
        read = label(1, 10, words, "read", anchor="end", dx=chart.right)
        left, wide = (early + x) / 2, (late - early) / 2
        area = el("rect", x=percent(left), y="0", width=percent(wide), height=f"{height:g}")
        drawn.append(
            el("g", area, el("g", line(x, _TOP, x, height, "cursor"), read, class_="tip"), class_="hit")
        )
    return join(drawn)


@dataclass(frozen=True)
class Change:
    """One client before and after."""

    name: str
    before: float | None
    after: float | None


_ROW = 22.0
_KEY = join(["\u25cb before\u00a0\u00a0\u00a0", el("tspan", "\u25cf", class_="full"), " after"])


def dumbbells(
    name: str, title: str, words: str, groups: Sequence[tuple[str, Sequence[Change]]], kind: Measure
) -> Html:
    """A row per client: a ring where it began, a dot where it ended, the difference at the side."""
    values = [v for _, rows in groups for row in rows for v in (row.before, row.after) if v is not None]
    axis = kind.axis(values, 4, 50)
    shown = kind.ticks(axis)
    y, body = 24.0, []
    for group, rows in groups:
        body.append(label(0, y, group, "group", anchor="end", dx=-12))
        if group == groups[0][0]:
            body.append(label(1, y, _KEY, "tick", anchor="end", dx=66))
        for row in rows:
            y += _ROW
            body.append(_dumbbell(row, axis, y, kind))
        y += _ROW * 1.6
    height = y - _ROW * 0.3
    rules = [line(axis.at(t), 36, axis.at(t), height - 22, "rule") for t in axis.ticks]
    ticks = [label(axis.at(t), height - 8, shown(t), "tick", anchor="middle") for t in axis.ticks]
    return canvas(name, title, words, height, (108, 70), *rules, *body, *ticks)


def _dumbbell(row: Change, axis: Axis, y: float, measured: Measure) -> Html:
    short = clean(row.name, 12)
    drawn = [line(0, y, 1, y, "row"), label(0, y, short, "name", anchor="end", dx=-12)]
    if row.before is not None and row.after is not None:
        change = row.after - row.before
        kind = "worse" if measured.gain(change) < 0 else "better"
        drawn.append(line(axis.at(row.before), y, axis.at(row.after), y, f"bar {kind}"))
        drawn.append(label(1, y, measured.bare(change), f"change {kind}", anchor="end", dx=66))
    if row.before is not None:
        drawn.append(dot(axis.at(row.before), y, "ring", 4))
    if row.after is not None:
        drawn.append(dot(axis.at(row.after), y, "full", 4.5))
    tip = f"{clean(row.name, 100)}: {measured.shown(row.before)} before, {measured.shown(row.after)} after"
    return el("g", el("title", tip), *drawn)


@dataclass(frozen=True)
class Bar:
    """One bar: its name, its length, and the value as text."""

    name: str
    value: float
    shown: str
    kind: str = ""


def bars(
    name: str,
    title: str,
    words: str,
    rows: Sequence[Bar],
    *,
    left: int = 112,
    full: float | None = None,
    rule: tuple[float, str] | None = None,
) -> Html:
    """Bars from zero, each with its name on the left and its value at its end.

    Args:
        name: prefix of the ids.
        title: what the chart is.
        words: what it shows.
        rows: the bars, from the top.
        left: pixels for the names.
        full: the value of a bar over the whole width; the longest bar where it is not given.
        rule: a value to mark across all bars, with its name.
    """
    whole = full or max((row.value for row in rows), default=0.0) or 1.0
    top = 24.0 if rule else 4.0
    body: list[Html] = []
    for k, row in enumerate(rows):
        y, long = top + 13 + 28 * k, min(row.value / whole, 1.0)
        area = el(
            "rect", x="0", y=f"{y - 8:.1f}", width=percent(long), height="16", class_=f"fill {row.kind}"
        )
        body += [label(0, y, clean(row.name, 16), "name", anchor="end", dx=-12), area]
        body.append(label(long, y, row.shown, "strong halo", dx=8))
    height = top + 28 * len(rows) + 4
    if rule:
        x = min(rule[0] / whole, 1.0)
        body = [line(x, 18, x, height, "limit"), label(x, 8, rule[1], "tick", anchor="middle"), *body]
    return canvas(name, title, words, height, (left, 84), *body)
