"""The releases: what was published, and which client took it or refused it, and why."""

from fedge.report.html import Html, el, folded, table
from fedge.report.measure import Measure, measure
from fedge.report.read import Record, amount, part, rows
from fedge.report.words import cell, clean, plural, size

MOST_CHIPS = 40
"""With more clients than this, only the refusals are shown; the table has them all."""

MOST_REFUSALS = 12
"""Refusals spelled out per release; the table has them all."""

_REASONS = {
    "not_worse": "not worse on its own data",
    "no_windows": "no labelled data of its own to compare on",
    "not_comparable": "its own data do not define the score",
    "no_current": "the first release here: none to compare with",
    "does_not_open": "the model does not open, or is not what the release says",
    "does_not_fit": "it does not fit the data of this device",
    "self_test": "its self-test failed",
    "not_scored": "its metric is not known here",
    "worse": "worse on its own data",
}
"""The codes of ``fedge.edge.gate.Decision`` in words."""


def releases_section(report: Record) -> Html | None:
    """Each release with the decision of every client's gate."""
    published = rows(report, "releases")
    if not published and part(report, "release"):
        published = [part(report, "release")]
    if not published:
        return None
    about = (
        "A device scores a new release on its own data beside the one it runs,"
        " and takes it only if it is not worse."
    )
    return el(
        "section",
        el("h2", "Releases"),
        el("p", about),
        el("ol", *(_release(measure(report), one) for one in published), class_="cases"),
        id="releases",
    )


def _release(kind: Measure, one: Record) -> Html:
    place = amount(one, "round")
    left = el(
        "div",
        el("p", f"release {clean(one.get('version', '?'), 40)}", class_="verdict"),
        None if place is None else el("p", f"after round {place:.0f}", class_="note"),
    )
    return el("li", left, el("div", *_details(kind, one)))


def _details(kind: Measure, one: Record) -> list[Html | None]:
    decisions = rows(one, "decisions")
    taken = sum(decision.get("taken") is True for decision in decisions)
    head = f"{taken} of {plural(len(decisions), 'client')} took it" if decisions else "No decisions recorded"
    weight = amount(one, "bytes")
    facts = [size(amount(one, "bytes_per_client") if weight is None else weight)]
    known = [(key, value) for key in ("clients", "unseen") if (value := kind.of(one, key)) is not None]
    facts += [f"{kind.name} {kind.shown(value)} {key}" for key, value in known]
    if one.get("sha256"):
        facts.append(f"sha256 {clean(one['sha256'], 17)}")
    named = decisions if len(decisions) <= MOST_CHIPS else []
    chips = el("ul", *(_chip(decision) for decision in named), class_="chips") if named else None
    return [
        el("p", head),
        el("p", "  \u00b7  ".join(facts), class_="note"),
        chips,
        _refusals(kind, decisions),
        _table(kind, decisions),
    ]


def _chip(decision: Record) -> Html:
    taken = decision.get("taken") is True
    sign, word = ("\u2713", "took it") if taken else ("\u2715", "refused it")
    name = clean(decision.get("client"), 24)
    return el("li", f"{sign}\u00a0{name}", class_=None if taken else "no", title=f"{name} {word}")


def _refusals(kind: Measure, decisions: list[Record]) -> Html | None:
    refused = [decision for decision in decisions if decision.get("taken") is not True]
    lines = [el("li", _why(kind, decision)) for decision in refused[:MOST_REFUSALS]]
    if len(refused) > MOST_REFUSALS:
        lines.append(el("li", f"and {len(refused) - MOST_REFUSALS} more"))
    return el("ul", *lines, class_="note") if lines else None


def _why(kind: Measure, decision: Record) -> str:
    told = f"{clean(decision.get('client'), 60)} refused it"
    if decision.get("reason"):
        told += f": {_reason(decision)}"
    current, candidate = kind.of(decision, "current"), kind.of(decision, "candidate")
    if current is not None and candidate is not None:
        change = kind.change(candidate - current)
        told += f" ({kind.shown(current)} now, {kind.shown(candidate)} with it, {change}"
        windows = amount(decision, "windows")
        told += ")" if windows is None else f", {plural(int(windows), 'window')})"
    return told


def _reason(decision: Record) -> str:
    reason = clean(decision.get("reason") or "", 300)
    return _REASONS.get(reason, reason)


def _table(kind: Measure, decisions: list[Record]) -> Html | None:
    if not decisions:
        return None
    body = [
        [
            clean(one.get("client"), 60),
            "took it" if one.get("taken") is True else "refused it",
            *(cell(kind.of(one, key), kind.shown) for key in ("current", "candidate")),
            cell(amount(one, "windows")),
            _reason(one),
        ]
        for one in decisions
    ]
    head = ["client", "decision", "current", "candidate", "windows", "reason"]
    return folded("Every decision", table("The gate of each client", head, body))
