import hashlib
import importlib.util
import sys
from collections import Counter

import numpy as np
import pytest

from fedge.data import load, watch
from fedge.data.split import split_client
from fedge.errors import DataError, SetupError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("seglearn") is None, reason="seglearn is not installed"
)


@pytest.fixture(scope="module")
def data():
    return load("watch")


@pytest.fixture(scope="module")
def raw():
    return np.load(watch._data_file(), allow_pickle=True).item()


def test_twenty_clients_with_the_windows_of_an_independent_loop(data, raw):
    expected = Counter()
    windows = {}
    for index in range(len(raw["X"])):
        signal, person = raw["X"][index], raw["subject"][index]
        client = f"p{person:02d}-" + ("right" if raw["side"][index] == 1 else "left")
        start = 0
        while start + 128 <= len(signal):
            windows.setdefault(client, []).append((signal[start : start + 128], raw["y"][index], index))
            expected[client] += 1
            start += 64
    assert len(data.clients) == 20
    assert list(data.clients) == sorted(expected)
    assert {c: len(w) for c, w in data.clients.items()} == expected
    assert sum(expected.values()) == 3605
    for client, found in data.clients.items():
        np.testing.assert_array_equal(found.x, np.array([w[0] for w in windows[client]], np.float32))
        assert found.y.tolist() == [w[1] for w in windows[client]]
        assert found.group.tolist() == [w[2] for w in windows[client]]


def test_names_and_shape(data):
    assert data.classes == ("PEN", "ABD", "FEL", "IR", "ER", "TRAP", "ROW")
    assert data.channels == ("ax", "ay", "az", "wx", "wy", "wz")
    assert data.window == (128, 6)
    assert all(set(w.y.tolist()) == set(range(7)) for w in data.clients.values())


def test_every_client_loses_one_window_for_each_cut_and_no_more(data):
    """A client has one recording of each exercise, cut twice; neighbours overlap by half."""
    for windows in data.clients.values():
        parts = split_client(windows, 0.25, 0.1)
        assert parts.dropped == 14
        assert min(map(len, (parts.train, parts.judge, parts.later))) >= 7


def test_the_package_is_not_imported(data):
    assert len(data.clients) == 20
    assert "seglearn" not in sys.modules


def test_a_changed_file_is_never_unpickled(tmp_path, monkeypatch):
    marker = tmp_path / "unpickled"

    class Hostile:
        def __reduce__(self):
            return marker.touch, ()

    file = tmp_path / "watch_dataset.npy"
    np.save(file, np.array(Hostile(), object), allow_pickle=True)
    monkeypatch.setattr(watch, "_data_file", lambda: file)
    with pytest.raises(DataError, match=r"seglearn==1\.2\.5"):
        watch.load_watch()
    assert not marker.exists()


def test_the_hash_is_that_of_the_published_file():
    assert hashlib.sha256(watch._data_file().read_bytes()).hexdigest() == watch._SHA256


def test_a_missing_package_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SetupError, match=r"pip install 'fedge\[simulation\]'"):
        watch.load_watch()
