import numpy as np

from fedge.data.types import Windows


def some(seed, trainable=None):
    x = np.random.default_rng(seed).normal(size=(4, 3, 2)).astype(np.float32)
    usable = None if trainable is None else np.array(trainable)
    return Windows(x, np.arange(4), np.full(4, seed), usable)


def test_taking_windows_takes_what_may_be_trained_on_along():
    windows = some(0, [True, False, True, False])
    assert windows.take(np.array([3, 2])).trainable.tolist() == [False, True]
    assert windows.to_train_on().y.tolist() == [0, 2]
    assert some(0).take(np.array([1])).trainable is None
    assert some(0).to_train_on().y.tolist() == [0, 1, 2, 3]


def test_joined_windows_may_be_trained_on_as_each_lot_said():
    lots = [some(0), some(1, [False, True, False, True]), some(2)]
    joined = Windows.joined(lots)
    assert joined.trainable.tolist() == [True] * 4 + [False, True, False, True] + [True] * 4
    np.testing.assert_array_equal(joined.x, [x for lot in lots for x in lot.x])
    assert joined.y.tolist() == [0, 1, 2, 3] * 3
    assert joined.group.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert Windows.joined([some(0), some(2)]).trainable is None
