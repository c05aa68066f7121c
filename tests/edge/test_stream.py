import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.data._table import Recording
from fedge.data.folder import cut
from fedge.edge.lines import Sample
from fedge.edge.stream import Cutter, Window
from fedge.errors import ConfigError, DataError


def feed(
    cutter: Cutter, times: Sequence[float | None], labels: Sequence[str | None] | None = None
) -> list[Window]:
    """Windows of samples whose first value is their place, with those left out that are refused."""
    found = []
    for place, time in enumerate(times):
        label = None if labels is None else labels[place]
        try:
            window = cutter.add(Sample([float(place), -float(place)], time, time, label))
        except DataError:
            continue
        if window is not None:
            found.append(window)
    return found


@given(st.integers(1, 12), st.integers(1, 20), st.integers(0, 60))
def test_windows_are_those_of_a_naive_loop(time: int, step: int, n: int) -> None:
    windows = feed(Cutter(time, 2, step), [None] * n)
    starts = range(0, n - time + 1, step)
    assert [w.x[:, 0].tolist() for w in windows] == [list(range(s, s + time)) for s in starts]
    assert [(w.begin, w.end) for w in windows] == [(s, s + time - 1) for s in starts]
    assert [w.number for w in windows] == list(range(len(windows)))
    assert all(w.x.dtype == np.float32 and not w.clocked for w in windows)


@given(st.lists(st.integers(5, 25), min_size=1, max_size=4), st.integers(2, 6), st.integers(1, 6))
def test_stream_is_cut_as_a_recording_in_a_file_is(lengths: list[int], time: int, step: int) -> None:
    """The same windows whether a device gives them one by one or a client reads them from its file."""
    starts = np.cumsum([0, *[length * 0.02 + 5 for length in lengths[:-1]]])
    timestamp = np.concatenate([s + 0.02 * np.arange(n) for s, n in zip(starts, lengths, strict=True)])
    place = np.arange(len(timestamp), dtype=np.float32)
    recording = Recording(timestamp, np.stack([place, -place], 1), None, (), ("a", "b"))
    expected = cut(recording, time, step, (), "anomaly")
    windows = feed(Cutter(time, 2, step), timestamp.tolist())
    assert [w.x.tolist() for w in windows] == expected.x.tolist()
    assert [w.stretch for w in windows] == expected.group.tolist()


def test_one_missing_sample_is_no_gap_and_two_are() -> None:
    whole = [i * 0.02 for i in range(40)]
    assert len(feed(Cutter(10, 2, 10), whole[:15] + whole[16:])) == 3
    after_two = feed(Cutter(10, 2, 10), whole[:15] + whole[17:])
    assert [w.x[0, 0] for w in after_two] == [0, 15, 25]
    assert [w.stretch for w in after_two] == [0, 1, 1]


def test_samples_that_cannot_be_read_make_a_gap_without_timestamps() -> None:
    for missing, begins in ((1, [0, 4, 9]), (2, [0, 7])):
        cutter, windows = Cutter(4, 2, 4), []
        for place in range(13):
            if 5 <= place < 5 + missing:
                cutter.skip()
            elif window := cutter.add(Sample([place, 0], None, None, None)):
                windows.append(window)
        assert [w.begin for w in windows] == begins


def test_gap_can_be_said_in_seconds() -> None:
    times = [0.0, 1, 2, 3, 3.5, 10, 11, 12, 13, 14]
    assert [w.begin for w in feed(Cutter(4, 2, 4, gap=6.5), times)] == [0, 3.5]
    assert [w.begin for w in feed(Cutter(4, 2, 4, gap=5.0), times)] == [0, 10]
    assert [w.begin for w in feed(Cutter(4, 2, 4, gap=math.inf), times)] == [0, 3.5]


def test_clock_that_is_set_back_begins_a_new_stretch() -> None:
    times = [100 + i * 0.1 for i in range(6)] + [3 + i * 0.1 for i in range(6)]
    windows = feed(Cutter(4, 2, 4), times)
    assert [(w.begin, w.stretch) for w in windows] == [(100, 0), (3, 1)]


def test_clock_that_is_set_back_at_once_does_not_lose_what_follows() -> None:
    windows = feed(Cutter(4, 2, 4), [1e9, *[i * 0.1 for i in range(8)]])
    assert [w.begin for w in windows] == [0, pytest.approx(0.4)]


def test_sample_that_comes_late_or_twice_is_left_out() -> None:
    cutter = Cutter(4, 2, 4)
    feed(cutter, [i * 0.1 for i in range(6)])
    for again in (0.5, 0.45):
        with pytest.raises(DataError, match="does not come after"):
            cutter.add(Sample([0, 0], again, again, None))
    windows = feed(cutter, [0.6, 0.7])
    assert [w.begin for w in windows] == [0.4]


def test_sensor_that_changes_its_rate_is_cut_again_soon() -> None:
    times = [i * 0.02 for i in range(200)] + [4 + i * 0.1 for i in range(200)]
    windows = feed(Cutter(10, 2, 10), times)
    assert sum(w.begin >= 4 for w in windows) >= 14


def test_some_with_and_some_without_timestamps_is_refused() -> None:
    cutter = Cutter(4, 2, 4)
    cutter.add(Sample([0, 0], 1.0, 1.0, None))
    with pytest.raises(DataError, match="some have none"):
        cutter.add(Sample([0, 0], None, None, None))


def test_window_keeps_the_labels_of_its_own_samples_and_its_times() -> None:
    labels = [None, "a", "a", "a", "b", "b", None]
    windows = feed(Cutter(3, 2, 2), [10.0 + i for i in range(7)], labels)
    assert [w.labels for w in windows] == [(None, "a", "a"), ("a", "a", "b"), ("b", "b", None)]
    assert [w.stamps for w in windows] == [(10.0, 12.0), (12.0, 14.0), (14.0, 16.0)]


def test_window_that_was_given_does_not_change_when_the_next_one_comes() -> None:
    cutter = Cutter(4, 2, 1)
    first, *_ = feed(cutter, [None] * 4)
    before = first.x.copy()
    feed(cutter, [None] * 10)
    assert (first.x == before).all()


@pytest.mark.parametrize(
    ("step", "gap"), [(0, None), (-1, None), (2**40, None), (1, 0.0), (1, -1.0), (1, math.nan)]
)
def test_step_and_gap_out_of_range_are_refused(step: int, gap: float | None) -> None:
    with pytest.raises(ConfigError):
        Cutter(4, 2, step, gap)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=80))
def test_no_times_bring_anything_but_the_error_tree(times: list[float]) -> None:
    for window in feed(Cutter(3, 2, 2), times):
        assert window.begin < window.end
        assert np.isfinite(window.x).all()
        assert all(b > a for a, b in itertools.pairwise(window.x[:, 0]))
