"""Times of several jobs, taken in turns so that whatever else the machine does falls on all of them."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

_SHORTEST = 5e-3
"""Seconds that one measurement takes at least; faster jobs run several times in it."""
_MOST_LOOPS = 1000


@dataclass(frozen=True)
class Seconds:
    """Median time of one call: by the clock, and of this process's CPU."""

    wall: float
    cpu: float


def race(jobs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Seconds]:
    """Run each job once to warm up, then ``repeats`` times in turns with the others."""
    loops = {name: _loops(job) for name, job in jobs.items()}
    taken: dict[str, list[Seconds]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            taken[name].append(_time(job, loops[name]))
    return {n: Seconds(median(s.wall for s in t), median(s.cpu for s in t)) for n, t in taken.items()}


def _time(job: Callable[[], object], loops: int) -> Seconds:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(loops):
        job()
    return Seconds((time.perf_counter() - wall) / loops, (time.process_time() - cpu) / loops)


def _loops(job: Callable[[], object]) -> int:
    once = _time(job, 1).wall
    return min(max(1, math.ceil(_SHORTEST / max(once, 1e-9))), _MOST_LOOPS)
