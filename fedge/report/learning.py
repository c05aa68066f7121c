"""What was learned: the score per round, further scores, and each client before and after."""

from collections.abc import Sequence

from fedge.report.charts import Change, Chart, Lane, Series, dumbbells, line_chart
from fedge.report.html import Html, el, table
from fedge.report.measure import Measure, measure
from fedge.report.more import more_scores
from fedge.report.read import Record, amount, number, part, rounds, rows
from fedge.report.svg import figure
from fedge.report.words import cell, clean, plural

Points = list[tuple[float, float]]

GROUPS = (("clients", "one"), ("unseen", "two"))
"""Whose scores there are, and the colour of each."""

MOST_ROWS = 24
"""A chart shows no more clients than this: the best and the worst scores. The table has them all."""


def score_section(report: Record) -> Html | None:
    """The score per round, with what the server did below it."""
    kind = measure(report)
    series = [line for key, hue in GROUPS if (line := score_series(kind, report, key, hue)).points]
    if not series:
        return None
    last = max(x for one in series for x, _ in one.points)
    teacher = kind.of(report, "teacher", "score_unseen")
    if teacher is not None:
        series.append(Series("teacher", "plain", [(0, teacher), (last, teacher)], kind.shown(teacher), True))
    axis = kind.axis(y for one in series for _, y in one.points)
    name = kind.name
    words = "; ".join(f"{one.name} from {kind.shown(one.points[0][1])} to {one.shown}" for one in series[:2])
    chart = Chart(
        "score", f"{name} per round", words, series, axis, kind.ticks(axis), kind.shown, _lanes(report), 260
    )
    head = el("h2", "Score")
    about = (
        f"{name}{kind.unit} of the global weights as the clients hold them; round 0 is the distilled student"
    )
    if teacher is not None:
        about += f"; {'your own' if part(report, 'teacher').get('own') else 'the'} teacher on unseen clients"
    return el(
        "section",
        head,
        figure("score-chart", _finding(kind, report), about, line_chart(chart), _rounds_table(kind, report)),
        more_scores(report),
        id="score",
    )


def _finding(kind: Measure, report: Record) -> str:
    parts = []
    for key, _ in GROUPS:
        before, after = kind.of(report, "score", f"{key}_initial"), kind.of(report, "score", key)
        if before is not None and after is not None:
            parts.append(f"{key} {kind.change(after - before)}")
    return f"{', '.join(parts).capitalize()} over the rounds" if parts else "Score over the rounds"


def score_series(kind: Measure, report: Record, key: str, hue: str, *, whole: Record | None = None) -> Series:
    """The score of one group per round, from the distilled student at round 0."""
    first = kind.of(whole or report, "score", f"{key}_initial")
    measured: Points = [(0, first)] if first is not None else []
    for at, row in rounds(report):
        if (y := kind.of(row, f"score_{key}")) is not None:
            measured.append((at, y))
    return Series(key, hue, measured, kind.shown(measured[-1][1]) if measured else "")


def _lanes(report: Record) -> list[Lane]:
    """What the server did, from its own lists where the report has them, else from the rounds."""
    tried, published = rows(report, "redistillations"), rows(report, "releases")
    log = rounds(report)
    if tried:
        first = [_sign(one, "yes" if one.get("accepted") else "no", verdict(one)) for one in tried]
    else:
        first = [(at, "yes", f"re-distilled in round {at}") for at, row in log if row.get("redistilled")]
    if published:
        second = [_sign(one, "release", f"release {clean(one.get('version'), 40)}") for one in published]
    else:
        known = [(at, row.get("released_version")) for at, row in log]
        second = [(at, "release", f"release {clean(v, 40)}, round {at}") for at, v in known if v is not None]
    lanes = (
        (name, [s for s in signs if s]) for name, signs in (("re-distillation", first), ("release", second))
    )
    return [Lane(name, signs) for name, signs in lanes if signs]


def _sign(one: Record, sign: str, words: str) -> tuple[float, str, str] | None:
    at = amount(one, "round")
    return None if at is None else (at, sign, f"{words}, round {at:g}")


def verdict(one: Record) -> str:
    """What the judges' answer means: of a candidate, or of the step that the server adds to every round."""
    yes = bool(one.get("accepted"))
    if one.get("mode") == "gradient":
        return "the step goes on" if yes else "the step does not go on"
    return "accepted" if yes else "refused"


def _rounds_table(kind: Measure, report: Record) -> Html:
    head = ["round", "clients", "unseen", "up", "down", "seconds", "clients in the round", "loss"]
    body = []
    for at, row in rounds(report):
        taking = row.get("participants")
        there = float(len(taking)) if isinstance(taking, list) else amount(row, "participants")
        body.append(
            [
                at,
                *(cell(kind.of(row, f"score_{key}"), kind.shown) for key, _ in GROUPS),
                *(cell(amount(row, key)) for key in ("uplink", "downlink")),
                cell(amount(row, "seconds"), "{:.2f}".format),
                cell(there),
                cell(number(row, "loss"), "{:.4f}".format),
            ]
        )
    return table("Per round; up and down are mean bytes per client", head, body)


def clients_section(report: Record) -> Html | None:
    """Each client before and after the rounds: those that took part, and those never seen."""
    kind, log = measure(report), rows(report, "clients_log")
    groups = [(word, [_change(kind, row) for row in log if row.get("role") == role]) for role, word in _ROLES]
    scored = [(word, _sorted(kind, changes)) for word, changes in groups]
    shown = [(word, _ends(changes)) for word, changes in scored if changes]
    if not shown:
        return None
    finding = _found(kind, [change for _, changes in scored for change in changes])
    about = f"{kind.name} on each client's own later data, the best first; the change at the side"
    about += " in points" if kind.points else ""
    if any(len(changes) > MOST_ROWS for _, changes in scored):
        about += f"; the {MOST_ROWS // 2} best and the {MOST_ROWS // 2} worst of each group"
    if none := sum(len(changes) for _, changes in groups) - sum(len(changes) for _, changes in scored):
        about += f". Without a score, since their windows do not define it: {plural(none, 'client')}"
    title = f"{kind.name} of each client before and after"
    return el(
        "section",
        el("h2", "Client by client"),
        figure(
            "change-chart",
            finding,
            about,
            dumbbells("change", title, finding, shown, kind),
            _clients_table(kind, log),
        ),
        id="clients",
    )


_ROLES = (("participant", "took part"), ("unseen", "never seen"))


def _found(kind: Measure, changes: Sequence[Change]) -> str:
    gains = [kind.gain(c.after - c.before) for c in changes if c.after is not None and c.before is not None]
    same = sum(gain == 0 for gain in gains)
    better = (
        f"{sum(gain > 0 for gain in gains)} of {plural(len(gains), 'client')} ended better than they began"
    )
    return f"{better}, {same} the same" if same else better


def _change(kind: Measure, row: Record) -> Change:
    return Change(clean(row.get("id"), 100), kind.of(row, "score_initial"), kind.of(row, "score_final"))


def _sorted(kind: Measure, changes: Sequence[Change]) -> list[Change]:
    """Those with a score, the best first by where they ended."""
    ended = [change for change in changes if change.after is not None]
    began = [change for change in changes if change.after is None and change.before is not None]
    return [*sorted(ended, key=lambda c: c.after or 0.0, reverse=not kind.lower), *began]


def _ends(changes: list[Change]) -> list[Change]:
    half = MOST_ROWS // 2
    return changes if len(changes) <= MOST_ROWS else changes[:half] + changes[-half:]


def _clients_table(kind: Measure, log: Sequence[Record]) -> Html:
    head = ["client", "role", "windows to train", "later windows", "before", "after", "int8", "up", "down"]
    body = [
        [
            clean(row.get("id"), 60),
            clean(row.get("role", ""), 20),
            *(cell(amount(row, key)) for key in ("windows_train", "windows_later")),
            *(cell(kind.of(row, key), kind.shown) for key in ("score_initial", "score_final", "score_int8")),
            *(cell(amount(row, key)) for key in ("uplink", "downlink")),
        ]
        for row in log
    ]
    return table(f"Per client, {kind.name}; up and down in bytes over the whole run", head, body)
