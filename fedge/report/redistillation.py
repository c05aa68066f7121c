"""Re-distillation: what was tried, who judged it, and the same run without it."""

import re
from typing import Any

from fedge.report.charts import Chart, Series, line_chart
from fedge.report.html import Html, el, folded, join, table
from fedge.report.learning import GROUPS, score_series, verdict
from fedge.report.measure import Measure, measure
from fedge.report.read import Record, amount, number, part, rows
from fedge.report.svg import figure
from fedge.report.words import cell, clean, plural, size

_RAW_SCORES = re.compile(r"^score \S+ to \S+, ")
"""How the server begins its reason: the scores as in the report, where an error has a minus sign."""

_MODES = {
    "teacher": "taught by the teacher",
    "ensemble": "taught by the ensemble",
    "gradient": "the server's own step",
}


def redistillation_section(report: Record) -> Html | None:
    """What re-distillation tried, who judged it, and the same run without it."""
    tried = rows(report, "redistillations")
    without = part(report, "without_redistillation")
    if not tried and not without:
        return None
    return el(
        "section",
        el("h2", "Re-distillation"),
        el("p", f"{told(report)} What was judged, on what, and why:") if tried else None,
        el("ol", *(_case(report, one) for one in tried), class_="cases") if tried else None,
        _without(report, without),
        id="redistillation",
    )


def told(report: Record) -> str:
    """What came of re-distillation, in a sentence or two."""
    tried = rows(report, "redistillations")
    accepted = sum(bool(one.get("accepted")) for one in tried)
    if not _is_gradient(tried):
        return f"{plural(len(tried), 'candidate')} distilled on the server, {accepted} accepted."
    times = (
        f"The judges looked at it {plural(len(tried), 'time')} and let it go on {plural(accepted, 'time')}."
    )
    return f"In each round the server may add a step of its own to the update. {times}"


def _is_gradient(tried: list[Record]) -> bool:
    return any(one.get("mode") == "gradient" for one in tried)


def _case(report: Record, one: Record) -> Html:
    yes = bool(one.get("accepted"))
    sign = "\u2713" if yes else "\u2715"
    place = f"round {_whole(one, 'round')}"
    if amount(one, "judged_in_round") is not None:
        place += f", judged in round {_whole(one, 'judged_in_round')}"
    left = el(
        "div",
        el("p", f"{sign} {verdict(one)}", class_=f"verdict {'yes' if yes else 'no'}"),
        el("p", place, class_="note"),
    )
    return el("li", left, el("div", *_evidence(report, one)))


def _whole(one: Record, key: str) -> str:
    value = amount(one, key)
    return "?" if value is None else f"{value:.0f}"


def _evidence(report: Record, one: Record) -> list[Html | None]:
    kind = measure(report)
    facts = []
    if one.get("mode"):
        mode = clean(one["mode"], 60)
        facts.append(_MODES.get(mode, f"mode {mode}"))
    facts += _scores(kind, one)
    if (cost := amount(one, "bytes")) is not None and _travelled(report, one):
        facts.append(f"{size(cost)} sent for it")
    reason = el("p", _reason(kind, one)) if one.get("reason") else None
    note = el("p", "  \u00b7  ".join(facts), class_="note") if facts else None
    return [reason, note, _judges(report, one)]


def _travelled(report: Record, one: Record) -> bool:
    """Whether clients received it: to judge it, or because it was accepted (as a step of its own)."""
    return not _on_server(report) or (bool(one.get("accepted")) and one.get("mode") != "gradient")


def _on_server(report: Record) -> bool:
    return part(report, "config", "redistill").get("judge") == "server"


def _reason(kind: Measure, one: Record) -> str:
    """The server's reason; an error's scores stand below it, without the minus sign."""
    words = clean(one["reason"])
    return _RAW_SCORES.sub("", words) if kind.lower else words


def _scores(kind: Measure, one: Record) -> list[str]:
    aggregate, candidate = kind.of(one, "aggregate"), kind.of(one, "candidate")
    if aggregate is None or candidate is None:
        if not rows(one, "judges"):
            return []
        return [f"{kind.name} not defined on the judges' windows: the loss decides"]
    both = f"{kind.name} {kind.shown(aggregate)} as it was, {kind.shown(candidate)} with the candidate"
    return [both, kind.change(candidate - aggregate)]


_LOSSES = ("aggregate_loss", "candidate_loss")


def _judges(report: Record, one: Record) -> Html | None:
    judges = rows(one, "judges")
    if not judges:
        return None
    kind = measure(report)
    losses = [key for key in _LOSSES if any(number(judge, key) is not None for judge in judges)]
    body = [
        [
            clean(judge.get("client"), 60),
            cell(amount(judge, "windows")),
            *(cell(kind.of(judge, key), kind.shown) for key in ("aggregate", "candidate")),
            *(cell(number(judge, key), "{:.4f}".format) for key in losses),
        ]
        for judge in judges
    ]
    who = "person held back" if _on_server(report) else "client"
    head = [who, "windows", "aggregate", "candidate", *(key.replace("_", ", ") for key in losses)]
    words = f"Judged by {plural(len(judges), who)}"
    if _on_server(report):
        words = f"Judged on the server, by the data of {_names(judges)}, held back from training"
    return folded(words, table(f"{kind.name} and loss on each judge's windows", head, body))


def _names(judges: list[Record], most: int = 6) -> str:
    names = [clean(judge.get("client"), 24) for judge in judges[:most]]
    more = len(judges) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _without(report: Record, without: Record) -> Html | None:
    if not without:
        return None
    if without.get("same_as_this_run") is True:
        none = "The server's step never went on" if _is_gradient(rows(report, "redistillations")) else None
        why = none or "No candidate was accepted"
        return el("p", f"{why}, so this run is the run without re-distillation.")
    drawn = [_beside(report, without, key, kind) for key, kind in GROUPS]
    pair = el("div", *drawn, class_="pair")
    return join([el("h3", "Beside the same run without it"), pair]) if any(drawn) else None


def _beside(report: Record, without: Record, key: str, hue: str) -> Html | None:
    kind = measure(report)
    here = score_series(kind, report, key, hue)
    there = score_series(kind, without, key, hue, whole=report)
    with_it, without_it = kind.of(report, "score", key), kind.of(without, "score", key)
    if with_it is None and here.points:
        with_it = here.points[-1][1]
    if without_it is None and there.points:
        without_it = there.points[-1][1]
    if with_it is None or without_it is None or len(here.points) < 2 or len(there.points) < 2:
        return None
    lines = [
        Series("without", "plain", there.points, kind.shown(without_it)),
        Series("with", hue, here.points, kind.shown(with_it)),
    ]
    axis = kind.axis((y for one in lines for _, y in one.points), 4)
    finding = f"{key.capitalize()}: {kind.change(with_it - without_it)} with re-distillation"
    words = f"{kind.name} {kind.shown(with_it)} with it, {kind.shown(without_it)} without it"
    name, title = f"beside-{key}", f"{kind.name} on {key} with and without re-distillation"
    chart = Chart(name, title, words, lines, axis, kind.ticks(axis), kind.shown, (), 180, 104)
    body: dict[float, list[Any]] = {at: [f"{at:g}", kind.shown(y), ""] for at, y in here.points}
    for at, y in there.points:
        body.setdefault(at, [f"{at:g}", "", ""])[2] = kind.shown(y)
    rows_of = [body[at] for at in sorted(body)]
    numbers = table(f"{kind.name} on {key}", ["round", "with", "without"], rows_of)
    return figure(f"{name}-chart", finding, words, line_chart(chart), numbers)
