"""The rules of splitting a batch, driven by a clock of the test's own."""

import heapq
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import ReleaseError
from fedge.serving.peer import PeerError
from fedge.serving.split import Split

NAMES = ("a:1", "b:1", "c:1")


def split(parts: int, devices: int = 2, patience: float = 100.0) -> Split:
    return Split(parts, NAMES[:devices], patience, 0.0)


def test_a_device_that_is_faster_gets_more() -> None:
    work, did = split(30), {0: 0, 1: 0}
    clock = [(0.0, 0), (0.0, 1)]
    while not work.finished:
        now, device = heapq.heappop(clock)
        part = work.take(device, now)
        took = 1.0 if device == 0 else 4.0
        if part is not None and work.done(device, part, now + took, took):
            did[device] += 1
        heapq.heappush(clock, (now + took, device))
    assert sum(did.values()) == 30
    assert 3 <= did[0] / did[1] <= 5


def test_what_a_failed_device_had_is_done_next_and_it_rests() -> None:
    work = split(4)
    assert [work.take(0, 0), work.take(1, 0)] == [0, 1]
    work.failed(0, 0, 1.0, "gone")
    assert work.take(0, 1.0) is None
    assert work.take(1, 1.0) == 0
    assert work.take(0, 1.3) == 2


def test_it_rests_longer_each_time_and_not_for_ever() -> None:
    work, now, rests = split(1, patience=1e9), 0.0, []
    for _ in range(12):
        start = now
        while work.take(0, now) is None:
            now += 0.1
        rests.append(now - start)
        work.failed(0, 0, now, "gone")
    assert rests[0] == 0
    assert rests[1] < rests[3] < rests[6]
    assert rests[-1] == pytest.approx(30, abs=0.2)


def test_one_that_answers_again_is_as_good_as_new() -> None:
    work = split(9)
    for now in (0.0, 10.0):
        part = work.take(0, now)
        assert part is not None
        work.failed(0, part, now, "gone")
    part = work.take(0, 20.0)
    assert part is not None
    work.done(0, part, 21.0, 1.0)
    part = work.take(0, 21.0)
    assert part is not None
    work.failed(0, part, 21.0, "gone")
    assert work.take(0, 21.3) is not None


def test_the_last_part_of_a_device_that_hangs_is_done_by_another() -> None:
    work = split(3)
    assert [work.take(0, 0.0), work.take(1, 0.0)] == [0, 1]
    work.done(1, 1, 1.0, 1.0)
    assert work.take(1, 1.0) == 2
    work.done(1, 2, 2.0, 1.0)
    assert work.take(1, 1.9) is None  # not for too long yet
    assert work.take(1, 2.1) == 0
    assert work.take(1, 2.2) is None  # two of them are at it
    assert work.done(1, 0, 3.0, 1.0)
    assert work.finished
    assert not work.done(0, 0, 9.0, 9.0)  # the first answer counted


def test_a_part_is_not_given_back_while_another_device_has_it() -> None:
    work = split(3)
    work.take(0, 0.0)
    work.take(1, 0.0)
    work.done(1, 1, 1.0, 1.0)
    work.take(1, 1.0)
    work.done(1, 2, 2.0, 1.0)
    assert work.take(1, 3.0) == 0
    work.failed(0, 0, 4.0, "gone")
    assert work.take(0, 4.3) == 0  # taken over again, and not lying there for a third
    assert work.take(0, 4.4) is None
    assert work.done(1, 0, 61.0, 1.0)


def test_no_hope_is_said_once_every_device_has_failed_three_times() -> None:
    work = split(1)
    for device in (0, 1, 0, 1, 0):
        work.failed(device, 0, 0.0, f"{NAMES[device]}: refused")
    with pytest.raises(PeerError, match="a:1: refused; b:1: refused"):
        work.failed(1, 0, 0.0, "b:1: refused")


def test_busy_devices_are_asked_again_until_patience_ends() -> None:
    work = split(1, devices=1, patience=5.0)
    for turn in range(10):
        assert work.take(0, turn * 0.5) == 0
        work.busy(0, 0, turn * 0.5, "too busy")
    with pytest.raises(PeerError, match="too busy"):
        work.busy(0, 0, 5.1, "too busy")


def test_a_part_on_which_the_model_fails_everywhere_ends_the_batch() -> None:
    work = split(2, devices=3)
    work.broken(0, 0, 0.0, "NaN")
    work.broken(1, 0, 0.0, "NaN")
    with pytest.raises(ReleaseError, match="NaN"):
        work.broken(2, 0, 0.0, "NaN")


@given(st.integers(1, 25), st.integers(0, 1 << 30))
def test_every_part_is_done_once_whatever_fails(parts: int, seed: int) -> None:
    """Devices of any speed that fail, hang and are busy at random, one of which always comes back."""
    draw = random.Random(seed)
    work, done = split(parts, devices=3, patience=1e9), list[int]()
    clock: list[tuple[float, int, int | None, float]] = [(0.0, device, None, 0.0) for device in range(3)]
    while not work.finished:
        now, device, part, start = heapq.heappop(clock)
        if part is not None:
            fate = draw.random()
            if fate < 0.7 or device == 2:
                done += [part] * work.done(device, part, now, now - start)
            elif fate < 0.8:
                work.busy(device, part, now, "busy")
            else:
                work.failed(device, part, now, "gone")
        taken = work.take(device, now)
        heapq.heappush(clock, (now + draw.choice([0.01, 0.1, 1.0, 10.0]), device, taken, now))
    assert sorted(done) == list(range(parts))
