"""``map`` over fresh processes that are set up as a simulation is, so that a seed gives the same bits."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Protocol, TypeVar

from fedge.observe import Observer
from fedge.simulation.torch_settings import repeatable

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


class Each(Protocol):
    """Does all jobs, and tells the observer how far it is; results in order."""

    def __call__(
        self, name: str, work: Callable[[_Job], _Result], jobs: Sequence[_Job], observer: Observer
    ) -> list[_Result]:
        """A stage of that name."""


@contextmanager
def workers(count: int) -> Iterator[Each]:
    """That many processes, on one thread each; with one, everything runs in this process as it is set up."""
    if count == 1:
        yield _here
        return
    most = min(count, os.cpu_count() or 1)
    with ProcessPoolExecutor(most, get_context("spawn"), _set_up) as pool:

        def each(
            name: str, work: Callable[[_Job], _Result], jobs: Sequence[_Job], observer: Observer
        ) -> list[_Result]:
            return _counted(name, pool.map(work, jobs), len(jobs), observer)

        try:
            yield each
        finally:
            pool.shutdown(cancel_futures=True)


def _set_up() -> None:
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    repeatable()


def _here(
    name: str, work: Callable[[_Job], _Result], jobs: Sequence[_Job], observer: Observer
) -> list[_Result]:
    return _counted(name, map(work, jobs), len(jobs), observer)


def _counted(name: str, results: Iterator[_Result], total: int, observer: Observer) -> list[_Result]:
    found: list[_Result] = []
    if not total:
        return found
    with observer.stage(name) as stage:
        observer.progress(0, total, f"0/{total}")
        for done, result in enumerate(results, 1):
            found.append(result)
            observer.progress(done, total, f"{done}/{total}")
        stage.result = f"{total} done"
    return found
