import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedge.errors import DataError, FedgeError, ReleaseError
from fedge.serving._json import RequestError
from fedge.serving.batcher import Batcher, Bounds
from fedge.serving.metrics import Counts
from fedge.serving.model import Answered

from .build import WINDOW_BYTES, Fake, windows

PATIENT = 1e9  # seconds: what a test takes must not matter
INLINE, THREADS = Bounds(budget=PATIENT), Bounds(budget=PATIENT, inline=False)


class Desk:
    """Submits windows, and collects what becomes of them."""

    def __init__(self, batcher: Batcher) -> None:
        self.batcher = batcher
        self.results: list[Answered | FedgeError | None] = []
        self._done = asyncio.Event()

    def submit(self, x: NDArray[Any]) -> None:
        place = len(self.results)

        def done(result: Answered | FedgeError) -> None:
            assert self.results[place] is None, "answered twice"
            self.results[place] = result
            if None not in self.results:
                self._done.set()

        self.batcher.submit(x, done)
        self.results.append(None)
        self._done.clear()

    async def all(self) -> list[Any]:
        async with asyncio.timeout(20):
            await self._done.wait()
        return self.results


def run(served: Any, bounds: Bounds, work: Callable[[Desk], Awaitable[None]], pace: float = 0.0) -> None:
    async def main() -> None:
        with ThreadPoolExecutor(bounds.threads) as workers:
            batcher = Batcher(served, workers, bounds, Counts().batch)
            batcher.pace = pace
            await work(Desk(batcher))

    asyncio.run(main())


def means(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(x.mean(axis=(1, 2)), np.float32)


@pytest.mark.parametrize("bounds", [INLINE, THREADS])
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=12))
def test_everyone_gets_the_scores_of_their_own_windows(bounds: Bounds, sizes: list[int]) -> None:
    lots = [windows(size, seed=i) for i, size in enumerate(sizes)]

    async def work(desk: Desk) -> None:
        for x in lots:
            desk.submit(x)
        for x, (_, scores) in zip(lots, await desk.all(), strict=True):
            assert np.array_equal(scores[:, 0], means(x))
        assert not desk.batcher.waiting
        assert not desk.batcher.busy

    run(Fake(), bounds, work)


def test_what_came_in_one_turn_of_the_loop_is_one_batch() -> None:
    served = Fake()

    async def work(desk: Desk) -> None:
        for _ in range(5):
            desk.submit(windows(2))
        await desk.all()

    run(served, INLINE, work)
    assert served.batches == [10]


@pytest.mark.parametrize("bounds", [INLINE, THREADS])
def test_what_is_too_much_for_one_batch_is_answered_by_the_next(bounds: Bounds) -> None:
    served = Fake()

    async def work(desk: Desk) -> None:
        for _ in range(60):
            desk.submit(windows(10))
        assert len(await desk.all()) == 60

    run(served, bounds, work)
    assert served.batches == [250, 250, 100]


def test_what_came_while_a_batch_was_answered_is_the_next_one() -> None:
    served = Fake()
    served.hold.clear()

    async def work(desk: Desk) -> None:
        desk.submit(windows(1))
        await asyncio.sleep(0)  # it is with the thread now
        for _ in range(4):
            desk.submit(windows(1))
            await asyncio.sleep(0)
        served.hold.set()
        await desk.all()

    run(served, THREADS, work)
    assert served.batches == [1, 4]


def test_short_batches_stay_on_the_loops_thread_and_long_ones_leave_it() -> None:
    seen = set[str]()

    def note(x: NDArray[Any]) -> None:
        del x
        seen.add(threading.current_thread().name)

    async def work(desk: Desk) -> None:
        desk.submit(windows(1))
        await desk.all()

    run(Fake(fails=note), INLINE, work, pace=1e-5)
    assert seen == {threading.main_thread().name}
    seen.clear()
    run(Fake(fails=note), INLINE, work, pace=0.005)
    assert threading.main_thread().name not in seen


def test_a_full_queue_refuses_and_takes_again_once_it_is_not() -> None:
    served = Fake()
    served.hold.clear()

    async def work(desk: Desk) -> None:
        desk.submit(windows(1))
        await asyncio.sleep(0)
        for _ in range(3):
            desk.submit(windows(2))
        with pytest.raises(RequestError) as caught:
            desk.submit(windows(1))
        assert caught.value.status == 503
        served.hold.set()
        await desk.all()
        desk.submit(windows(1))
        assert len(await desk.all()) == 5

    run(served, Bounds(queue=6, budget=PATIENT, inline=False), work)


def test_large_windows_fill_the_queue_by_their_bytes() -> None:
    served = Fake()
    served.hold.clear()

    async def work(desk: Desk) -> None:
        for _ in range(3):
            desk.submit(windows(2))
            await asyncio.sleep(0)
        with pytest.raises(RequestError):
            desk.submit(windows(2))
        served.hold.set()
        await desk.all()
        desk.submit(windows(2))
        await desk.all()

    run(served, Bounds(queue_bytes=4 * WINDOW_BYTES, budget=PATIENT, inline=False), work)


def test_how_long_a_failure_takes_says_nothing_of_the_pace() -> None:
    async def work(desk: Desk) -> None:
        desk.submit(windows(1))
        await desk.all()
        assert desk.batcher.pace == 0.5

    run(Fake(fails=lambda x: ReleaseError("no")), THREADS, work, pace=0.5)  # noqa: ARG005


def test_a_request_larger_than_the_queue_is_taken_when_nothing_waits() -> None:
    async def work(desk: Desk) -> None:
        desk.submit(windows(9))
        assert len(await desk.all()) == 1

    run(Fake(), Bounds(queue=4, budget=PATIENT), work)


def test_what_could_not_be_answered_within_the_budget_is_refused_when_it_comes() -> None:
    served = Fake()
    served.hold.clear()

    async def work(desk: Desk) -> None:
        for _ in range(3):  # 10 ms each, so the third has 20 ms ahead of it
            desk.submit(windows(1))
            await asyncio.sleep(0)
        with pytest.raises(RequestError, match="3 windows are ahead") as caught:
            desk.submit(windows(1))
        assert caught.value.status == 503
        served.hold.set()
        await desk.all()

    run(served, Bounds(budget=0.025, inline=False), work, pace=0.01)


def test_a_batch_takes_no_more_than_its_share_of_the_budget() -> None:
    served = Fake()
    served.hold.clear()

    async def work(desk: Desk) -> None:
        for _ in range(12):
            desk.submit(windows(1))
        served.hold.set()
        await desk.all()

    run(served, Bounds(budget=0.02, inline=False), work, pace=0.001)
    assert served.batches[0] == 5
    assert sum(served.batches) == 12


def test_a_bad_request_fails_alone() -> None:
    def fails(x: NDArray[Any]) -> Exception | None:
        return None if np.isfinite(x).all() else DataError("NaN")

    bad = windows(1) * np.nan

    async def work(desk: Desk) -> None:
        for x in (windows(1), bad, windows(2)):
            desk.submit(x)
        first, second, third = await desk.all()
        assert isinstance(second, DataError)
        assert len(first[1]) == 1
        assert len(third[1]) == 2

    for bounds in (INLINE, THREADS):
        run(Fake(fails=fails), bounds, work)


@pytest.mark.parametrize("error", [ReleaseError("broken"), ValueError("a fault of ours"), MemoryError()])
@pytest.mark.parametrize("bounds", [INLINE, THREADS])
def test_a_model_that_fails_leaves_nobody_waiting(bounds: Bounds, error: Exception) -> None:
    async def work(desk: Desk) -> None:
        for _ in range(3):
            desk.submit(windows(1))
        assert all(isinstance(result, FedgeError) for result in await desk.all())
        assert not desk.batcher.busy

    run(Fake(fails=lambda x: error), bounds, work)  # noqa: ARG005


def test_the_pace_follows_what_is_measured() -> None:
    times = iter(np.arange(0, 1000, 0.5))
    served, told = Fake(), []

    async def main() -> None:
        with ThreadPoolExecutor(1) as workers:
            batcher = Batcher(
                served, workers, INLINE, lambda *batch: told.append(batch), clock=lambda: float(next(times))
            )
            desk = Desk(batcher)
            desk.submit(windows(4))
            await desk.all()
            assert batcher.pace == pytest.approx(0.125)
            for _ in range(200):
                desk.submit(windows(5))
                await desk.all()
            assert batcher.pace == pytest.approx(0.1, rel=0.01)

    asyncio.run(main())
    assert told[0] == (4, 0.5)


def test_unaligned_windows_are_answered_like_aligned_ones() -> None:
    x = windows(2)
    body = b"x" + x.tobytes()
    skewed = np.frombuffer(body, "<f4", offset=1).reshape(x.shape)

    async def work(desk: Desk) -> None:
        desk.submit(skewed)
        ((_, scores),) = await desk.all()
        assert np.array_equal(scores[:, 0], means(x))

    def aligned(x: NDArray[Any]) -> None:
        assert x.flags.aligned

    run(Fake(fails=aligned), INLINE, work)
