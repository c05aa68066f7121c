"""Further scores: other metrics, all windows pooled, and heads that stay with the clients."""

from collections.abc import Sequence

from fedge.report.html import Html, el, join, table
from fedge.report.measure import Measure, measure, named
from fedge.report.read import Record, number, part
from fedge.report.words import cell, clean

_POOLED = "_pooled"
_COLUMNS = (("clients", "clients"), ("unseen", "unseen"), ("pooled", "unseen, pooled"))
_POOL = (
    "Pooled: the windows of all unseen clients as one lot, where a score must mean the same on every device."
)

Line = tuple[Measure, dict[str, float]]


def further(report: Record) -> list[Line]:
    """Each metric beside the main one with its values by column; the main one first, if it was pooled."""
    main = clean(report.get("metric") or "score", 40)
    found: dict[str, dict[str, float]] = {}
    for raw in part(report, "more_scores"):
        metric = clean(raw, 60)
        pooled = metric.endswith(_POOLED)
        for group in ("clients", "unseen"):
            if (value := number(report, "more_scores", raw, group)) is not None:
                column = "pooled" if pooled else group
                found.setdefault(metric.removesuffix(_POOLED), {})[column] = value
    if main in found:
        int8 = {g: number(report, "score", f"{g}_int8") for g in ("clients", "unseen")}
        found = {main: {g: v for g, v in int8.items() if v is not None} | found.pop(main), **found}
    return [_line(metric, values) for metric, values in found.items()]


def _line(metric: str, values: dict[str, float]) -> Line:
    kind = named(metric, values.values())
    return kind, {column: -value if kind.lower else value for column, value in values.items()}


def more_scores(report: Record) -> Html | None:
    """A table of them, and what the clients' own heads are worth."""
    lines = further(report)
    drawn = [_table(lines) if lines else None, _personal(report)]
    return join(drawn) if any(drawn) else None


def _table(lines: Sequence[Line]) -> Html:
    columns = [(key, name) for key, name in _COLUMNS if any(key in values for _, values in lines)]
    body = [
        [kind.name + kind.direction, *(cell(values.get(key), kind.shown) for key, _ in columns)]
        for kind, values in lines
    ]
    head = ["metric", *(name for _, name in columns)]
    pooled = any(key == "pooled" for key, _ in columns)
    return join(
        [
            el("h3", "Further scores of the int8 model"),
            table("Means over clients, each on its own later windows", head, body),
            el("p", _POOL, class_="note") if pooled else None,
        ]
    )


def _personal(report: Record) -> Html | None:
    kind = measure(report)
    value = kind.of(report, "personal")
    if value is None:
        return None
    return el(
        "p",
        f"With the heads that stay on the clients: {kind.name} {kind.shown(value)} in the last round, mean"
        " over participants. All other scores are of the one global model, whose head no client trains.",
        class_="note",
    )


def summary_line(report: Record) -> str:
    """The same for a terminal; what the other lines say of the main metric is left out."""
    main, told = measure(report).name, []
    for kind, values in further(report):
        columns = [
            pair for pair in _COLUMNS if pair[0] in values and (kind.name != main or pair[0] == "pooled")
        ]
        shown = [f"{kind.shown(values[key])} {name.replace(',', '')}" for key, name in columns]
        told.append(f"{kind.name} {', '.join(shown)}")
    return "; ".join(told)
