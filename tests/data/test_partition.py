import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.data.partition import lacking, missing_classes, skewed
from fedge.data.types import ClientData, Windows
from fedge.errors import ConfigError


def windows(y, dtype=np.int64):
    x = np.arange(len(y), dtype=np.float32).reshape(-1, 1, 1)
    return Windows(x, np.array(y, dtype), np.zeros(len(y), np.int64))


def client(train, judge=(), later=()):
    return ClientData(windows(train), windows(judge), windows(later), 3)


labels = st.lists(st.integers(0, 6), max_size=30)


@given(labels, labels, labels, st.integers(1, 8), st.integers(0, 2**62))
def test_a_skewed_client_has_some_of_its_own_classes_whole_and_later_untouched(
    train, judge, later, count, seed
):
    data = client(train, judge, later)
    found = skewed(data, count, seed)
    kept = set(found.train.y.tolist())
    assert kept <= set(train)
    assert len(kept) == min(count, len(set(train)))
    assert found.train.y.tolist() == [label for label in train if label in kept]
    assert found.judge.y.tolist() == [label for label in judge if label in kept]
    assert found.later is data.later
    assert found.dropped == 3


def test_seeds_draw_all_classes_alike_and_the_same_seed_the_same():
    data = client([1, 2, 4, 5, 5, 5, 5, 5, 5])
    drawn = [tuple(np.unique(skewed(data, 2, seed).train.y)) for seed in range(300)]
    assert drawn == [tuple(np.unique(skewed(data, 2, seed).train.y)) for seed in range(300)]
    counts = {pair: drawn.count(pair) for pair in set(drawn)}
    assert len(counts) == 6
    assert min(counts.values()) > 25


@given(labels, st.sets(st.integers(0, 6)))
def test_what_is_lacking_is_gone_and_nothing_else(y, gone):
    found = lacking(windows(y), sorted(gone))
    assert found.x[:, 0, 0].astype(int).tolist() == [i for i, label in enumerate(y) if label not in gone]


@given(st.integers(1, 30), st.data(), st.integers(0, 2**62))
def test_missing_classes_are_different_ones_in_order_and_leave_one(classes, data, seed):
    count = data.draw(st.integers(0, classes - 1))
    missing = missing_classes(classes, count, seed)
    assert len(set(missing)) == count
    assert list(missing) == sorted(missing)
    assert set(missing) < set(range(classes))
    assert all(type(label) is int for label in missing)
    assert missing == missing_classes(classes, count, seed)


def test_seeds_miss_each_class_alike():
    missed = [label for seed in range(300) for label in missing_classes(5, 2, seed)]
    assert min(missed.count(label) for label in range(5)) > 80


@pytest.mark.parametrize(("classes", "count"), [(3, 3), (3, -1), (0, 0), (1, 1)])
def test_no_class_left_is_refused(classes, count):
    with pytest.raises(ConfigError, match=f"{count} missing of {classes} classes"):
        missing_classes(classes, count, 0)


def test_what_has_no_classes_is_refused():
    numbers = windows([0.5, 1.5], np.float32)
    with pytest.raises(ConfigError, match="the target is a number"):
        lacking(numbers, [0])
    with pytest.raises(ConfigError, match="the target is a number"):
        skewed(ClientData(numbers, numbers, numbers, 0), 1, 0)
    with pytest.raises(ConfigError, match="0 classes per client"):
        skewed(client([0, 1]), 0, 0)
