"""What a server says of itself: in a terminal (here), and over HTTP on loopback (``serve_status``).

It reads ``status.json`` (``status_file``), whether the server runs or not, and writes nothing.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from fedge.deploy import status_words as words
from fedge.deploy.status_file import ClientRow, RoundRow, Snapshot, load
from fedge.deploy.status_http import serve_status
from fedge.report.words import clean, count, plural, seconds, size

__all__ = ["client_lines", "round_lines", "serve_status", "status_lines"]

_LINES = 5  # refused answers that ``status_lines`` shows


def status_lines(state: Path) -> list[str]:
    """How the federation stands.

    Raises:
        SetupError: there is no status, or it is damaged.
    """
    now, clock = load(state), time.time()
    about, totals = now.about, now.totals
    pairs = [
        ("federation", f"{clean(about.name, words.NAME)} ({clean(about.federation, 32)})"),
        ("learns", f"{clean(about.task, words.NAME)}, scenario {clean(about.scenario, words.NAME)}"),
        ("run", words.run_words(state)),
        ("now" if words.at_work(state) else "last seen", words.now_words(now, clock)),
        ("rounds", _rounds_words(now, clock)),
        ("score", words.score_words(now)),
        ("clients", words.clients_words(now)),
        ("payload", f"{size(totals.up)} up, {size(totals.down)} down, all clients together"),
        ("releases", _releases_words(now)),
        ("refused", words.refused_words(now)),
    ]
    lines = [f"{key:<12}{text}" for key, text in pairs]
    for r in now.refusals[-_LINES:]:
        when, who = words.moment(r.time), clean(r.client, words.NAME)
        lines.append(f"{'':<12}{when}  round {r.round}  {who}: {clean(r.reason, words.REASON)}")
    return [*lines, f"{'written':<12}{words.ago(clock - now.written)}"]


def round_lines(state: Path) -> list[str]:
    """The last rounds as a table.

    Raises:
        SetupError: there is no status, or it is damaged.
    """
    now = load(state)
    head = ("round", "ended (UTC)", "took", "counted", now.about.metric, "loss", "up", "down", "")
    return _table(head, [_round_cells(r) for r in now.log]) if now.log else ["no round is done yet"]


def client_lines(state: Path) -> list[str]:
    """All clients that were ever asked or are there, as a table.

    Raises:
        SetupError: there is no status, or it is damaged.
    """
    now = load(state)
    there = set(now.present)
    names = sorted(now.clients.keys() | there)
    if not names:
        return ["no client was ever there"]
    head = ("client", "here", "last round", "counted", "not taken", now.about.metric, "up", "down", "")
    return _table(head, [_client_cells(n, now.clients.get(n, ClientRow()), n in there, now) for n in names])


def _rounds_words(now: Snapshot, clock: float) -> str:
    of = f" of {count(now.about.planned)}" if now.about.planned else ""
    told = f"{count(now.rounds)}{of} done"
    if now.log and (last := now.log[-1]).ended is not None:
        told += f", the last {words.ago(clock - last.ended)} in {seconds(last.seconds)}"
    if now.totals.given_up:
        told += f"; {plural(now.totals.given_up, 'attempt')} given up"
    return told


def _releases_words(now: Snapshot) -> str:
    if not now.releases:
        return "none yet"
    last = now.releases[-1]
    taken = f"taken by {count(last.taken)}, refused by {count(last.refused)}"
    return f"{count(now.totals.releases)}; the last: version {last.version}, {size(last.bytes)}, {taken}"


def _round_cells(row: RoundRow) -> list[str]:
    return [
        str(row.number),
        words.moment(row.ended),
        seconds(row.seconds),
        f"{row.counted}/{row.asked}",
        words.number(row.score),
        words.number(row.loss),
        size(row.up),
        size(row.down),
        words.verdict(row),
    ]


def _client_cells(name: str, row: ClientRow, here: bool, now: Snapshot) -> list[str]:
    return [
        clean(name, words.NAME),
        "yes" if here else "no",
        str(row.last or "-"),
        str(row.counted),
        str(row.refused),
        words.number(row.score),
        size(row.up),
        size(row.down),
        f"barred until round {row.barred}" if words.is_barred(row, now) else "",
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as they must be; the first and the last stand on the left, the others on the right."""
    head = [clean(cell, words.NAME) for cell in head]
    wide = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    left = (0, len(head) - 1)
    lines = []
    for row in [head, *rows]:
        cells = [row[i].ljust(w) if i in left else row[i].rjust(w) for i, w in enumerate(wide)]
        lines.append("  ".join(cells).rstrip())
    return lines
