import hashlib
import importlib.util
import sys

import numpy as np
import pytest

from fedge.data import digits, load
from fedge.data.split import split_client
from fedge.errors import DataError, SetupError

needs_it = pytest.mark.skipif(
    importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not installed"
)


@pytest.fixture(scope="module")
def data():
    return load("digits")


@needs_it
def test_the_clients_are_the_stored_images_in_consecutive_blocks(data):
    from sklearn.datasets import load_digits

    images, y = load_digits(return_X_y=True)
    assert len(data.clients) == 20
    assert (data.window, data.channels, data.classes) == ((8, 8, 1), ("ink",), tuple("0123456789"))
    at = 0
    for client, windows in data.clients.items():
        stop = at + (90 if at < 17 * 90 else 89)
        np.testing.assert_array_equal(windows.x, images[at:stop].reshape(-1, 8, 8, 1), client)
        np.testing.assert_array_equal(windows.y, y[at:stop])
        np.testing.assert_array_equal(windows.group, np.arange(at, stop))
        assert (windows.x.dtype, windows.y.dtype, windows.group.dtype) == (np.float32, np.int64, np.int64)
        at = stop
    assert at == 1797


@needs_it
def test_the_images_are_those_that_reports_were_made_with(data):
    stored = np.concatenate([w.x for w in data.clients.values()]).astype(np.uint8).tobytes()
    assert hashlib.sha256(stored).hexdigest() == (
        "8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3"
    )


@needs_it
def test_every_client_has_every_digit_on_both_sides_and_loses_no_image(data):
    for windows in data.clients.values():
        parts = split_client(windows)
        assert set(parts.train.y.tolist()) == set(parts.later.y.tolist()) == set(range(10))
        assert parts.dropped == 0


def test_a_missing_package_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SetupError, match=r"pip install 'fedge\[simulation\]'"):
        load("digits")


def test_other_images_under_the_same_name_are_refused(monkeypatch):
    class Stored:
        images, target = np.zeros((5, 8, 8)), np.zeros(5)

    class Package:
        load_digits = Stored

    monkeypatch.setitem(sys.modules, "sklearn.datasets", Package)
    with pytest.raises(DataError, match=r"\(5, 8, 8\)"):
        digits.load_digits()
