"""Several runs beside each other: ``sweep.html``, and the table for a terminal."""

from collections.abc import Sequence
from pathlib import Path

from fedge.report.charts import Series
from fedge.report.cost import COSTS, Cost, cost_chart, log_start, series
from fedge.report.html import Html, el, table
from fedge.report.measure import Measure, named
from fedge.report.page import document, write_page
from fedge.report.read import Record, amount, number, part, rows, total_bytes
from fedge.report.svg import figure
from fedge.report.words import cell, clean, plural

MOST_LINES = 12
"""A chart shows no more runs than this: those that ended best. The table has them all."""

_HUES = ("one", "two", "three", "four", "five", "six")


def write_sweep_html(sweep: Record, path: Path) -> None:
    """Write the page of a ``sweep.json``; the same one gives the same bytes.

    Raises:
        SetupError: the file cannot be written.
    """
    write_page(sweep_page(sweep), path)


def sweep_page(sweep: Record) -> str:
    """The page as text: a plot for each cost, a line for each point, and the table."""
    kind, points = _measure(sweep), rows(sweep, "points")
    scenario, names = clean(sweep.get("scenario"), 80), ", ".join(clean(k, 80) for k in part(sweep, "sweep"))
    charts = [one for cost in COSTS if (one := _figure(kind, points, cost)) is not None]
    body = el(
        "body",
        el(
            "header",
            el("p", "Sweep of simulations", class_="eyebrow"),
            el("h1", scenario),
            el("p", f"{plural(len(points), 'run')}, which differ in {names}.", class_="lead"),
        ),
        el(
            "main",
            el("section", el("h2", "Score against cost"), el("div", *charts, class_="pair"), id="cost"),
            el(
                "section",
                el("h2", "Every run"),
                _table(kind, points),
                el("p", _note(kind, points), class_="note"),
                id="runs",
            ),
        ),
        el("footer", "Made by fedge from sweep.json; this page loads nothing and runs no script."),
    )
    return document(f"{scenario}, sweep", body)


def sweep_lines(sweep: Record) -> list[str]:
    """The table for a terminal, in columns."""
    kind, points = _measure(sweep), rows(sweep, "points")
    lines = [_head(kind, points), *(_row(kind, one, points) for one in points)]
    wide = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    shown = [
        "  ".join([line[0].ljust(wide[0]), *(c.rjust(w) for c, w in zip(line[1:], wide[1:], strict=True))])
        for line in lines
    ]
    return [*(line.rstrip() for line in shown), *filter(None, [_note(kind, points)])]


def point_name(point: Record) -> str:
    """What is particular of a run: ``buffer 4, seed 0``; whole keys where their ends are the same."""
    settings = part(point, "settings")
    ends = [clean(key, 80).rpartition(".")[2] for key in settings]
    names = ends if len(set(ends)) == len(ends) else [clean(key, 80) for key in settings]
    return ", ".join(
        f"{name} {clean(value, 40)}" for name, value in zip(names, settings.values(), strict=True)
    )


def _measure(sweep: Record) -> Measure:
    finals = [number(one, "score", who) for one in rows(sweep, "points") for who in ("clients", "unseen")]
    return named(clean(sweep.get("metric") or "score", 40), finals)


def _figure(kind: Measure, points: Sequence[Record], cost: Cost) -> Html | None:
    known = [one for one in points if kind.of(one, "score", "clients") is not None]
    best = sorted(known, key=lambda one: number(one, "score", "clients") or 0.0, reverse=True)[:MOST_LINES]
    lines: list[Series] = []
    for place, one in enumerate(p for p in points if p in best):
        hue = _HUES[place % len(_HUES)] + (" dashed" if place >= len(_HUES) else "")
        lines.append(series(kind, one, cost, "clients", point_name(one), hue))
    chart = cost_chart(kind, cost, lines, f"sweep-{cost.total}", height=320.0, right=170)
    if chart is None:
        return None
    about = f"{kind.name} of the clients{kind.direction} against {cost.name}"
    if log_start(lines):
        about += ", on a logarithmic scale"
    if len(known) > len(best):
        about += f"; the {MOST_LINES} that ended best"
    body = [[point_name(one), cell(_total(one, cost), cost.shown)] for one in points]
    numbers = table(f"Whole run, {cost.name}", ["run", cost.name], body)
    return figure(f"sweep-{cost.total}-chart", cost.name.capitalize(), about, chart, numbers)


def _total(point: Record, cost: Cost) -> float | None:
    if cost.total == "bytes":
        return total_bytes(point)
    return amount(point, "virtual", {"seconds": "seconds", "joules": "joules_mean"}[cost.total])


def _shown_costs(points: Sequence[Record]) -> list[Cost]:
    return [cost for cost in COSTS if any(_total(one, cost) is not None for one in points)]


def _head(kind: Measure, points: Sequence[Record]) -> list[str]:
    costs = _shown_costs(points)
    head = ["run", f"{kind.name}, clients", "unseen", *(cost.short for cost in costs)]
    if (target := _same(kind, points)) is not None:
        head += [f"{cost.short} to {kind.shown(target)}" for cost in costs]
    return head


def _row(kind: Measure, point: Record, points: Sequence[Record]) -> list[str]:
    costs = _shown_costs(points)
    row = [point_name(point), *(cell(kind.of(point, "score", w), kind.shown) for w in ("clients", "unseen"))]
    row += [cell(_total(point, cost), cost.shown) for cost in costs]
    if _same(kind, points) is not None:
        row += [cell(amount(point, "same_score", cost.total), cost.shown) for cost in costs]
    return row


def _table(kind: Measure, points: Sequence[Record]) -> Html:
    return table(
        "One run a line; time is virtual, bytes and energy are means per client",
        _head(kind, points),
        [_row(kind, one, points) for one in points],
    )


def _note(kind: Measure, points: Sequence[Record]) -> str:
    """Which score it is that all of them are compared at."""
    target = _same(kind, points)
    if target is None:
        return ""
    below = "1 %" if kind.lower else "1 point"
    return (
        f"{kind.shown(target)} is a score of the clients that every run reaches: {below} short of the lowest "
        "final one, each the mean of three rounds."
    )


def _same(kind: Measure, points: Sequence[Record]) -> float | None:
    return next((s for one in points if (s := kind.of(one, "same_score", "score")) is not None), None)
