"""What was learned: the score per round, each client before and after, and the re-distillations."""

from collections.abc import Sequence
from typing import Any

from fedge.report.charts import Change, Chart, Lane, Series, dumbbells, line_chart
from fedge.report.html import Html, el, folded, join, table
from fedge.report.overview import metric
from fedge.report.read import Record, amount, number, part, rounds, rows
from fedge.report.svg import figure, linear
from fedge.report.words import cell, clean, plural, points, score, short_score, size

Points = list[tuple[float, float]]

_BOTH = (("clients", "one"), ("unseen", "two"))
MOST_ROWS = 24
"""A chart shows no more clients than this: the lowest and the highest scores. The table has them all."""


def score_section(report: Record) -> Html | None:
    """The score per round, with what the server did below it."""
    series = [line for key, kind in _BOTH if (line := _series(report, key, kind)).points]
    if not series:
        return None
    last = max(x for one in series for x, _ in one.points)
    teacher = number(report, "teacher", "score_unseen")
    if teacher is not None:
        series.append(Series("teacher", "plain", [(0, teacher), (last, teacher)], score(teacher), True))
    axis = linear((y for one in series for _, y in one.points), at_least=0.02)
    name = metric(report)
    words = "; ".join(f"{one.name} from {score(one.points[0][1])} to {one.shown}" for one in series[:2])
    chart = Chart("score", f"{name} per round", words, series, axis, short_score, score, _lanes(report), 260)
    head = el("h2", "Score")
    about = f"{name} of the global weights as the clients hold them; round 0 is the distilled student"
    if teacher is not None:
        about += "; the teacher on unseen clients"
    return el(
        "section",
        head,
        figure("score-chart", _finding(report), about, line_chart(chart), _rounds_table(report)),
        id="score",
    )


def _finding(report: Record) -> str:
    parts = []
    for key, _ in _BOTH:
        before, after = number(report, "score", f"{key}_initial"), number(report, "score", key)
        if before is not None and after is not None:
            parts.append(f"{key} {points(after - before)} points")
    return f"{', '.join(parts).capitalize()} over the rounds" if parts else "Score over the rounds"


def _series(report: Record, key: str, kind: str, *, whole: Record | None = None) -> Series:
    """The score of one group per round, from the distilled student at round 0."""
    first = number(whole or report, "score", f"{key}_initial")
    measured: Points = [(0, first)] if first is not None else []
    for at, row in rounds(report):
        if (y := number(row, f"score_{key}")) is not None:
            measured.append((at, y))
    return Series(key, kind, measured, score(measured[-1][1]) if measured else "")


def _lanes(report: Record) -> list[Lane]:
    """What the server did, from its own lists where the report has them, else from the rounds."""
    tried, published = rows(report, "redistillations"), rows(report, "releases")
    log = rounds(report)
    if tried:
        first = [_sign(one, "yes" if one.get("accepted") else "no", _verdict(one)) for one in tried]
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


def _verdict(one: Record) -> str:
    return "accepted" if one.get("accepted") else "refused"


def _rounds_table(report: Record) -> Html:
    head = ["round", "clients", "unseen", "up", "down", "seconds", "clients in the round", "loss"]
    body = []
    for at, row in rounds(report):
        taking = row.get("participants")
        there = float(len(taking)) if isinstance(taking, list) else amount(row, "participants")
        body.append(
            [
                at,
                *(cell(number(row, f"score_{key}"), score) for key, _ in _BOTH),
                *(cell(amount(row, key)) for key in ("uplink", "downlink")),
                cell(amount(row, "seconds"), "{:.2f}".format),
                cell(there),
                cell(number(row, "loss"), "{:.4f}".format),
            ]
        )
    return table("Per round; up and down are mean bytes per client", head, body)


def clients_section(report: Record) -> Html | None:
    """Each client before and after the rounds: those that took part, and those never seen."""
    log = rows(report, "clients_log")
    groups = [(word, [_change(row) for row in log if row.get("role") == role]) for role, word in _ROLES]
    shown = [(word, _ends(_sorted(changes))) for word, changes in groups if changes]
    if not shown:
        return None
    every = [change for _, changes in groups for change in changes]
    differences = [c.after - c.before for c in every if c.after is not None and c.before is not None]
    better = sum(round(difference, 4) > 0 for difference in differences)
    finding = f"{better} of {plural(len(differences), 'client')} ended higher than they began"
    about = f"{metric(report)} on each client's own later data, in order of where it ended; change in points"
    if any(len(changes) > MOST_ROWS for _, changes in groups):
        about += f"; the {MOST_ROWS // 2} lowest and the {MOST_ROWS // 2} highest of each group"
    drawing = dumbbells("change", "Score of each client before and after", finding, shown)
    return el(
        "section",
        el("h2", "Client by client"),
        figure("change-chart", finding, about, drawing, _clients_table(log)),
        id="clients",
    )


_ROLES = (("participant", "took part"), ("unseen", "never seen"))


def _change(row: Record) -> Change:
    return Change(clean(row.get("id"), 100), number(row, "score_initial"), number(row, "score_final"))


def _sorted(changes: Sequence[Change]) -> list[Change]:
    return sorted(changes, key=lambda c: -1e30 if c.after is None else c.after, reverse=True)


def _ends(changes: list[Change]) -> list[Change]:
    half = MOST_ROWS // 2
    return changes if len(changes) <= MOST_ROWS else changes[:half] + changes[-half:]


def _clients_table(log: Sequence[Record]) -> Html:
    head = ["client", "role", "windows to train", "later windows", "before", "after", "int8", "up", "down"]
    body = [
        [
            clean(row.get("id"), 60),
            clean(row.get("role", ""), 20),
            *(cell(amount(row, key)) for key in ("windows_train", "windows_later")),
            *(cell(number(row, key), score) for key in ("score_initial", "score_final", "score_int8")),
            *(cell(amount(row, key)) for key in ("uplink", "downlink")),
        ]
        for row in log
    ]
    return table("Per client; up and down in bytes over the whole run", head, body)


def redistillation_section(report: Record) -> Html | None:
    """What re-distillation tried, who judged it, and the same run without it."""
    tried = rows(report, "redistillations")
    without = part(report, "without_redistillation")
    if not tried and not without:
        return None
    accepted = sum(bool(one.get("accepted")) for one in tried)
    told = f"{plural(len(tried), 'candidate')} distilled on the server, {accepted} accepted."
    return el(
        "section",
        el("h2", "Re-distillation"),
        el("p", f"{told} What each was judged on, and why:"),
        el("ol", *(_case(one) for one in tried), class_="cases") if tried else None,
        _without(report, without),
        id="redistillation",
    )


def _case(one: Record) -> Html:
    verdict = "\u2713 accepted" if one.get("accepted") else "\u2715 refused"
    place = f"round {_whole(one, 'round')}"
    if amount(one, "judged_in_round") is not None:
        place += f", judged in round {_whole(one, 'judged_in_round')}"
    left = el(
        "div",
        el("p", verdict, class_=f"verdict {'yes' if one.get('accepted') else 'no'}"),
        el("p", place, class_="note"),
    )
    return el("li", left, el("div", *_evidence(one)))


def _whole(one: Record, key: str) -> str:
    value = amount(one, key)
    return "?" if value is None else f"{value:.0f}"


def _evidence(one: Record) -> list[Html | None]:
    aggregate, candidate = number(one, "aggregate"), number(one, "candidate")
    facts = []
    if one.get("mode"):
        facts.append(f"mode {clean(one['mode'], 60)}")
    if aggregate is not None and candidate is not None:
        facts.append(f"aggregate {score(aggregate)}, candidate {score(candidate)}")
        facts.append(f"{points(candidate - aggregate)} points")
    if (cost := amount(one, "bytes")) is not None:
        facts.append(f"{size(cost)} sent for it")
    reason = el("p", clean(one["reason"])) if one.get("reason") else None
    return [reason, el("p", "  \u00b7  ".join(facts), class_="note") if facts else None, _judges(one)]


def _judges(one: Record) -> Html | None:
    judges = rows(one, "judges")
    if not judges:
        return None
    body = [
        [
            clean(judge.get("client"), 60),
            cell(amount(judge, "windows")),
            cell(number(judge, "aggregate"), score),
            cell(number(judge, "candidate"), score),
        ]
        for judge in judges
    ]
    head = ["client", "windows", "aggregate", "candidate"]
    return folded(
        f"Judged by {plural(len(judges), 'client')}", table("Score on each judge's own windows", head, body)
    )


def _without(report: Record, without: Record) -> Html | None:
    if not without:
        return None
    if without.get("same_as_this_run") is True:
        return el("p", "No candidate was accepted, so this run is the run without re-distillation.")
    drawn = [_beside(report, without, key, kind) for key, kind in _BOTH]
    pair = el("div", *drawn, class_="pair")
    return join([el("h3", "Beside the same run without it"), pair]) if any(drawn) else None


def _beside(report: Record, without: Record, key: str, kind: str) -> Html | None:
    here, there = _series(report, key, kind), _series(without, key, kind, whole=report)
    with_it, without_it = number(report, "score", key), number(without, "score", key)
    if with_it is None and here.points:
        with_it = here.points[-1][1]
    if without_it is None and there.points:
        without_it = there.points[-1][1]
    if with_it is None or without_it is None or len(here.points) < 2 or len(there.points) < 2:
        return None
    lines = [
        Series("without", "plain", there.points, score(without_it)),
        Series("with", kind, here.points, score(with_it)),
    ]
    axis = linear((y for one in lines for _, y in one.points), 4, at_least=0.02)
    finding = f"{key.capitalize()}: {points(with_it - without_it)} points with re-distillation"
    words = f"{score(with_it)} with it, {score(without_it)} without it"
    name = f"beside-{key}"
    chart = Chart(
        name,
        f"Score on {key} with and without re-distillation",
        words,
        lines,
        axis,
        short_score,
        score,
        (),
        180,
        104,
    )
    body: dict[float, list[Any]] = {at: [f"{at:g}", score(y), ""] for at, y in here.points}
    for at, y in there.points:
        body.setdefault(at, [f"{at:g}", "", ""])[2] = score(y)
    numbers = table(f"Score on {key}", ["round", "with", "without"], [body[at] for at in sorted(body)])
    return figure(f"{name}-chart", finding, words, line_chart(chart), numbers)
