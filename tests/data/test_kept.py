import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedge.data import load_client
from fedge.data.kept import INDEX, META, RECORD, WINDOWS, Meta, read_kept, read_meta, recent
from fedge.data.split import split_client
from fedge.data.types import TargetKind
from fedge.edge.keep import open_keep
from fedge.edge.stream import Window
from fedge.errors import ConfigError, DataError

ACTIVITY = Meta((8, 2), ("a", "b"), ("rest", "walk"), "class", 30.0)
MACHINE = Meta((8, 2), ("a", "b"), ("normal", "anomalous"), "anomaly", 30.0)
LIFE = Meta((8, 2), ("a", "b"), (), "number", 30.0)


def fill(
    path: Path, labels: list[float | None], meta: Meta = ACTIVITY, stretches: int = 1
) -> NDArray[np.float32]:
    """Keep a signal in windows that overlap by half; gives them ``[n, 8, 2]``."""
    signal = np.random.default_rng(3).normal(size=(4 * len(labels) + 4, 2)).astype(np.float32)
    keep = open_keep(path, meta, 1 << 20)
    x = [signal[4 * n : 4 * n + 8] for n in range(len(labels))]
    for n, label in enumerate(labels):
        keep.add(
            Window(x[n], n, n * 4.0, n * 4.0 + 7, True, None, (None,), n * stretches // len(labels)), label
        )
    keep.close()
    return np.stack(x)


def test_device_learns_from_what_is_labelled_in_the_order_of_time(tmp_path: Path) -> None:
    labels = [0.0, None, 1.0, 1.0, None, 0.0]
    x = fill(tmp_path, labels)
    data = load_client(tmp_path, classes=("rest", "walk"), window=8, step=4)
    (windows,) = data.clients.values()
    assert (data.classes, data.channels, data.window) == (("rest", "walk"), ("a", "b"), (8, 2))
    np.testing.assert_array_equal(windows.x, x[[0, 2, 3, 5]])
    assert windows.y.tolist() == [0, 1, 1, 0]
    assert windows.y.dtype == np.int64


def test_the_later_quarter_is_what_came_last_and_shares_no_sample_with_the_rest(tmp_path: Path) -> None:
    x = fill(tmp_path, [float(n // 10 % 2) for n in range(80)], stretches=8)
    (windows,) = load_client(tmp_path, window=8, step=4).clients.values()
    parts = split_client(windows)
    place = {one.tobytes(): n for n, one in enumerate(x)}
    train, later = ([place[one.tobytes()] for one in part.x] for part in (parts.train, parts.later))
    assert len(later) == 20
    assert max(train) + 1 < min(later)
    assert set(parts.later.y) == {0, 1}


def test_without_labels_there_is_nothing_to_learn_and_no_error(tmp_path: Path) -> None:
    fill(tmp_path, [None] * 5)
    (windows,) = load_client(tmp_path, window=8, step=4).clients.values()
    assert windows.x.shape == (0, 8, 2)
    parts = split_client(windows)
    assert (len(parts.train), len(parts.later)) == (0, 0)


def test_without_any_label_a_machine_counts_as_normal_and_with_some_only_they_count(tmp_path: Path) -> None:
    fill(tmp_path / "none", [None] * 4, MACHINE)
    (windows,) = load_client(tmp_path / "none", window=8, step=4, target="anomaly").clients.values()
    assert (windows.y.tolist(), len(windows.to_train_on())) == ([0] * 4, 4)
    fill(tmp_path / "some", [None, 0.0, 1.0, None], MACHINE)
    (windows,) = load_client(tmp_path / "some", window=8, step=4, target="anomaly").clients.values()
    assert windows.y.tolist() == [0, 1]
    assert windows.trainable is not None
    assert windows.trainable.tolist() == [True, False]


def test_numbers_are_read_as_numbers(tmp_path: Path) -> None:
    fill(tmp_path, [1.5, None, -2.25], LIFE)
    (windows,) = load_client(tmp_path, window=8, step=4, target="number").clients.values()
    assert windows.y.tolist() == [1.5, -2.25]
    assert windows.y.dtype == np.float32


def test_recent_windows_are_the_last_ones_with_or_without_a_label(tmp_path: Path) -> None:
    x = fill(tmp_path, [0.0, None, None, 1.0, None])
    np.testing.assert_array_equal(recent(tmp_path, 3), x[2:])
    np.testing.assert_array_equal(recent(tmp_path), x)


def test_what_is_too_old_is_not_read_though_nobody_removed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, [0.0, 1.0])
    later = time.time() + 31 * 86_400
    monkeypatch.setattr(time, "time", lambda: later)
    assert len(recent(tmp_path)) == 0


@pytest.mark.parametrize(("window", "target"), [(9, "class"), (8, "number"), (8, "anomaly")])
def test_store_of_other_windows_or_labels_is_refused(tmp_path: Path, window: int, target: TargetKind) -> None:
    fill(tmp_path, [0.0])
    with pytest.raises(DataError, match="holds windows of 8 samples"):
        load_client(tmp_path, window=window, step=4, target=target)


def test_store_of_other_classes_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, [0.0])
    with pytest.raises(DataError, match="has the classes"):
        load_client(tmp_path, classes=("rest", "run"), window=8, step=4)


def test_settings_of_a_file_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, [0.0], MACHINE)
    with pytest.raises(ConfigError, match=r"data\.normal"):
        load_client(tmp_path, window=8, step=4, target="anomaly", normal="a > 1")


@pytest.mark.parametrize("missing", [INDEX, WINDOWS])
def test_missing_file_is_said(tmp_path: Path, missing: str) -> None:
    fill(tmp_path, [0.0])
    (tmp_path / missing).unlink()
    with pytest.raises(DataError, match=missing):
        read_kept(tmp_path, 8, "class")


def changed(**changes: Any) -> dict[str, Any]:
    return {**json.loads(ACTIVITY.to_bytes()), **changes}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"[" * 100_000,
        b"\xff",
        ACTIVITY.to_bytes()[:-1],
        json.dumps(changed(schema=2), sort_keys=True).encode(),
        json.dumps(changed(more=1), sort_keys=True).encode(),
        json.dumps(changed(shape=[8, -2]), sort_keys=True).encode(),
        json.dumps(changed(shape=[8, 2.0]), sort_keys=True).encode(),
        json.dumps(changed(shape=[2**40, 2]), sort_keys=True).encode(),
        json.dumps(changed(shape=[8]), sort_keys=True).encode(),
        json.dumps(changed(shape=[8, 3]), sort_keys=True).encode(),
        json.dumps(changed(channels=["a", 2]), sort_keys=True).encode(),
        json.dumps(changed(channels="ab"), sort_keys=True).encode(),
        json.dumps(changed(target="vibes"), sort_keys=True).encode(),
        json.dumps(changed(days=float("nan")), sort_keys=True).encode(),
        json.dumps(changed(days=0.0), sort_keys=True).encode(),
        b" " * (1 << 20),
    ],
)
def test_description_that_is_damaged_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / META).write_bytes(content)
    with pytest.raises(DataError):
        read_meta(tmp_path)


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([INDEX, WINDOWS]))
def test_damage_costs_the_windows_it_hits_and_no_others(
    tmp_path_factory: pytest.TempPathFactory, rng: random.Random, name: str
) -> None:
    path = tmp_path_factory.mktemp("kept")
    x = fill(path, [0.0, 1.0] * 10)
    content = bytearray((path / name).read_bytes())
    at = rng.randrange(len(content))
    content[at] ^= 1 << rng.randrange(8)
    (path / name).write_bytes(content[: rng.choice([len(content), len(content), at + 1])])
    found = {one.tobytes() for one in recent(path)}
    hit = at // (RECORD.itemsize if name == INDEX else ACTIVITY.window_bytes)
    assert found <= {one.tobytes() for one in x}
    assert {one.tobytes() for one in x[:hit]} <= found
    assert x[hit].tobytes() not in found
