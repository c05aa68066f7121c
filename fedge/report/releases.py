"""The releases: what was published, and which client took it or refused it, and why."""

from fedge.report.html import Html, el, folded, table
from fedge.report.read import Record, amount, number, part, rows
from fedge.report.words import cell, clean, plural, points, score, size

MOST_CHIPS = 40
"""With more clients than this, only the refusals are shown; the table has them all."""

MOST_REFUSALS = 12
"""Refusals spelled out per release; the table has them all."""


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
        el("ol", *(_release(one) for one in published), class_="cases"),
        id="releases",
    )


def _release(one: Record) -> Html:
    place = amount(one, "round")
    left = el(
        "div",
        el("p", f"release {clean(one.get('version', '?'), 40)}", class_="verdict"),
        None if place is None else el("p", f"after round {place:.0f}", class_="note"),
    )
    return el("li", left, el("div", *_details(one)))


def _details(one: Record) -> list[Html | None]:
    decisions = rows(one, "decisions")
    taken = sum(decision.get("taken") is True for decision in decisions)
    head = f"{taken} of {plural(len(decisions), 'client')} took it" if decisions else "No decisions recorded"
    weight = amount(one, "bytes")
    facts = [size(amount(one, "bytes_per_client") if weight is None else weight)]
    for key, name in (("clients", "clients"), ("unseen", "unseen")):
        if (value := number(one, key)) is not None:
            facts.append(f"{name} {score(value)}")
    if one.get("sha256"):
        facts.append(f"sha256 {clean(one['sha256'], 17)}")
    named = decisions if len(decisions) <= MOST_CHIPS else []
    chips = el("ul", *(_chip(decision) for decision in named), class_="chips") if named else None
    return [
        el("p", head),
        el("p", "  \u00b7  ".join(facts), class_="note"),
        chips,
        _refusals(decisions),
        _table(decisions),
    ]


def _chip(decision: Record) -> Html:
    taken = decision.get("taken") is True
    sign, word = ("\u2713", "took it") if taken else ("\u2715", "refused it")
    name = clean(decision.get("client"), 24)
    return el("li", f"{sign}\u00a0{name}", class_=None if taken else "no", title=f"{name} {word}")


def _refusals(decisions: list[Record]) -> Html | None:
    refused = [decision for decision in decisions if decision.get("taken") is not True]
    lines = [el("li", _why(decision)) for decision in refused[:MOST_REFUSALS]]
    if len(refused) > MOST_REFUSALS:
        lines.append(el("li", f"and {len(refused) - MOST_REFUSALS} more"))
    return el("ul", *lines, class_="note") if lines else None


def _why(decision: Record) -> str:
    told = f"{clean(decision.get('client'), 60)} refused it"
    if decision.get("reason"):
        told += f": {clean(decision['reason'], 300)}"
    current, candidate = number(decision, "current"), number(decision, "candidate")
    if current is not None and candidate is not None:
        told += f" ({score(current)} now, {score(candidate)} with it, {points(candidate - current)} points"
        windows = amount(decision, "windows")
        told += ")" if windows is None else f", {plural(int(windows), 'window')})"
    return told


def _table(decisions: list[Record]) -> Html | None:
    if not decisions:
        return None
    body = [
        [
            clean(one.get("client"), 60),
            "took it" if one.get("taken") is True else "refused it",
            *(
                "" if (value := number(one, key)) is None else score(value)
                for key in ("current", "candidate")
            ),
            cell(amount(one, "windows")),
            clean(one.get("reason") or "", 300),
        ]
        for one in decisions
    ]
    head = ["client", "decision", "current", "candidate", "windows", "reason"]
    return folded("Every decision", table("The gate of each client", head, body))
