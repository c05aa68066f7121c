"""Several servers as one model: killed, stopped, started again, on another release."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedge.edge.live import LiveModel
from fedge.errors import DataError, ReleaseError
from fedge.serving import across
from fedge.serving.across import Devices
from fedge.serving.peer import Address, PeerError

from .build import Fake, ask, get, running, windows, write_release
from .hostile_peer import hangs, misbehaving
from .test_server import metric, start


@contextmanager
def devices(*ports: int, deadline: float = 10.0) -> Iterator[Devices]:
    opened = Devices([Address("127.0.0.1", port) for port in ports], deadline=deadline)
    try:
        yield opened
    finally:
        opened.close()


def means(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(x.mean(axis=(1, 2)), np.float32)


def dawdles(seed: int) -> Any:
    """Takes a different time for every batch."""
    draw = np.random.default_rng(seed)

    def wait(x: NDArray[Any]) -> None:
        del x
        time.sleep(draw.uniform(0, 0.01))

    return wait


def test_results_are_in_order_whichever_device_answers_and_when() -> None:
    one, two, x = Fake(fails=dawdles(1)), Fake(fails=dawdles(2)), windows(1000)
    with running(one) as a, running(two) as b, devices(a, b) as both:
        for lot in (x, x[:1], x[:17], x[:0]):
            model, scores = both.predict(lot)
            assert np.array_equal(scores[:, 0], means(lot))
            assert model.manifest.version == 1
    assert one.batches
    assert two.batches
    assert sum(one.batches) + sum(two.batches) >= 1018


@contextmanager
def two_servers(folder: Path) -> Iterator[tuple[list["subprocess.Popen[str]"], list[int], Any]]:
    release = write_release(folder)
    started = [start(release, "--threads", "1", "--budget-ms", "1000") for _ in range(2)]
    processes = [process for process, _ in started]
    try:
        yield processes, [port for _, port in started], LiveModel.open(release)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_one_that_ends_in_the_middle_leaves_every_result_once_and_in_order(
    tmp_path: Path, number: int
) -> None:
    x = windows(150_000)
    with ExitStack() as stack:
        processes, ports, live = stack.enter_context(two_servers(tmp_path))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        both = stack.enter_context(devices(*ports, deadline=2.0))
        whole = pool.submit(both.predict, x)
        while not metric(ports[0], "fedge_serve_windows_total"):
            time.sleep(0.001)
        os.kill(processes[0].pid, number)
        assert not whole.done()
        _, scores = whole.result(60)
    assert np.array_equal(scores, live.predict(x)[1])


def test_one_that_hangs_from_the_start_is_left_out() -> None:
    served, x = Fake(), windows(200)
    with running(served) as good, misbehaving(hangs) as bad, devices(bad, good, deadline=3.0) as both:
        _, scores = both.predict(x)
    assert np.array_equal(scores[:, 0], means(x))
    assert sum(served.batches) >= 200


def test_one_that_comes_back_gets_work_again() -> None:
    x = windows(600)
    late = Fake()
    with running(Fake(fails=dawdles(1))) as good, running(Fake()) as port:
        pass
    with running(Fake(fails=dawdles(1))) as good, devices(good, port) as both:
        both.predict(x)
        with running(late, port=port):
            end = time.monotonic() + 60
            while not late.batches and time.monotonic() < end:
                assert np.array_equal(both.predict(x)[1][:, 0], means(x))
    assert late.batches


def test_all_dead_is_one_clear_error() -> None:
    with running(Fake()) as a, running(Fake()) as b:
        pass
    with pytest.raises(PeerError, match=rf"no device answers: .*{a}.*{b}|.*{b}.*{a}"):
        Devices([Address("127.0.0.1", a), Address("127.0.0.1", b)])


def test_all_dying_on_the_way_is_one_clear_error() -> None:
    with ExitStack() as servers:
        a, b = (servers.enter_context(running(Fake())) for _ in range(2))
        with devices(a, b) as both:
            both.predict(windows(10))
            servers.close()
            with pytest.raises(PeerError, match=r"no device answers any more: .*refused"):
                both.predict(windows(100))


def test_busy_devices_are_waited_for() -> None:
    from fedge.serving.batcher import Bounds
    from fedge.serving.server import Settings

    served = Fake(fails=dawdles(1))
    with running(served, Settings(Bounds(queue=1, inline=False), grace=2)) as port:
        held = [threading.Thread(target=ask, args=(port, get("/v2")))]
        with devices(port) as one:
            for thread in held:
                thread.start()
            assert len(one.predict(windows(500))[1]) == 500
            for thread in held:
                thread.join()


def test_a_batch_is_answered_by_one_release_while_the_devices_change_over() -> None:
    one, two, x = Fake(fails=dawdles(1)), Fake(fails=dawdles(2)), windows(400)
    with running(one) as a, running(two) as b, devices(a, b) as both:
        one.version = 2
        model, _ = both.predict(x)  # by the other alone
        assert model.manifest.version == 1
        assert sum(two.batches) >= 400
        two.version = 2
        model, scores = both.predict(x)
        assert model.manifest.version == 2
        assert np.array_equal(scores[:, 0], means(x))
        one.version = two.version = 3
        both.predict(x)
        assert both.follow() is None
        assert both.current.manifest.version == 3


def test_a_newer_release_is_gone_over_to_without_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = Fake(), Fake()
    with running(one) as a, running(two) as b, devices(a, b) as both:
        assert both.follow() is None
        one.version = 2
        for _ in range(50):  # until a part has gone to the one that has changed over
            assert both.predict(windows(200))[0].manifest.version == 1
        assert both.follow() is None  # not asked again so soon
        monkeypatch.setattr(across, "_ASK_AGAIN", 0.0)
        assert both.follow() == "release 2 answers from now on"
        assert both.predict(windows(20))[0].manifest.version == 2


def test_bad_windows_are_the_callers_fault_and_said_at_once(tmp_path: Path) -> None:
    with two_servers(tmp_path) as (_, ports, _), devices(*ports) as both:
        bad = windows(50)
        bad[30, 2, 1] = np.nan
        with pytest.raises(DataError, match="NaN"):
            both.predict(bad)
        with pytest.raises(DataError, match="takes windows"):
            both.predict(windows(3)[:, :4])
        assert len(both.predict(windows(3))[1]) == 3


def test_a_model_that_fails_everywhere_is_said() -> None:
    def fails(x: NDArray[Any]) -> Exception | None:
        return ReleaseError("the model answers with NaN") if (x == 77).any() else None

    x = windows(100)
    x[60] = 77
    with running(Fake(fails=fails)) as a, running(Fake(fails=fails)) as b, devices(a, b) as both:
        with pytest.raises(ReleaseError, match="fails on every device"):
            both.predict(x)
        assert len(both.predict(windows(100))[1]) == 100
