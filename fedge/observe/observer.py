"""Who is told what happens, and how long the stages of the work take."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol


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
def timed(observer: Observer, name: str) -> Iterator[Stage]:
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
        return timed(self, name)

    def progress(self, done: float, total: float | None, text: str = "") -> None:
        """Pass the progress on."""
        for observer in self._observers:
            observer.progress(done, total, text)


silent: Observer = Tee()
"""Takes everything, does nothing."""
