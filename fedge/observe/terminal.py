"""Events for a person who waits: a live bar on a terminal, plain lines elsewhere."""

import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TextIO

from fedge.observe.jsonl import plain
from fedge.observe.observer import Stage, timed

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Fields = Mapping[str, object]


class Terminal:
    """Shows events to a person: a live bar on a terminal, else a plain line per stage and every few rounds.

    The bar needs rich (``fedge[server]``); without it, and where ``stream`` is not a terminal, the lines
    are plain. ``NO_COLOR`` is respected. Characters that cannot be printed are shown as ``?``.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        every: int = 5,
        patience: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Show events on ``stream``, by default standard output.

        Args:
            stream: a text stream.
            every: without a bar, a line for every this many rounds, the first and the last.
            patience: without a bar, seconds after which a stage still at work says how far it is.
            clock: monotonic seconds.
        """
        self._every = every
        out = stream if stream is not None else sys.stdout
        self._screen: _Live | _Lines = _live(out) or _Lines(out, patience, clock)

    def event(self, kind: str, /, **fields: object) -> None:
        """Show the event if a person would want to see it."""
        if kind == "stage_start":
            self._screen.begin(_clean(fields.get("name")))
        elif kind == "stage":
            self._screen.end(not fields.get("failed"), _stage_line(fields))
        elif kind == "round":
            self._round(fields)
        elif kind in _SHOWN:
            self._screen.line(_SHOWN[kind](fields))

    def stage(self, name: str) -> AbstractContextManager[Stage]:
        """A bar or a spinner while it lasts, one line of result at its end."""
        return timed(self, name)

    def progress(self, done: float, total: float | None, text: str = "") -> None:
        """Move the bar."""
        self._screen.move(done, total, _clean(text))

    def _round(self, fields: Fields) -> None:
        number, total = _number(fields, "round"), _number(fields, "rounds")
        if self._screen.live:
            self._screen.move(number or 0, total, _round_line(fields))
        elif number is None or number in (1, total) or number % self._every == 0:
            self._screen.line(_round_line(fields))


class _Lines:
    """Plain lines on any stream."""

    live = False

    def __init__(self, stream: TextIO, patience: float, clock: Callable[[], float]) -> None:
        self._stream, self._patience, self._clock = stream, patience, clock
        self._stages: list[str] = []
        self._last = clock()

    def begin(self, name: str) -> None:
        self._stages.append(name)

    def move(self, done: float, total: float | None, text: str) -> None:
        if self._clock() - self._last >= self._patience:
            steps = f"{done:g}/{total:g}" if total else f"{done:g}"
            self.line(": ".join([*self._stages[-1:], f"{steps} {text}".rstrip()]))

    def line(self, text: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._stream.write(text.encode(encoding, "replace").decode(encoding) + "\n")
        self._stream.flush()
        self._last = self._clock()

    def end(self, good: bool, text: str) -> None:
        del self._stages[-1:]
        self.line(text if good else f"failed: {text}")


class _Live:
    """A bar per open stage on a real terminal, with rich."""

    live = True

    def __init__(self, progress: "Progress") -> None:
        self._progress = progress
        self._tasks: list[TaskID] = []

    def begin(self, name: str) -> None:
        self._progress.start()
        self._tasks.append(self._progress.add_task("", total=None, stage=name, text=""))

    def move(self, done: float, total: float | None, text: str) -> None:
        if self._tasks:
            self._progress.update(self._tasks[-1], completed=done, total=total, text=text)

    def line(self, text: str) -> None:
        self._progress.console.print(text, markup=False, highlight=False)

    def end(self, good: bool, text: str) -> None:
        if self._tasks:
            self._progress.remove_task(self._tasks.pop())
        if not self._tasks:
            self._progress.stop()
        mark, style = ("ok  ", "green") if good else ("FAIL", "bold red")
        self._progress.console.print(mark, style=style, end=" ", highlight=False)
        self.line(text)


def _live(stream: TextIO) -> _Live | None:
    """A live screen, where the stream is a terminal that can move its cursor and rich is installed."""
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return None
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    except ImportError:
        return None
    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[stage]}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[text]}", markup=False),
        TimeElapsedColumn(),
    )
    return _Live(Progress(*columns, console=Console(file=stream), transient=True))


def _stage_line(fields: Fields) -> str:
    ending = _clean(fields.get("failed") or fields.get("result"))
    seconds = f"({_number(fields, 'seconds') or 0:.1f} s)"
    name = _clean(fields.get("name"))
    return f"{name}: {ending} {seconds}" if ending else f"{name} {seconds}"


def _round_line(fields: Fields) -> str:
    number, total = _number(fields, "round"), _number(fields, "rounds")
    parts = [f"round {number:g}/{total:g}" if number and total else f"round {number or 0:g}"]
    for label, key in (("clients", "score_clients"), ("unseen", "score_unseen")):
        if (score := _number(fields, key)) is not None:
            parts.append(f"{label} {score:.3f}")
    for label, key in (("up", "uplink"), ("down", "downlink")):
        if (amount := _number(fields, key)) is not None:
            parts.append(f"{label} {_size(amount)}")
    if (seconds := _number(fields, "seconds")) is not None:
        parts.append(f"{seconds:.2f} s")
    return "  ".join(parts)


def _redistillation_line(fields: Fields) -> str:
    verdict = "accepted" if fields.get("accepted") else "refused"
    line = f"re-distillation in round {_number(fields, 'round') or 0:g} {verdict}"
    return f"{line}: {_clean(fields['reason'])}" if fields.get("reason") else line


def _release_line(fields: Fields) -> str:
    parts = [f"release {_clean(fields.get('version'))}"]
    if (amount := _number(fields, "bytes")) is not None:
        parts.append(_size(amount))
    counts = {key: _number(fields, key) for key in ("taken", "refused")}
    return "  ".join(parts + [f"{key} by {count:g}" for key, count in counts.items() if count is not None])


def _refused_line(fields: Fields) -> str:
    where = f"client {_clean(fields.get('client'))}, round {_number(fields, 'round') or 0:g}"
    return f"refused: {where}: {_clean(fields.get('reason'))[:200]}"


_SHOWN: dict[str, Callable[[Fields], str]] = {
    "refused": _refused_line,
    "redistillation": _redistillation_line,
    "release": _release_line,
    "note": lambda fields: _clean(fields.get("text")),
    "warning": lambda fields: f"warning: {_clean(fields.get('text'))}",
}


def _number(fields: Fields, key: str) -> float | None:
    """A finite number, or ``None`` for anything else."""
    value = plain(fields.get(key))
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _clean(value: object) -> str:
    """Text on one line without control characters, so that a hostile name cannot steer a terminal."""
    text = "" if value is None else str(value)
    return "".join(c if c.isprintable() else "?" for c in text)


def _size(amount: float) -> str:
    """Bytes in the unit that suits them, decimal as on a network."""
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"
