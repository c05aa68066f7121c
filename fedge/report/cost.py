"""What the score cost: against bytes and, where there was a fleet, against virtual time and energy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedge.report.charts import Across, Chart, Series, line_chart
from fedge.report.html import Html, el, table
from fedge.report.learning import GROUPS
from fedge.report.measure import Measure, measure
from fedge.report.read import Record, amount, number, part, rounds, rows
from fedge.report.svg import figure
from fedge.report.words import cell, clean, energy, seconds, size

_FAR = 5.0
"""How many times further than another a line goes, for an axis to be logarithmic."""

Shown = Callable[[float | None], str]


@dataclass(frozen=True)
class Cost:
    """One thing that rounds cost.

    Attributes:
        key: of the cost of one round in ``rounds_log``.
        name: what it is called.
        short: the same in a word.
        total: its name in ``time_to_accuracy`` and in a sweep.
        shown: how an amount is written.
        units: name and size of each unit of an axis, ascending.
    """

    key: str
    name: str
    short: str
    total: str
    shown: Shown
    units: tuple[tuple[str, float], ...]

    def unit(self, most: float) -> tuple[str, float]:
        """The largest unit of which ``most`` is three or more; else the smallest."""
        fitting = [unit for unit in self.units if most >= 3 * unit[1]]
        return fitting[-1] if fitting else self.units[0]


COSTS = (
    Cost(
        "virtual_seconds",
        "virtual time",
        "time",
        "seconds",
        seconds,
        (("s", 1.0), ("min", 60.0), ("hours", 3600.0), ("days", 86_400.0)),
    ),
    Cost(
        "bytes_per_client",
        "bytes per client",
        "bytes",
        "bytes",
        size,
        (("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9)),
    ),
    Cost("joules", "energy per client", "energy", "joules", energy, (("mJ", 1e-3), ("J", 1.0), ("kJ", 1e3))),
)


def spent(report: Record, cost: Cost) -> list[float]:
    """The cost from the start to the end of each round; empty where a round does not say it."""
    sums, so_far = [], 0.0
    for _, row in rounds(report):
        if (more := amount(row, cost.key)) is None:
            return []
        so_far += more
        sums.append(so_far)
    return sums


def series(kind: Measure, report: Record, cost: Cost, who: str, name: str, hue: str) -> Series:
    """The score of a group of clients against a cost so far; it begins with the student as first made."""
    costs, first = spent(report, cost), kind.of(report, "score", f"{who}_initial")
    pairs = [(0.0, first)] if costs and first is not None else []
    pairs += [
        (at, y)
        for at, (_, row) in zip(costs, rounds(report), strict=False)
        if (y := kind.of(row, f"score_{who}")) is not None
    ]
    return Series(name, hue, pairs, kind.shown(pairs[-1][1]) if pairs else "")


def cost_chart(
    kind: Measure, cost: Cost, lines: list[Series], name: str, *, height: float = 240.0, right: int = 112
) -> Html | None:
    """Some lines (of ``series``), in the unit of the cost that suits them; ``None`` without points.

    Where one of them ends far before another the axis is logarithmic: else it would be lost in the corner.
    """
    most = max((x for one in lines for x, _ in one.points), default=0.0)
    if most <= 0:
        return None
    unit, factor = cost.unit(most)
    start = log_start(lines)
    scaled = [
        Series(
            one.name,
            one.kind,
            [(x / factor, y) for x, y in one.points if x >= start],
            one.shown,
            one.reference,
        )
        for one in lines
        if one.points
    ]
    axis = kind.axis(y for one in scaled for _, y in one.points)
    title = f"{kind.name} against {cost.name}"
    words = ", ".join(f"{one.name} {one.shown}" for one in scaled)
    across = Across(unit, 1e-6, start / factor)
    shown = kind.ticks(axis)
    return line_chart(
        Chart(name, title, words, scaled, axis, shown, kind.shown, height=height, right=right, across=across)
    )


def log_start(lines: Sequence[Series]) -> float:
    """Where a logarithmic axis begins: at the first cost of all; 0 where the lines end near each other."""
    ends = [one.points[-1][0] for one in lines if one.points]
    first = [x for one in lines for x, _ in one.points if x > 0]
    return min(first) if first and min(ends) * _FAR < max(ends) else 0.0


def cost_section(report: Record) -> Html | None:
    """The score against virtual time, bytes and energy, and what it took to come close to the final one."""
    kind = measure(report)
    drawn = [one for cost in COSTS if (one := _figure(kind, report, cost)) is not None]
    reached = _reached_table(kind, report)
    if not drawn and reached is None:
        return None
    return el(
        "section",
        el("h2", "What the score cost"),
        el("p", _about(report)),
        el("div", *drawn, class_="pair") if drawn else None,
        reached,
        id="cost",
    )


def _figure(kind: Measure, report: Record, cost: Cost) -> Html | None:
    lines = [series(kind, report, cost, who, who, hue) for who, hue in GROUPS]
    chart = cost_chart(kind, cost, lines, f"score-{cost.total}")
    if chart is None:
        return None
    sums = spent(report, cost)
    body = [
        [at, cost.shown(so_far), *(cell(kind.of(row, f"score_{who}"), kind.shown) for who, _ in GROUPS)]
        for so_far, (at, row) in zip(sums, rounds(report), strict=True)
    ]
    numbers = table(f"Score against {cost.name}", ["round", cost.name, *(who for who, _ in GROUPS)], body)
    about = f"{kind.name}{kind.direction} against {cost.name}"
    return figure(f"score-{cost.total}-chart", f"{cost.shown(sums[-1])} in all", about, chart, numbers)


def _about(report: Record) -> str:
    virtual = part(report, "virtual")
    if not virtual:
        return "Mean per client of the whole fleet, up and down, the first download included."
    fleet = clean(virtual.get("fleet"), 80)
    return (
        f"Time and energy are what devices such as those of {fleet} would have needed, by a cost model, not "
        "what this machine needed. The last round includes the delivery of the final weights to everyone. "
        "Bytes and energy are means per client of the whole fleet."
    )


def _reached_table(kind: Measure, report: Record) -> Html | None:
    body, reached = [], rows(report, "time_to_accuracy")
    costs = [cost for cost in COSTS if any(amount(one, cost.total) is not None for one in reached)]
    for one in reached:
        below = number(one, "below")
        if below is None:
            continue
        short = f"{100 * below:g} %" if kind.lower else f"{100 * below:g} points"
        body.append(
            [
                f"{clean(one.get('who'), 20)}, final less {short}",
                kind.shown(kind.of(one, "score")),
                cell(amount(one, "round")),
                *(cell(amount(one, cost.total), cost.shown) for cost in costs),
            ]
        )
    if not body:
        return None
    head = ["to reach", kind.name, "round", *(cost.name for cost in costs)]
    return table("What it took to come close to the final score, each averaged over three rounds", head, body)


def virtual_line(report: Record) -> str:
    """For a terminal: how long it would have taken on the fleet, and what it would have drawn."""
    virtual = part(report, "virtual")
    if not virtual:
        return ""
    mean, worst = amount(virtual, "joules_mean"), amount(virtual, "joules_worst")
    words = f"{seconds(amount(virtual, 'seconds'))} on {clean(virtual.get('fleet'), 80)}"
    if mean is not None:
        words += f", {energy(mean)} per client" + ("" if worst is None else f", {energy(worst)} at most")
    close = next((r for r in rows(report, "time_to_accuracy") if r.get("who") == "clients"), None)
    if close is not None and (took := amount(close, "seconds")) is not None:
        words += f"; within a point of the final score after {seconds(took)}"
    return words
