"""What long work tells the person who waits for it, and what it writes into ``metrics.jsonl``.

Code in the library takes an ``Observer`` and reports facts. It never decides how they look::

    with observer.stage("federated rounds") as stage:
        for number in range(1, rounds + 1):
            ...
            observer.event("round", round=number, rounds=rounds, seconds=0.4, uplink=620, downlink=580)
        stage.result = "clients 0.912, unseen 0.834"

Every event becomes one line of ``metrics.jsonl``. The terminal shows the kinds that it knows:

    stage           name, seconds, result; or failed (the error's name). Before it: stage_start, name
    round           round, rounds, seconds, uplink, downlink, score_clients, score_unseen
    redistillation  round, accepted, reason
    release         version, bytes, taken, refused
    refused         client, round, reason
    note, warning   text

and leaves the others to the file. Bytes are means per client, scores are fractions, times are seconds.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

import numpy as np

from fedge.errors import DataError, SetupError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

MAX_LINE = 1 << 20
"""Longest line of a metrics file that ``read_events`` accepts, in bytes."""

Fields = Mapping[str, object]


@dataclass
class Stage:
    """An open stage. What is assigned to ``result`` is shown when it ends, on one line."""

    name: str
    result: str = ""


class Observer(Protocol):
    """Takes events. ``JsonlSink``, ``Terminal`` and ``Tee`` do; ``silent`` throws them away."""

    def event(self, kind: str, /, **fields: object) -> None:
        """Something happened: ``kind`` says what, ``fields`` say how much."""

    def stage(self, name: str) -> AbstractContextManager[Stage]:
        """A stage of the work: it begins, takes its time, and ends with one line of result."""

    def progress(self, done: float, total: float | None, text: str = "") -> None:
        """``done`` of ``total`` steps of the open stage. Shown while it lasts, not recorded."""


@contextmanager
def _timed(observer: Observer, name: str) -> Iterator[Stage]:
    """Report the beginning of a stage and its end, whichever way it ends."""
    stage, start = Stage(name), time.perf_counter()
    observer.event("stage_start", name=name)
    try:
        yield stage
    except BaseException as error:
        seconds = round(time.perf_counter() - start, 3)
        observer.event("stage", name=name, seconds=seconds, failed=type(error).__name__)
        raise
    seconds = round(time.perf_counter() - start, 3)
    observer.event("stage", name=name, seconds=seconds, result=stage.result)


class Tee:
    """Passes everything on to several observers, in order."""

    def __init__(self, *observers: Observer) -> None:
        """Pass on to ``observers``; with none, to nobody."""
        self._observers = observers

    def event(self, kind: str, /, **fields: object) -> None:
        """Pass the event on."""
        for observer in self._observers:
            observer.event(kind, **fields)

    def stage(self, name: str) -> AbstractContextManager[Stage]:
        """One stage, timed once, for all of them."""
        return _timed(self, name)

    def progress(self, done: float, total: float | None, text: str = "") -> None:
        """Pass the progress on."""
        for observer in self._observers:
            observer.progress(done, total, text)


silent: Observer = Tee()
"""Takes everything, does nothing."""


class JsonlSink:
    """Appends one JSON object a line: ``t`` (seconds since this sink was made), ``event``, the fields.

    Each line is one unbuffered write, so a run that is killed loses at most the line it was writing. Such
    a torn line is cut off when the file is opened again. Numbers that are not finite become ``null``.
    Use it as a context manager, or call ``close``.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Open ``path`` to append, and make its folder; ``clock`` counts seconds.

        Raises:
            SetupError: the file cannot be opened.
        """
        self._path, self._clock, self._start = path, clock, clock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            _cut_torn_line(self._fd)
        except OSError as error:
            raise SetupError(f"cannot write {path}: {error.strerror}") from error

    def event(self, kind: str, /, **fields: object) -> None:
        """Append one line.

        Raises:
            SetupError: the line cannot be written.
            ValueError: a field is called ``t`` or ``event``.
        """
        if reserved := {"t", "event"} & fields.keys():
            raise ValueError(f"event {kind!r}: the field {min(reserved)!r} is the sink's own")
        record = {"t": round(self._clock() - self._start, 3), "event": kind, **fields}
        line = json.dumps(_plain(record), allow_nan=False, separators=(",", ":")).encode() + b"\n"
        try:
            written = os.write(self._fd, line)
        except OSError as error:
            raise SetupError(f"cannot write {self._path}: {error.strerror}") from error
        if written != len(line):
            raise SetupError(f"cannot write {self._path}: the disk is full")

    def stage(self, name: str) -> AbstractContextManager[Stage]:
        """A stage is two events, its beginning and its end."""
        return _timed(self, name)

    def progress(self, done: float, total: float | None, text: str = "") -> None:
        """Progress is for people who wait: it is not recorded."""

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> Self:
        """The sink itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a ``metrics.jsonl``, in order; a last line that a kill tore off is left out.

    Raises:
        DataError: no such file, a line longer than ``MAX_LINE``, or one that is not a JSON object.
    """
    events = []
    try:
        with path.open("rb") as file:
            for number in range(1, sys.maxsize):
                line = file.readline(MAX_LINE + 1)
                if len(line) > MAX_LINE:
                    raise DataError(f"{path}, line {number}: longer than {MAX_LINE} bytes")
                if not line.endswith(b"\n"):
                    break
                events.append(_parse_line(line, f"{path}, line {number}"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    return events


def _parse_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON") from error
    if not isinstance(event, dict) or "event" not in event:
        raise DataError(f"{where}: not an event")
    return event


def _cut_torn_line(fd: int) -> None:
    """Cut off what stands after the last line end."""
    end = os.fstat(fd).st_size
    tail = os.pread(fd, min(end, MAX_LINE), max(0, end - MAX_LINE))
    torn = len(tail) - (tail.rfind(b"\n") + 1)
    if torn:
        os.ftruncate(fd, end - torn)


def _plain(value: object) -> object:
    """The value as JSON can hold it: NumPy becomes Python, not finite becomes ``None``, the rest text."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return str(value)


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
        return _timed(self, name)

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
    value = _plain(fields.get(key))
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
