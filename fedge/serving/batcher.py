"""Requests of many clients to batches of a model, and back.

Nobody waits for a batch to fill: a batch is what came while the one before it was being answered, or what
one turn of the event loop brought. So a lone request is answered at once, and the more there is to do the
larger the batches get, which is when they pay. The latency budget bounds how long a batch may take, and what
may wait before it: a request that could not be answered within the budget is refused when it comes.

A batch that takes no longer than a turn of the loop anyway is answered on the loop's own thread: handing it
to another costs more than a small model does. Longer ones go to threads.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedge.errors import FedgeError
from fedge.serving._json import RequestError
from fedge.serving.model import Answered, Served

_INLINE_SECONDS = 0.5e-3  # a batch that should take less is answered on the loop's thread
_LARGEST = 256  # windows of several requests in one batch: more is no faster
_LARGEST_BYTES = 1 << 24  # in a batch to which one more request is added
_SHARE = 0.25  # of the budget, for one batch of several requests
_FORGET = 0.98  # how much of what was known of the pace one more window leaves

Done = Callable[[Answered | FedgeError], None]
"""Takes what became of a request: the scores and what gave them, or why there are none."""


class _Job(NamedTuple):
    x: NDArray[Any]
    done: Done


@dataclass(frozen=True)
class Bounds:
    """For the queue before a model.

    Attributes:
        queue: windows that may wait.
        budget: seconds from a request's arrival to its answer.
        threads: batches at a time.
        inline: whether short batches may be answered on the loop's thread.
        queue_bytes: what the windows that wait may take of the memory.
    """

    queue: int = 1024
    budget: float = 0.02
    threads: int = 1
    inline: bool = True
    queue_bytes: int = 1 << 26


class Batcher:
    """The queue before one model. Everything here happens on the loop's thread, the threads' work aside.

    Attributes:
        waiting: windows that wait.
        pace: seconds that a window takes, as measured; weighted by batch size.
    """

    def __init__(
        self,
        served: Served,
        executor: Executor,
        bounds: Bounds,
        observe: Callable[[int, float], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``observe`` is told of each batch: windows, and seconds it took."""
        self._served, self._executor, self._bounds = served, executor, bounds
        self._observe, self._clock = observe, clock
        self._loop = asyncio.get_running_loop()
        self._jobs: deque[_Job] = deque()
        self._running = self._running_windows = 0
        self._due = False
        self._bytes = 0  # of the windows that wait
        self.waiting, self.pace = 0, 0.0

    @property
    def busy(self) -> bool:
        """Whether anything waits or is being answered."""
        return bool(self._jobs or self._running)

    def warm(self) -> None:
        """Find out how fast the model is, before anybody asks it."""
        for count in (1, 32, 32):
            start = self._clock()
            self._served.warm(count)
            self.pace = (self._clock() - start) / count

    def close(self) -> None:
        """Forget what waits: nobody is there any more to whom it could be answered."""
        self._jobs.clear()

    def submit(self, x: NDArray[Any], done: Done) -> None:
        """Have ``x`` (``[n, *shape]``) answered; ``done`` is called once, on the loop's thread.

        Raises:
            RequestError: there is too much to do (503).
        """
        ahead = self.waiting + self._running_windows
        bounds = self._bounds
        full = self.waiting + len(x) > bounds.queue or self._bytes + x.nbytes > bounds.queue_bytes
        if (self.waiting and full) or ahead * self.pace > bounds.budget * bounds.threads:
            raise RequestError(503, f"too busy: {ahead} windows are ahead of this request; try again later")
        self._jobs.append(_Job(x, done))
        self.waiting += len(x)
        self._bytes += x.nbytes
        if not self._due and self._running < self._bounds.threads:
            self._due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Start what can be started."""
        self._due = False
        while self._jobs and self._running < self._bounds.threads:
            batch, windows = self._take()
            if self._bounds.inline and not self._running and windows * self.pace < _INLINE_SECONDS:
                self._finish(batch, windows, *_answer(self._served, batch, self._clock))
                if self._jobs and not self._due:  # the loop reads what has come before the next one
                    self._due = True
                    self._loop.call_soon(self._turn)
                return
            self._start(batch, windows)

    def _take(self) -> tuple[list[_Job], int]:
        """The requests that wait, as many as make one batch."""
        most = _LARGEST
        if self.pace > 0:
            most = int(min(most, max(1.0, _SHARE * self._bounds.budget / self.pace)))
        batch = [self._jobs.popleft()]
        windows, size = len(batch[0].x), batch[0].x.nbytes
        while self._jobs and windows + len(self._jobs[0].x) <= most and size <= _LARGEST_BYTES:
            batch.append(self._jobs.popleft())
            windows += len(batch[-1].x)
            size += batch[-1].x.nbytes
        self.waiting -= windows
        self._bytes -= size
        return batch, windows

    def _start(self, batch: list[_Job], windows: int) -> None:
        """Have a thread answer ``batch``."""
        self._running += 1
        self._running_windows += windows

        def back(results: list[Answered | FedgeError], seconds: float) -> None:
            self._running -= 1
            self._running_windows -= windows
            self._finish(batch, windows, results, seconds)
            self._turn()

        def work() -> None:
            found = _answer(self._served, batch, self._clock)
            self._loop.call_soon_threadsafe(back, *found)

        self._executor.submit(work)

    def _finish(
        self, batch: list[_Job], windows: int, results: list[Answered | FedgeError], seconds: float
    ) -> None:
        if not isinstance(results[0], FedgeError):  # how long a failure takes says nothing
            old = _FORGET**windows if self.pace else 0.0
            self.pace = old * self.pace + (1 - old) * seconds / windows
        self._observe(windows, seconds)
        for job, result in zip(batch, results, strict=True):
            job.done(result)


def _answer(
    served: Served, batch: list[_Job], clock: Callable[[], float]
) -> tuple[list[Answered | FedgeError], float]:
    """What becomes of each request of a batch, and the seconds it took."""
    start = clock()
    if len(batch) == 1:
        return [_one(served, batch[0].x)], clock() - start
    try:
        face, scores = served.predict(np.concatenate([job.x for job in batch]))
    except Exception:  # one of them may be to blame: each gets what it deserves
        return [_one(served, job.x) for job in batch], clock() - start
    results: list[Answered | FedgeError] = []
    at = 0
    for job in batch:
        results.append((face, scores[at : at + len(job.x)]))
        at += len(job.x)
    return results, clock() - start


def _one(served: Served, x: NDArray[Any]) -> Answered | FedgeError:
    try:
        return served.predict(x if x.flags.aligned else x.copy())
    except FedgeError as error:
        return error
    except Exception as error:  # whatever it is, this client hears of it, and the others go on
        return FedgeError(f"{type(error).__name__}: {error}")
