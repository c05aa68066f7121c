"""More clients than people: what a copy is, that it is always the same, and what it costs nothing."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federated.build import config_for

from fedge.data.types import ClientData, Windows
from fedge.errors import ConfigError
from fedge.simulation.copies import copied, seen
from fedge.simulation.virtual import work_of
from fedge.simulation.world import World, build_world


def _windows(count: int, seed: int = 0, size: tuple[int, ...] = (16, 3)) -> Windows:
    random = np.random.default_rng(seed)
    x = (3 + 2 * random.standard_normal((count, *size))).astype(np.float32)
    return Windows(x, np.arange(count) % 3, np.zeros(count, np.int64))


DATA = ClientData(_windows(50), _windows(10, 1), _windows(20, 2), 4)


@pytest.fixture(scope="module")
def world(fleet_file: Path) -> World:
    return build_world(config_for(fleet_file, data__copies=3))


def test_a_copy_turns_scales_and_adds_noise_as_a_naive_loop_would() -> None:
    """Noise aside, one matrix maps every sample of the person to the copy's: a rotation, then gains."""
    copy = seen(DATA, ((0, 1, 2),), 20.0, 7)
    before = np.concatenate([p.x.reshape(-1, 3) for p in (DATA.train, DATA.judge, DATA.later)])
    after = np.concatenate([p.x.reshape(-1, 3) for p in (copy.train, copy.judge, copy.later)])
    found, *_ = np.linalg.lstsq(before.astype(float), after.astype(float), rcond=None)
    gains = np.linalg.norm(found, axis=0)
    turn = found / gains
    np.testing.assert_allclose(turn.T @ turn, np.eye(3), atol=0.01)
    assert np.linalg.det(turn) == pytest.approx(1, abs=0.01)
    angle = np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
    assert 0 < angle <= 20.5
    assert np.abs(gains - 1).max() < 0.25
    left = (after - before @ found).std(axis=0) / before.std(axis=0)
    np.testing.assert_allclose(left, 0.05, atol=0.005)


def test_without_named_sensors_nothing_turns() -> None:
    copy = seen(DATA, (), 20.0, 7)
    ratio = np.median(copy.train.x / DATA.train.x, axis=(0, 1))
    assert np.abs(ratio - 1).max() < 0.2
    crossed = np.corrcoef(copy.train.x.reshape(-1, 3).T, DATA.train.x.reshape(-1, 3).T)[:3, 3:]
    assert (np.diag(crossed) > 0.99).all()
    assert np.abs(crossed - np.diag(np.diag(crossed))).max() < 0.2


def test_a_copy_is_always_the_same_and_no_two_are_alike() -> None:
    first, again, other = (seen(DATA, (), 0.0, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.later.x, again.later.x)
    assert np.abs(first.later.x - other.later.x).mean() > 0.05
    assert first.train.x.dtype == np.float32


def test_labels_groups_and_sizes_are_the_persons() -> None:
    copy = seen(DATA, (), 0.0, 3)
    for mine, theirs in zip(
        (copy.train, copy.judge, copy.later), (DATA.train, DATA.judge, DATA.later), strict=True
    ):
        np.testing.assert_array_equal(mine.y, theirs.y)
        assert mine.x.shape == theirs.x.shape


def test_images_and_empty_parts_can_be_copied() -> None:
    none = _windows(0, size=(8, 8, 1))
    copy = seen(ClientData(_windows(5, size=(8, 8, 1)), none, none, 0), (), 0.0, 1)
    assert copy.train.x.shape == (5, 8, 8, 1)
    assert len(copy.judge) == len(copy.later) == 0
    seen(ClientData(none, none, none, 0), (), 0.0, 1)


def test_everyone_takes_part_the_people_first(world: World, small_world: World) -> None:
    people = small_world.roles.participants
    assert world.roles.participants[: len(people)] == people
    assert len(world.roles.participants) == 4 * len(people)
    assert Counter(map(world.person, world.roles.participants)) == dict.fromkeys(people, 4)
    assert (world.roles.server, world.roles.unseen) == (small_world.roles.server, small_world.roles.unseen)
    assert list(world.parts) == list(world.roles.participants)


def test_the_people_keep_their_own_data_and_only_they_are_scored(world: World, small_world: World) -> None:
    assert world.held_out().keys() == small_world.held_out().keys()
    for client, part in small_world.parts.items():
        np.testing.assert_array_equal(world.parts[client].train.x, part.train.x)
        assert not np.array_equal(world.parts[f"{client}~1"].train.x, part.train.x)


def test_the_work_of_a_copy_is_that_of_its_person(world: World) -> None:
    work = work_of(world, 1000)
    assert list(work) == list(world.roles.participants)
    for client, one in work.items():
        assert (one.windows, one.later) == (len(world.parts[client].train), len(world.parts[client].later))


def test_only_the_first_of_them_may_be_taken(fleet_file: Path) -> None:
    cut = build_world(config_for(fleet_file, data__copies=3, data__clients=8))
    assert len(cut.roles.participants) == 8
    assert cut.roles.participants[-1].endswith("~1")
    with pytest.raises(ConfigError, match="24 can take part"):
        build_world(config_for(fleet_file, data__copies=3, data__clients=25))


@pytest.mark.parametrize(("people", "copies", "said"), [(["a", "a~1"], 1, "another one.s copy")])
def test_names_that_clash_are_refused(people: list[str], copies: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        copied(people, copies)


def test_too_many_are_refused_before_any_is_made() -> None:
    with pytest.raises(ConfigError, match="100000 are the most"):
        copied([f"p{i}" for i in range(1000)], 100)


def test_a_large_fleet_costs_no_memory_for_its_windows(fleet_file: Path) -> None:
    """Ten thousand clients' windows would be 150 MB here; only names and people are kept."""
    import tracemalloc

    config: Any = config_for(fleet_file)
    config = replace(config, data=replace(config.data, copies=1666, clients=10_000))
    tracemalloc.start()
    try:
        world = build_world(config)
        work_of(world, 1000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(world.roles.participants) == 10_000
    assert peak < 30e6
