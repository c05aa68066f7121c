"""Events as lines of ``metrics.jsonl``: written so that a kill costs one line at most, and read again."""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from fedge.errors import DataError, SetupError
from fedge.observe.observer import Stage, timed

MAX_LINE = 1 << 20
"""Longest line of a metrics file that ``read_events`` accepts, in bytes."""


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
        line = json.dumps(plain(record), allow_nan=False, separators=(",", ":")).encode() + b"\n"
        try:
            written = os.write(self._fd, line)
        except OSError as error:
            raise SetupError(f"cannot write {self._path}: {error.strerror}") from error
        if written != len(line):
            raise SetupError(f"cannot write {self._path}: the disk is full")

    def stage(self, name: str) -> AbstractContextManager[Stage]:
        """A stage is two events, its beginning and its end."""
        return timed(self, name)

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


def plain(value: object) -> object:
    """The value as JSON can hold it: NumPy becomes Python, not finite becomes ``None``, the rest text."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return str(value)
