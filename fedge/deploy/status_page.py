"""The status page: one document that loads nothing and runs no script; the browser asks for it again.

Everything goes through ``fedge.report.html``, which escapes what is not markup already: names of clients and
the reasons of their refusals come from elsewhere.
"""

import base64
import hashlib
import time
from functools import cache
from importlib.resources import files

from fedge import __version__
from fedge.deploy import status_words as words
from fedge.deploy.status_file import ClientRow, Refusal, RoundRow, Snapshot
from fedge.report.html import Html, el, table, text, value
from fedge.report.words import clean, count, plural, seconds, size

_EVERY = 10  # seconds between two looks
_ROUNDS, _CLIENTS = 30, 200  # rows of the tables
_WIDE, _HIGH, _EDGE = 640, 120, 8  # of the chart, in its own units


def policy() -> str:
    """The Content-Security-Policy of the page: its own style, nothing else."""
    digest = base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def page(now: Snapshot, run: str, working: bool, clock: float | None = None) -> str:
    """The page of a federation; ``run`` says whether the rounds are at work, ``clock`` is Unix time."""
    clock = time.time() if clock is None else clock
    main = el("main", _rounds(now), _clients(now), _refused(now), _releases(now))
    return _document(clean(now.about.name, 80), _header(now, run, working, clock), main, _footer(now, clock))


def empty_page(why: str) -> str:
    """The page while there is no status."""
    header = el("header", el("p", "fedge server", class_="eyebrow"), el("h1", "Nothing to show yet"))
    return _document("fedge server", header, el("main", el("p", clean(why))), text(""))


@cache
def _style() -> str:
    own = files("fedge.deploy").joinpath("status.css").read_text(encoding="utf-8")
    return files("fedge.report").joinpath("style.css").read_text(encoding="utf-8") + own


def _document(title: str, header: Html, main: Html, footer: Html) -> str:
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", http_equiv="refresh", content=str(_EVERY)),
        el("title", f"{title} - fedge server"),
        el("style", Html(_style())),
    )
    return f"<!doctype html>\n{el('html', head, el('body', header, main, footer), lang='en')}\n"


def _header(now: Snapshot, run: str, working: bool, clock: float) -> Html:
    about, state = now.about, "yes" if working or now.about.done(now.rounds) else "no"
    doing = words.now_words(now, clock) if working else "the last that it did is below"
    return el(
        "header",
        el("p", f"fedge server {__version__}", class_="eyebrow"),
        el("h1", clean(about.name, 80)),
        el("p", el("span", run, class_=f"verdict {state}"), f": {doing}", class_="lead"),
        el(
            "p",
            f"Task {about.task}, scenario {about.scenario}, federation {about.federation}",
            class_="facts",
        ),
        el("dl", *_figures(now, clock), class_="figures"),
    )


def _figures(now: Snapshot, clock: float) -> list[Html]:
    last = now.log[-1] if now.log else None
    row = next((r for r in reversed(now.log) if r.score is not None), None)
    score = None if row is None else row.score
    took = "none is done yet" if last is None else f"the last took {seconds(last.seconds)}"
    if last is not None and last.ended is not None:
        took += f" and ended {words.ago(clock - last.ended)}"
    said = f"{clean(now.about.metric, 40)}, " if score is not None else ""
    said += "no client has said yet" if row is None else f"as the clients of round {row.number} say"
    total = now.totals
    planned = f"of {count(now.about.planned)}; " if now.about.planned else ""
    return [
        _figure("Rounds done", value(now.rounds, count(now.rounds)), f"{planned}{took}"),
        _figure("Score", value(score, "none" if score is None else f"{score:.3f}"), said),
        _figure("Clients here", value(len(now.present), count(len(now.present))), _of_clients(now)),
        _figure(
            "Payload so far",
            value(total.up + total.down, size(total.up + total.down)),
            f"{size(total.up)} up, {size(total.down)} down",
        ),
    ]


def _of_clients(now: Snapshot) -> str:
    return words.clients_words(now).partition("here ")[2]


def _figure(name: str, big: Html, below: str) -> Html:
    return el("div", el("dt", name), el("dd", big, class_="big"), el("dd", below, class_="from"))


def _section(name: str, title: str, *children: object) -> Html:
    return el("section", el("h2", title), *children, id=name)


def _rounds(now: Snapshot) -> Html:
    if not now.log:
        return _section("rounds", "Rounds", el("p", "No round is done yet.", class_="none"))
    head = (
        "round",
        "ended (UTC)",
        "took",
        "counted",
        clean(now.about.metric, 40),
        "loss",
        "up",
        "down",
        "remarks",
    )
    rows = [_round_row(r) for r in reversed(now.log[-_ROUNDS:])]
    shown = table(f"The last {plural(len(rows), 'round')}, the newest first", head, rows)
    note = "" if not now.totals.given_up else f"{plural(now.totals.given_up, 'attempt')} given up."
    return _section("rounds", "Rounds", _chart(now), shown, el("p", note, class_="note") if note else None)


def _round_row(row: RoundRow) -> list[object]:
    counted = f"{count(row.counted)} of {count(row.asked)}"
    return [
        row.number,
        words.moment(row.ended) or "not known",
        value(row.seconds, seconds(row.seconds)),
        counted,
        words.number(row.score),
        words.number(row.loss),
        value(row.up, size(row.up)),
        value(row.down, size(row.down)),
        words.verdict(row),
    ]


def _chart(now: Snapshot) -> Html | None:
    """The score by round as one line, once there are two of them."""
    points = [(r.number, r.score) for r in now.log if r.score is not None]
    if len(points) < 2:
        return None
    first, last = points[0][0], points[-1][0]
    low, high = min(s for _, s in points), max(s for _, s in points)
    right, below, span = _WIDE - 2 * _EDGE, _HIGH - 2 * _EDGE, (high - low) or 1.0
    path = " ".join(
        f"{_EDGE + right * (n - first) / max(1, last - first):.1f},{_EDGE + below * (high - s) / span:.1f}"
        for n, s in points
    )
    line = el("polyline", points=path, class_="line one", fill="none", vector_effect="non-scaling-stroke")
    what = f"{clean(now.about.metric, 40)} from round {first} to {last}, between {low:.3f} and {high:.3f}"
    picture = el(
        "svg", line, viewBox=f"0 0 {_WIDE} {_HIGH}", preserveAspectRatio="none", role="img", aria_label=what
    )
    return el("figure", picture, el("figcaption", el("span", what)), class_="course")


def _clients(now: Snapshot) -> Html:
    there = set(now.present)
    names = sorted(now.clients.keys() | there, key=lambda name: (not _notable(name, now), name))
    if not names:
        return _section("clients", "Clients", el("p", "No client was ever there.", class_="none"))
    head = (
        "client",
        "here",
        "last round",
        "counted",
        "not taken",
        clean(now.about.metric, 40),
        "up",
        "down",
        "remarks",
    )
    rows = [_client_row(n, now.clients.get(n, ClientRow()), n in there, now) for n in names[:_CLIENTS]]
    more = len(names) - len(rows)
    note = f"{count(more)} more: fedge server clients" if more else None
    shown = table("Those with offences first", head, rows)
    return _section("clients", "Clients", shown, el("p", note, class_="note") if note else None)


def _notable(name: str, now: Snapshot) -> bool:
    row = now.clients.get(name, ClientRow())
    return row.offences > 0 or words.is_barred(row, now)


def _client_row(name: str, row: ClientRow, here: bool, now: Snapshot) -> list[object]:
    standing = plural(row.offences, "offence") if row.offences else ""
    if words.is_barred(row, now):
        standing = f"barred until round {row.barred}"
    return [
        clean(name, words.NAME),
        "yes" if here else "no",
        row.last or "never",
        count(row.counted),
        count(row.refused),
        words.number(row.score),
        value(row.up, size(row.up)),
        value(row.down, size(row.down)),
        el("span", standing, class_="verdict no") if standing else "",
    ]


def _refused(now: Snapshot) -> Html:
    said = el("p", f"Since the beginning: {words.refused_words(now)}.", class_="note")
    lines = [_refusal(r) for r in reversed(now.refusals)]
    return _section("refused", "Refused", said, el("ul", *lines, class_="told") if lines else None)


def _refusal(told: Refusal) -> Html:
    where = f"{words.moment(told.time)}, round {told.round}, {told.kind}: "
    who = el("strong", clean(told.client, words.NAME))
    return el("li", el("span", where, who, class_="where"), el("span", clean(told.reason, 500)))


def _releases(now: Snapshot) -> Html:
    if not now.releases:
        return _section("releases", "Releases", el("p", "None yet.", class_="none"))
    rows = [
        [r.version, r.round, size(r.bytes), r.taken, r.refused, el("code", clean(r.sha256, 64)[:16]), r.path]
        for r in reversed(now.releases)
    ]
    head = ("version", "round", "size", "taken", "refused", "SHA-256", "file")
    shown = table(f"The last {plural(len(rows), 'release')}, the newest first", head, rows)
    return _section("releases", "Releases", shown)


def _footer(now: Snapshot, clock: float) -> Html:
    told = (
        f"Written {words.ago(clock - now.written)}; asked for again every {_EVERY} s. Times are UTC. Scores "
        "are what clients say of the weights they received, on their own later data. Payload is what "
        "training sends, without framing, TLS and releases. This page loads nothing and runs no script."
    )
    return el("footer", told)
