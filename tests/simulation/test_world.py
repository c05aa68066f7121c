"""Who is who in a simulated world, what everyone holds, and what cannot be simulated."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federated.build import config_for, write_fleet
from tasks.build import live

from fedge.data.types import Windows
from fedge.errors import ConfigError, DataError, InputError
from fedge.federated.prepare import prepare
from fedge.observe import silent
from fedge.simulation.world import World, build_world, redistils

CLASSES = 5


def _write(path: Path, y: Any, client: Any, seed: int = 0, window: tuple[int, ...] = (8, 2)) -> Path:
    """Windows of noise on a level that is the class."""
    random, label = np.random.default_rng(seed), np.asarray(y)
    level = label.astype(np.float64).reshape(-1, *[1] * len(window))
    x = random.normal(0, 0.5, (len(label), *window)) + level
    np.savez(path, X=x.astype(np.float32), y=label, client=np.asarray(client))
    return path


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight clients with 40 windows each, of five classes."""
    y, client = np.tile(np.arange(40) % CLASSES, 8), np.repeat(np.arange(8), 40)
    return _write(tmp_path_factory.mktemp("world") / "five.npz", y, client)


def _classes(windows: Windows) -> set[int]:
    return set(windows.y.tolist())


def _has(windows: Windows, others: Windows) -> bool:
    """Whether a window of ``others`` is among ``windows``."""
    known = {x.tobytes() for x in windows.x}
    return any(x.tobytes() in known for x in others.x)


# ----- splits


def test_skewed_leaves_two_classes_to_train_on_and_all_to_be_scored_on(five: Path) -> None:
    natural, world = (build_world(config_for(five, data__split=s)) for s in ("natural", "skewed"))
    pairs = Counter()
    for client, part in world.parts.items():
        assert len(_classes(part.train)) == 2
        assert _classes(part.judge) == _classes(part.train)
        assert _classes(part.later) == set(range(CLASSES))
        np.testing.assert_array_equal(part.later.x, natural.parts[client].later.x)
        pairs[frozenset(_classes(part.train))] += 1
    assert len(pairs) > 2  # not the same two for everyone
    assert _classes(world.server_data().labelled) == set(range(CLASSES))
    again = build_world(config_for(five, data__split="skewed"))
    other = build_world(config_for(five, data__split="skewed", seed=4))
    trained = [[_classes(p.train) for p in w.parts.values()] for w in (world, again, other)]
    assert trained[0] == trained[1] != trained[2]


def test_missing_takes_two_classes_from_the_server_and_from_nobody_else(five: Path) -> None:
    world = build_world(config_for(five, data__split="missing", data__server_unlabelled=["3"]))
    gone = set(world.missing())
    assert len(gone) == 2
    assert _classes(world.server_data().labelled) == set(range(CLASSES)) - gone
    for part in world.parts.values():
        assert _classes(part.train) == _classes(part.later) == set(range(CLASSES))
    assert len({build_world(config_for(five, data__split="missing", seed=s)).missing() for s in range(6)}) > 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"data__split": "missing"}, "too few left"),
        ({"data__split": "skewed", "task": "remaining_life"}, "target is a number"),
        ({"data__most": 3.0}, "this task has classes"),
        ({"task": "anomaly"}, "give 0 or 1"),
        ({"data__server_clients": ["0"], "data__server_unlabelled": ["0"]}, "choose one"),
        ({"redistill__judge": "server"}, "holds back all"),
        ({"redistill__judge": "server", "data__server_clients": ["0", "1"]}, "holds back all"),
        (
            {
                "redistill__judge": "server",
                "data__server_clients": ["0", "1", "2"],
                "redistill__judge_clients": ["2"],
            },
            "two or more",
        ),
        (
            {
                "redistill__judge": "server",
                "data__server_clients": ["0", "1", "2"],
                "redistill__judge_clients": ["1", "2", "7"],
            },
            "names '7'",
        ),
        ({"local__rotate": ["a", "b", "c"]}, "no channel 'a'"),
        ({"student__loss": "regression"}, "regression"),
    ],
)
def test_what_cannot_work_is_refused_in_one_clear_line(
    settings: dict[str, Any], said: str, fleet_file: Path
) -> None:
    """Three classes, three channels; refused before anything is trained."""
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        _prepared(build_world(config_for(fleet_file, **settings)))
    assert "\n" not in str(caught.value)


def _prepared(world: World) -> Any:
    classes, channels = len(world.dataset.classes), world.dataset.channels
    return prepare(world.config, world.task, world.server_data(), classes, channels, silent)


@pytest.mark.parametrize("task", ["camera", "activity"])
def test_images_and_windows_are_not_mistaken_for_each_other(task: str, tmp_path: Path) -> None:
    shape = (8, 2) if task == "camera" else (8, 8, 1)
    y, client = np.tile(np.arange(12) % 3, 4), np.repeat(np.arange(4), 12)
    path = _write(tmp_path / "d.npz", y, client, window=shape)
    with pytest.raises(ConfigError, match=rf"task '{task}' is for .*these are {re.escape(str(list(shape)))}"):
        _prepared(build_world(config_for(path, task=task)))


# ----- roles


def test_people_whose_labels_the_server_does_not_have_take_no_part(five: Path) -> None:
    world = build_world(config_for(five, data__server_unlabelled=["2", "3"]))
    data, roles = world.server_data(), world.roles
    assert roles.unlabelled == ("2", "3")
    for client in ("2", "3"):
        windows = world.dataset.clients[client]
        assert client not in (*roles.participants, *roles.server, *roles.unseen)
        assert client not in world.parts
        assert client not in world.held_out()
        assert not _has(data.labelled, windows)
        assert data.unlabelled is not None
        assert _has(data.unlabelled, windows)
    assert data.unlabelled is not None
    assert len(data.unlabelled) == 80
    assert build_world(config_for(five)).server_data().unlabelled is None


def test_who_judges_on_the_server(five: Path) -> None:
    """The last quarter, two at least, or those that are named; nobody where nothing is judged."""
    server = [str(i) for i in range(5)]

    def judges(**settings: Any) -> tuple[str, ...]:
        how = {"redistill__judge": "server", "data__server_clients": server} | settings
        return build_world(config_for(five, **how)).judges()

    assert judges() == ("3", "4")
    assert judges(redistill__judge_clients=["0", "[24]"]) == ("0", "2", "4")
    assert judges(redistill__judge="clients") == ()
    assert judges(redistill__mode="none") == ()


def test_clients_hold_judge_windows_back_only_where_they_are_asked_to_judge(five: Path) -> None:
    def held(**settings: Any) -> bool:
        return any(len(p.judge) for p in build_world(config_for(five, **settings)).parts.values())

    assert held()
    assert not held(redistill__mode="none")
    assert not held(redistill__judge="server", data__server_clients=["0", "1", "2"])
    assert not held(redistill__every=4, rounds__rounds=4)
    # gradient mode asks after the first round, however rarely it asks again
    assert held(redistill__every=4, rounds__rounds=4, redistill__mode="gradient")
    assert redistils(config_for(five, redistill__every=99, redistill__mode="gradient"))
    assert not redistils(config_for(five, redistill__mode="gradient", rounds__rounds=1))


# ----- numbers


def test_a_bound_on_numbers_holds_for_everyone(tmp_path: Path) -> None:
    y, client = np.tile(np.linspace(50, 1, 20, dtype=np.float32), 5), np.repeat(np.arange(5), 20)
    path = _write(tmp_path / "life.npz", y, client)
    world = build_world(config_for(path, task="remaining_life", data__most=30.0))
    for windows in [*world.dataset.clients.values(), world.server_data().labelled]:
        assert windows.y.dtype == np.float32
        assert windows.y.max() == 30
        assert windows.y.min() == 1
    plain = build_world(config_for(path, task="remaining_life"))
    assert plain.server_data().labelled.y.max() == 50


# ----- odd data


def test_one_client_with_few_windows_and_one_with_half_of_all_are_split_alike(tmp_path: Path) -> None:
    sizes = [40, 12, 300, 40, 40, 40, 40, 40]
    client = np.repeat(np.arange(8), sizes)
    y = np.concatenate([np.arange(n) % 3 for n in sizes])
    world = build_world(config_for(_write(tmp_path / "d.npz", y, client), data__judge_share=0.1))
    for name, part in world.parts.items():
        whole = sizes[int(name)]
        assert len(part.train) + len(part.judge) + len(part.later) + part.dropped == whole
        assert abs(len(part.later) - whole / 4) <= 2
        assert _classes(part.train) == _classes(part.later) == {0, 1, 2}


def test_a_server_that_knows_one_class_only_is_refused_and_a_client_is_not(tmp_path: Path) -> None:
    client = np.repeat(np.arange(6), 20)
    y = np.where(client == 2, 1, np.arange(120) % 3)
    world = build_world(config_for(_write(tmp_path / "client.npz", y, client)))
    assert _classes(world.parts["2"].train) == _classes(world.parts["2"].later) == {1}
    y = np.where(client == 0, 1, np.arange(120) % 3)
    with pytest.raises(DataError, match=r"1 class\(es\) to learn from"):
        build_world(config_for(_write(tmp_path / "server.npz", y, client)))


def test_a_life_on_odd_data_ends_with_finite_scores(tmp_path: Path) -> None:
    """A channel that never changes, a client with 12 windows, one with half of all, one with one class."""
    sizes = [40, 12, 260, 40, 40, 40, 40, 40]
    client = np.repeat(np.arange(8), sizes)
    y = np.where(client == 3, 2, np.concatenate([np.arange(n) % 3 for n in sizes]))
    path = _write(tmp_path / "d.npz", y, client)
    stored = dict(np.load(path))
    stored["X"][..., 1] = 7.5
    np.savez(path, **stored)
    report = live(build_world(config_for(path, data__judge_share=0.1)), tmp_path)
    assert all(np.isfinite(s) for s in report["score"].values())
    assert all(r["counted"] == 6 for r in report["rounds_log"])
    assert report["score"]["unseen"] > 0.6


def test_labels_outside_the_named_classes_are_refused(tmp_path: Path) -> None:
    path = write_fleet(tmp_path / "d.npz")
    stored = dict(np.load(path))
    np.savez(path, **stored, classes=np.array(["walk", "run"]))
    with pytest.raises(DataError, match="y"):
        build_world(config_for(path))
