"""Robust aggregation: what one hostile client can do to a round."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fedge.config import load_config
from fedge.errors import ConfigError, UpdateError
from fedge.flower.robust import robust

WAYS = ("multikrum", "bulyan", "trimmed_mean")
Change = dict[str, NDArray[np.float32]]


def _honest(count: int = 9) -> list[Change]:
    random = np.random.default_rng(0)
    return [
        {
            "a": random.normal(1, 0.1, 5).astype(np.float32),
            "b": random.normal(-1, 0.1, 3).astype(np.float32),
        }
        for _ in range(count)
    ]


def _hostile(size: float) -> Change:
    return {"a": np.full(5, size, np.float32), "b": np.full(3, -size, np.float32)}


def _way(name: str, hostile: int = 1):  # type: ignore[no-untyped-def]
    config = load_config(
        None, {"uplink": {"codec": "quantized"}}, [f"rounds.robust={name}", f"rounds.hostile={hostile}"]
    )
    found = robust(config)
    assert found is not None
    return found


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("size", [5.0, 1e3, 1e6])
def test_one_hostile_client_cannot_steer_the_round_however_loud(name: str, size: float) -> None:
    merged = _way(name)([*_honest(), _hostile(size)], [10] * 10)
    assert np.all(np.abs(merged["a"] - 1) < 0.15)
    assert np.all(np.abs(merged["b"] + 1) < 0.15)
    assert merged["a"].dtype == np.float32


def test_the_plain_mean_is_steered() -> None:
    everyone = [*_honest(), _hostile(1e3)]
    assert np.mean([c["a"] for c in everyone], axis=0).min() > 50


@pytest.mark.parametrize("name", WAYS)
def test_a_large_weight_buys_a_hostile_client_nothing(name: str) -> None:
    merged = _way(name)([*_honest(), _hostile(1e3)], [10] * 9 + [10_000])
    assert np.all(np.abs(merged["a"] - 1) < 0.15)


def test_the_trimmed_mean_leaves_out_exactly_the_extremes() -> None:
    changes = _honest(7)
    sorted_values = np.sort(np.stack([c["a"] for c in changes]), axis=0)
    merged = _way("trimmed_mean", hostile=2)(changes, [1] * 7)
    assert np.allclose(merged["a"], sorted_values[2:-2].mean(axis=0))


@pytest.mark.parametrize(("name", "least"), [("multikrum", 5), ("bulyan", 7), ("trimmed_mean", 3)])
def test_too_few_updates_are_refused_rather_than_trusted(name: str, least: int) -> None:
    _way(name)(_honest(least), [1] * least)
    with pytest.raises(UpdateError, match=f"needs {least} updates"):
        _way(name)(_honest(least - 1), [1] * (least - 1))


def test_trimming_sparse_updates_entry_by_entry_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match="sparse"):
        load_config(None, {}, ["rounds.robust=trimmed_mean"])
