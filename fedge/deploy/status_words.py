"""The status in words, for the terminal and for the page."""

import time
from pathlib import Path

from fedge.deploy.deployment import OUTCOME, RUN, heard, started
from fedge.deploy.status_file import ClientRow, Number, RoundRow, Snapshot
from fedge.report.words import clean, count, plural, seconds

NAME, REASON = 64, 200
"""Characters of a name and of a reason that are shown."""

_DAY = 86_400.0  # seconds


def at_work(state: Path) -> int | None:
    """The id of the process that does the rounds, if there is one."""
    said = heard(state / RUN)
    pid = said.get("pid")
    if type(pid) is not int or pid <= 0:
        return None
    begun = started(pid)
    return pid if begun is not None and begun == said.get("started") else None


def run_words(state: Path) -> str:
    """Whether the rounds are being worked on, and why not."""
    if (pid := at_work(state)) is not None:
        return f"at work (process {pid})"
    why = heard(state / OUTCOME).get("why")
    return f"not at work: {clean(why, 300)}" if why else "not at work: stopped, killed or starting"


def now_words(now: Snapshot, clock: float) -> str:
    """What the run does, as it last said."""
    if now.waiting is not None:
        return f"waits for clients: {now.waiting[0]} there, {now.waiting[1]} needed"
    if now.stages:
        name, since = now.stages[-1]
        return f"{clean(name, NAME)}, since {seconds(max(0.0, clock - since))}"
    if now.about.done(now.rounds):
        return "nothing is left to do"
    return "starting" if now.about.planned else "waits for what the server above says"


def score_words(now: Snapshot) -> str:
    """The last score that clients gave."""
    row = next((r for r in reversed(now.log) if r.score is not None), None)
    if row is None or row.score is None:
        return "none yet"
    return f"{clean(now.about.metric, NAME)} {row.score:.3f}, as the clients of round {row.number} say"


def clients_words(now: Snapshot) -> str:
    """How many clients there are."""
    barred = sum(is_barred(row, now) for row in now.clients.values())
    words = f"{count(len(now.present))} here at the last look, {count(now.enrolled)} enrolled"
    return f"{words}, {count(barred)} barred" if barred else words


def refused_words(now: Snapshot) -> str:
    """How many answers did not count, by kind."""
    if not now.refused:
        return "nothing"
    kinds = ", ".join(f"{clean(kind, NAME)} {count(n)}" for kind, n in sorted(now.refused.items()))
    return f"{plural(sum(now.refused.values()), 'answer')} ({kinds})"


def is_barred(row: ClientRow, now: Snapshot) -> bool:
    """Whether a client takes no part in the round that comes next."""
    return row.barred > now.rounds


def moment(stamp: Number | None) -> str:
    """A Unix time as people read it, in UTC."""
    try:
        return "" if stamp is None else time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(stamp))
    except (ValueError, OverflowError, OSError):
        return "?"


def ago(passed: float) -> str:
    """So long ago; a clock that was set back does no harm."""
    if passed < 1:
        return "just now"
    return f"{seconds(passed)} ago" if passed < 2 * _DAY else f"{passed / _DAY:.0f} days ago"


def verdict(row: RoundRow) -> str:
    """What else came of a round."""
    told = [] if row.release is None else [f"release {row.release}"]
    if row.redistilled is not None:
        told.append(f"re-distilled student {'accepted' if row.redistilled else 'refused'}")
    return ", ".join(told)


def number(value: Number | None) -> str:
    """Three decimals, or a dash."""
    return "-" if value is None else f"{value:.3f}"
