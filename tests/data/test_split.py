import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedge.data.split import split_client
from fedge.data.types import Windows
from fedge.errors import ConfigError


def numbered(y, group=None, time=4):
    """Windows that share nothing; ``x[i, 0, 0]`` is ``i``."""
    n = len(y)
    x = np.random.default_rng(n).normal(size=(n, time, 2)).astype(np.float32)
    x[:, 0, 0] = np.arange(n)
    return Windows(
        x, np.array(y, np.int64), np.zeros(n, np.int64) if group is None else np.array(group, np.int64)
    )


def positions(windows):
    return windows.x[:, 0, 0].astype(int).tolist()


def slide(rng, runs, time, step):
    """Windows of ``time`` samples every ``step``, from a new signal for each (class, group, count)."""
    x, y, group = [], [], []
    for label, recording, count in runs:
        signal = rng.normal(size=((count - 1) * step + time, 2)).astype(np.float32)
        x += [signal[i * step : i * step + time] for i in range(count)]
        y += [label] * count
        group += [recording] * count
    return Windows(np.array(x), np.array(y, np.int64), np.array(group, np.int64))


def share_a_sample(a, b):
    """The naive loop: the end of one window is the beginning of the other."""
    time = len(a)
    return any(
        np.array_equal(a[s:], b[: time - s]) or np.array_equal(b[s:], a[: time - s]) for s in range(time)
    )


def naive_counts(n, share):
    held = int(np.floor(n * share + 0.5))
    return min(held, n - 1)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.sampled_from([0.0, 0.1, 0.25, 0.5]))
def test_parts_are_disjoint_complete_in_time_order_and_of_the_share(y, judge_share):
    windows = numbered(y)
    parts = split_client(windows, 0.25, judge_share)
    found = [positions(p) for p in (parts.train, parts.judge, parts.later)]
    assert sorted(found[0] + found[1] + found[2]) == list(range(len(y)))
    assert parts.dropped == 0
    for part in found:
        assert part == sorted(part)
    single = all(y.count(label) == 1 for label in y)
    for label in set(y):
        train, judge, later = ([i for i in part if y[i] == label] for part in found)
        assert train + judge + later == [i for i, other in enumerate(y) if other == label]
        if not single:
            assert len(later) == naive_counts(y.count(label), 0.25)
            assert len(judge) == naive_counts(y.count(label) - len(later), judge_share)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 7)), min_size=1, max_size=5),
    st.integers(3, 10),
    st.integers(1, 10),
    st.integers(0, 2**32),
)
def test_no_part_shares_a_sample_with_another(runs, time, step, seed):
    runs = [(label, number, count) for number, (label, count) in enumerate(runs)]
    windows = slide(np.random.default_rng(seed), runs, time, step)
    parts = split_client(windows, 0.25, 0.2)
    sides = [parts.train.x, parts.judge.x, parts.later.x]
    for i, side in enumerate(sides):
        for other in sides[i + 1 :]:
            assert not any(share_a_sample(a, b) for a in side for b in other)
    assert len(windows) == sum(map(len, sides)) + parts.dropped
    if step >= time:
        assert parts.dropped == 0


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=80))
def test_groups_of_a_class_with_four_or_more_are_never_on_two_sides(pairs):
    y, group = [p[0] for p in pairs], [p[1] for p in pairs]
    parts = split_client(numbered(y, group), 0.25, 0.2)
    side = {
        i: number for number, p in enumerate((parts.train, parts.judge, parts.later)) for i in positions(p)
    }
    assert sorted(side) == list(range(len(y)))
    for label in set(y):
        groups = {g for c, g in pairs if c == label}
        for g in groups if len(groups) >= 4 else ():
            assert len({side[i] for i in range(len(y)) if group[i] == g}) == 1


def test_the_last_groups_are_held_out_whole():
    group = np.repeat([5, 3, 9, 1, 7, 2, 8, 4], 10)
    parts = split_client(numbered([0] * 80, group), 0.25, 0.2)
    assert set(parts.later.group) == {8, 4}
    assert set(parts.judge.group) == {2}
    assert set(parts.train.group) == {5, 3, 9, 1, 7}


def test_a_group_that_one_class_keeps_is_not_held_out_for_another():
    y = [0] * 8 + [1] * 4
    group = [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]
    assert set(split_client(numbered(y, group), 0.25, 0).later.group) == {6, 7}


def test_three_groups_are_cut_inside_in_time_order():
    parts = split_client(numbered([0] * 12, np.repeat([0, 1, 2], 4)), 0.25, 0)
    assert positions(parts.later) == [9, 10, 11]
    assert len(parts.judge) == 0


def test_one_window_goes_to_train():
    parts = split_client(numbered([2]))
    assert (len(parts.train), len(parts.judge), len(parts.later)) == (1, 0, 0)


def test_a_class_with_one_window_keeps_it_in_train():
    parts = split_client(numbered([0] * 8 + [1]))
    assert positions(parts.later) == [6, 7]
    assert 8 in positions(parts.train)


def test_two_windows_of_two_classes_still_give_a_later_part():
    parts = split_client(numbered([0, 1]))
    assert (positions(parts.train), positions(parts.later)) == ([0], [1])


def test_two_windows_that_overlap_leave_nothing_to_train_on():
    windows = slide(np.random.default_rng(0), [(0, 0, 2)], 8, 4)
    parts = split_client(windows)
    assert (len(parts.train), len(parts.judge), len(parts.later), parts.dropped) == (0, 0, 1, 1)


def test_without_a_later_share_there_is_no_later_part():
    parts = split_client(numbered([0] * 9), 0, 0)
    assert (len(parts.train), len(parts.later)) == (9, 0)


def test_a_window_that_is_there_twice_is_not_on_both_sides():
    windows = numbered([0] * 8)
    windows.x[1] = windows.x[7]
    parts = split_client(windows, 0.25, 0)
    assert positions(parts.train) == [0, 2, 3, 4, 5]
    assert parts.dropped == 1


def test_overlap_is_found_across_classes():
    windows = slide(np.random.default_rng(0), [(0, 0, 8)], 8, 4)
    windows = Windows(windows.x, np.array([0, 0, 0, 0, 1, 1, 1, 1]), windows.group)
    parts = split_client(windows, 0.25, 0)
    kept = [int(np.flatnonzero((windows.x == x).all((1, 2)))[0]) for x in parts.train.x]
    assert kept == [0, 1, 5]  # 3 and 7 are later; 2, 4 and 6 touch them


@pytest.mark.parametrize("fill", ["constant", "zeros", "two levels", "half constant"])
def test_a_signal_at_rest_does_not_make_windows_vanish(fill):
    rng = np.random.default_rng(1)
    x = np.full((40, 32, 2), 9.81, np.float32)
    if fill == "zeros":
        x = np.zeros((40, 32, 2), np.float32) * np.where(rng.random((40, 32, 2)) < 0.5, 1, -1).astype(
            np.float32
        )
    if fill == "two levels":
        x[:, 20:] = 1
    if fill == "half constant":
        x[:, 8:-8] = rng.normal(size=(40, 16, 2))
    parts = split_client(Windows(x, np.repeat([0, 1], 20), np.zeros(40, np.int64)))
    assert parts.dropped == 0


@pytest.mark.parametrize(("levels", "time"), [(2, 32), (16, 64), (256, 128), (600, 24), (4096, 128)])
def test_a_coarse_grid_costs_hardly_any_windows_by_chance(levels, time):
    rng = np.random.default_rng(2)
    x = rng.integers(0, levels, (120, time, 1)).astype(np.float32)
    parts = split_client(Windows(x, np.repeat([0, 1], 60), np.zeros(120, np.int64)))
    assert parts.dropped <= 2


def test_overlap_on_a_coarse_grid_is_found():
    rng = np.random.default_rng(3)
    signal = np.cumsum(rng.integers(-2, 3, 64 * 41)).astype(np.float32)[:, None] % 50
    x = np.stack([signal[i * 32 : i * 32 + 64] for i in range(80)])
    parts = split_client(Windows(x, np.zeros(80, np.int64), np.zeros(80, np.int64)), 0.25, 0)
    assert parts.dropped == 1
    np.testing.assert_array_equal(parts.train.x, x[:59])


def test_the_same_windows_give_the_same_parts():
    windows = slide(np.random.default_rng(5), [(0, 0, 30), (1, 1, 20)], 16, 8)
    first, second = split_client(windows), split_client(windows)
    for a, b in ((first.train, second.train), (first.judge, second.judge), (first.later, second.later)):
        np.testing.assert_array_equal(a.x, b.x)


@pytest.mark.parametrize("shares", [(1.0, 0.1), (-0.1, 0.1), (0.25, 1.0), (float("nan"), 0.1)])
def test_a_share_out_of_range_is_refused(shares):
    with pytest.raises(ConfigError, match="share is"):
        split_client(numbered([0] * 4), *shares)


def test_numbers_count_as_one_class():
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(8), 5)
    for groups in (None, group):
        classes = numbered([0] * 40, groups)
        numbers = Windows(classes.x, rng.normal(size=40).astype(np.float32), classes.group)
        expected, found = split_client(classes), split_client(numbers, target="number")
        for name in ("train", "judge", "later"):
            assert positions(getattr(found, name)) == positions(getattr(expected, name))
        assert found.train.y.tolist() == numbers.y[positions(found.train)].tolist()


def wearing_out(healthy, worn, broken, step=1, time=4):
    """A machine's life: windows that are surely normal, then doubtful, then anomalous."""
    n = healthy + worn + broken
    windows = slide(np.random.default_rng(n), [(0, 0, n)], time, step)
    y, position = (np.arange(n) >= healthy + worn).astype(np.int64), np.arange(n)
    windows.x[:, 0, 0] = position
    return Windows(windows.x, y, windows.group, position < healthy)


def test_the_anomalies_at_the_end_of_a_life_are_in_the_later_part():
    parts = split_client(wearing_out(60, 20, 20, step=4), 0.25, 0.1, target="anomaly")
    assert positions(parts.later) == list(range(75, 100))
    assert parts.later.y.tolist() == [0] * 5 + [1] * 20
    assert positions(parts.judge) == list(range(54, 60))
    assert positions(parts.train) == list(range(54))
    assert parts.dropped == 0


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20), st.sampled_from([0.0, 0.1, 0.5]))
def test_nothing_but_normal_windows_is_trained_or_judged_on(healthy, worn, broken, judge_share):
    if not healthy + worn + broken:
        return
    windows = wearing_out(healthy, worn, broken, step=4)
    parts = split_client(windows, 0.25, judge_share, target="anomaly")
    n = len(windows)
    first = n - max(naive_counts(n, 0.25), 1 if n > 1 else 0)
    assert positions(parts.later) == list(range(first, n))
    assert positions(parts.train) + positions(parts.judge) == list(range(min(healthy, first)))
    assert parts.train.trainable.all()
    assert parts.judge.trainable.all()


def test_judging_does_not_take_the_last_windows_to_train_on():
    """Each window overlaps five others: one to judge on would cost all the rest."""
    windows = slide(np.random.default_rng(0), [(0, 0, 14)], 30, 5)
    parts = split_client(windows, 0.25, 0.1)
    assert (len(parts.train), len(parts.judge), len(parts.later), parts.dropped) == (5, 0, 4, 5)


@pytest.mark.parametrize("target", ["class", "number", "anomaly"])
def test_a_tiny_client_and_one_with_half_of_everything_both_work(target):
    for count in (12, 3000):
        windows = slide(np.random.default_rng(1), [(0, 0, count)], 24, 12)
        y = windows.y.astype(np.float32) if target == "number" else windows.y
        parts = split_client(Windows(windows.x, y, windows.group), target=target)
        assert len(parts.later) == count // 4
        assert len(parts.train) + len(parts.judge) + parts.dropped == count - count // 4
        assert min(len(parts.train), len(parts.judge)) >= 1
        assert parts.dropped == 2


def pictures(n, side=8, channels=1, seed=0):
    x = np.random.default_rng(seed).integers(0, 17, (n, side, side, channels)).astype(np.float32)
    x[:, 0, 0, 0] = np.arange(n)
    return x


def shown(windows):
    return windows.x[:, 0, 0, 0].astype(int).tolist()


@pytest.mark.parametrize("channels", [1, 3])
def test_images_keep_their_groups_whole(channels):
    group = np.repeat(np.arange(10), 4)
    parts = split_client(Windows(pictures(40, channels=channels), np.repeat([0, 1], 20), group), 0.25, 0.2)
    assert set(parts.later.group) == {4, 9}
    assert set(parts.judge.group) == {3, 8}
    assert parts.dropped == 0
    assert len(parts.train) == 24


@pytest.mark.parametrize("fill", ["dark", "saturated", "two halves", "colour", "minus zero"])
def test_blank_images_are_not_taken_for_copies(fill):
    x = np.zeros((40, 8, 8, 3), np.float32)
    if fill == "saturated":
        x[:] = 255
    if fill == "two halves":
        x[:, 4:] = 200
    if fill == "colour":
        x[:] = [10, 20, 30]
    if fill == "minus zero":
        x[::2] = -0.0
    parts = split_client(Windows(x, np.repeat([0, 1], 20), np.zeros(40, np.int64)))
    assert parts.dropped == 0
    assert (len(parts.train), len(parts.judge), len(parts.later)) == (26, 4, 10)


def test_an_image_that_is_there_twice_is_not_on_both_sides():
    x = pictures(16)
    x[3], x[7] = x[14], x[10]
    x[5] = np.where(x[15] == 0, np.float32(-0.0), x[15])
    x[6] = x[15]
    x[6, 7, 7] += 1  # no copy
    parts = split_client(Windows(x, np.zeros(16, np.int64), np.zeros(16, np.int64)), 0.25, 0.2)
    assert shown(parts.later) == [12, 13, 14, 15]
    assert shown(parts.judge) == [10, 11]
    assert shown(parts.train) == [0, 1, 2, 4, 15, 8, 9]
    assert parts.dropped == 3


def test_images_that_continue_one_another_share_nothing():
    """A row that scrolls out of one image and into the next is no sample that both hold."""
    strip = pictures(1, 64)[0]
    x = np.stack([strip[i : i + 8, :8] for i in range(40)])
    parts = split_client(Windows(x, np.zeros(40, np.int64), np.zeros(40, np.int64)))
    assert parts.dropped == 0
