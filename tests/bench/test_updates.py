"""Recorded updates are the clients' own, and a stretched one is distributed like its source."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from fedge.bench._updates import Recorded, record_config, stretched
from fedge.config import Config
from fedge.federated.coding import Coding
from fedge.observe import silent


@pytest.fixture(scope="module")
def recorded(small_config: Config) -> Recorded:
    redistill = replace(small_config.redistill, mode="none")
    return record_config(replace(small_config, redistill=redistill), silent)


def test_every_client_gives_an_update_a_round(recorded: Recorded, small_config: Config) -> None:
    assert len(recorded.updates) >= 3
    assert {len(u) for u in recorded.updates.values()} == {small_config.rounds.rounds}


def test_updates_are_exact_changes_and_not_what_a_codec_left_of_them(recorded: Recorded) -> None:
    for update in recorded.all:
        values = np.concatenate([a.reshape(-1) for a in update.values()])
        assert np.isfinite(values).all()
        assert len(np.unique(values)) > len(values) / 4


def test_the_scenarios_own_codec_is_kept_for_the_measurement(recorded: Recorded) -> None:
    assert recorded.uplink == Coding("ternary", {"share": 0.1})


def test_a_stretched_update_is_distributed_like_its_source_array_by_array() -> None:
    random = np.random.default_rng(5)
    source = {
        "a": random.standard_t(3, (40, 50)).astype(np.float32),
        "b": random.normal(5, 0.1, 500).astype(np.float32),
    }
    large = stretched(source, 50_000, seed=1)
    assert {n: len(a) for n, a in large.items()} == {"a": 40_000, "b": 10_000}
    for name, values in large.items():
        assert stats.ks_2samp(values, source[name].reshape(-1)).statistic < 0.02
        assert len(np.unique(values)) > 0.9 * len(values)


def test_zeros_stay_zeros_in_a_stretched_update() -> None:
    source = {"a": np.concatenate([np.zeros(600), np.ones(400)]).astype(np.float32)}
    share = float((stretched(source, 20_000, seed=0)["a"] == 0).mean())
    assert share == pytest.approx(0.6, abs=0.02)
