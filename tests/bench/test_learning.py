"""``fedge bench learning``: that modes differ in nothing but the mode, and that differences are paired."""

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from federated.build import FAST, config_for
from hypothesis import given
from hypothesis import strategies as st

from fedge.bench._fedge import fedge
from fedge.bench._learning_pool import workers
from fedge.bench._learning_roles import (
    fold_roles,
    last_windows,
    official_clients,
    official_roles,
    with_roles,
)
from fedge.bench._learning_runs import (
    Job,
    _everyone,
    _open,
    class_accuracy,
    equal_world,
    federate,
    make_student,
)
from fedge.bench._learning_summary import paired, spread
from fedge.bench._shared import make_bench
from fedge.bench.learning import MODES, PARTS, Plan, lines, measure
from fedge.cli import main
from fedge.config import Config, load_config
from fedge.errors import DataError, InputError
from fedge.observe import silent

QUICK = {"student__epochs": 3, "student__tune_epochs": 1, "teacher__epochs": 2, "rounds__rounds": 3}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def config(fleet_file: Path) -> Config:
    return config_for(fleet_file, **QUICK, redistill__every=1)


@pytest.fixture(scope="module")
def job(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Job:
    made = Job(config, tmp_path_factory.mktemp("learning") / "student")
    make_student(made)
    return made


def _as(job: Job, mode: str) -> Job:
    return replace(job, config=replace(job.config, redistill=replace(job.config.redistill, mode=mode)))


# --- who is who


@given(st.integers(3, 40), st.integers(3, 40))
def test_folds_show_everyone_as_unseen_once_and_as_the_servers_once(count: int, folds: int) -> None:
    ids = [f"c{i:02}" for i in range(count)]
    if folds > count:
        with pytest.raises(InputError, match="folds of"):
            fold_roles(ids, folds)
        return
    roles = fold_roles(ids, folds)
    for part in (0, 1):
        assert sorted(c for fold in roles for c in fold[part]) == ids
    for server, unseen in roles:
        assert not set(server) & set(unseen)
        assert len(ids) > len(server) + len(unseen)
    sizes = [len(unseen) for _, unseen in roles]
    assert max(sizes) - min(sizes) <= 1


def test_five_folds_of_watch_are_the_five_pairs_of_people() -> None:
    ids = [f"{person:02}-{arm}" for person in range(1, 11) for arm in "lr"]
    roles = fold_roles(ids, 5)
    assert roles[0] == (tuple(ids[4:8]), tuple(ids[:4]))
    assert roles[4] == (tuple(ids[:4]), tuple(ids[16:]))
    assert [{c[:2] for c in unseen} for _, unseen in roles] == [
        {f"{p:02}", f"{p + 1:02}"} for p in range(1, 11, 2)
    ]


@pytest.mark.parametrize("folds", [1, 2])
def test_folds_that_leave_nobody_to_take_part_are_refused(folds: int) -> None:
    with pytest.raises(InputError, match="give 1, or 3 to 10"):
        fold_roles([str(i) for i in range(10)], folds)


def _engines(path: Path, **arrays: Any) -> Path:
    """Eight engines of five windows and two test engines, the last with a single window."""
    client = np.array([*np.repeat(np.arange(1, 10), 5), 10])
    rul = np.arange(len(client))[::-1] * 4.0
    x = np.random.default_rng(2).normal(0, 1, (len(client), 12, 2)).astype(np.float32)
    np.savez(path, **{"X": x, "rul": rul, "client": client, "official_test": client >= 9} | arrays)
    return path


def _for_engines(path: Path) -> Config:
    settings = {"data.target": "rul", "data.source": str(path), "data.most": 10.0, "data.skip_small": True}
    return load_config(None, settings, task="remaining_life")


def test_the_published_test_set_is_nobodys_to_train_on(tmp_path: Path) -> None:
    config = _for_engines(_engines(tmp_path / "engines.npz"))
    names = official_clients(config)
    assert sorted(names) == ["10", "9"]
    ids = [str(i) for i in range(1, 10)]  # that with a single window cannot take part
    server, unseen = official_roles(ids, names)
    assert (server, unseen) == (("1",), ("9",))
    world = equal_world(with_roles(config, server, unseen))
    assert not {"9", "10"} & {*world.roles.server, *world.roles.participants}


def test_every_engine_of_the_published_test_set_counts_with_its_last_window(tmp_path: Path) -> None:
    config = _for_engines(_engines(tmp_path / "engines.npz"))
    last = last_windows(config, "number", ("9", "10"))
    assert last.y.tolist() == [4.0, 0.0]
    early = last_windows(config, "number", ("1", "9"))
    assert early.y.tolist() == [10.0, 4.0], "above data.most, as in training"


def test_data_without_a_published_test_set_have_none(config: Config, tmp_path: Path) -> None:
    assert official_clients(config) == ()
    assert official_clients(load_config("watch", {})) == ()
    wrong = _engines(tmp_path / "wrong.npz", official_test=np.ones(3))
    with pytest.raises(DataError, match="official_test"):
        official_clients(_for_engines(wrong))
    with pytest.raises(InputError, match="official_test"):
        official_roles(["1", "2", "3"], ("1", "2", "3"))


# --- numbers


def test_spreads_and_errors_are_those_of_the_text_books() -> None:
    values = [0.5, 0.75, 0.875]
    assert spread("x", values) == pytest.approx({"x": np.mean(values), "x_std": np.std(values, ddof=1)})
    one, other = ({(0, i): v for i, v in enumerate(part)} for part in (values, [0.25, 0.75, 0.5]))
    gaps = np.array([0.25, 0.0, 0.375])
    expected = {"g": gaps.mean(), "g_se": gaps.std(ddof=1) / 3**0.5}
    assert paired("g", one, other) == pytest.approx(expected)


def test_what_is_not_known_is_null_and_never_zero() -> None:
    assert spread("x", [0.5]) == {"x": 0.5, "x_std": None}
    assert spread("x", [None, float("nan")]) == {"x": None, "x_std": None}
    assert spread("x", [None, 0.5, 0.7])["x"] == pytest.approx(0.6)
    assert paired("g", {(0, 0): 0.5, (0, 1): None}, {(0, 0): 0.25, (0, 1): 0.5}) == {"g": 0.25, "g_se": None}
    assert paired("g", {(0, 0): 0.5}, {(0, 1): 0.5}) == {"g": None, "g_se": None}


# --- runs


@pytest.mark.parametrize("judge", ["clients", "server"])
def test_every_mode_has_the_same_data(config: Config, judge: str) -> None:
    """Else ``none`` would train on what the other modes keep for their judges."""
    config = replace(config, data=replace(config.data, server_clients=("0", "1", "2")))
    worlds = [
        equal_world(replace(config, redistill=replace(config.redistill, mode=mode, judge=judge, every=99)))
        for mode in MODES
    ]
    first = worlds[0]
    assert bool(first.judges()) == (judge == "server")
    assert any(len(p.judge) for p in first.parts.values()) == (judge == "clients")
    for world in worlds[1:]:
        assert np.array_equal(world.server_data().labelled.x, first.server_data().labelled.x)
        assert world.judges() == first.judges()
        assert all(np.array_equal(world.parts[c].train.x, p.train.x) for c, p in first.parts.items())


def test_rounds_end_where_those_of_the_other_bench_end(job: Job, tmp_path: Path) -> None:
    plain = _as(job, "none")
    world, prepared = _open(plain)
    curve = fedge(make_bench(plain.config, world, prepared), tmp_path)
    end = federate(plain)
    assert (end.score.clients, end.score.unseen) == (curve.clients[-1], curve.unseen[-1])
    assert end.uplink == pytest.approx(curve.uplink[-1], abs=2)
    assert end.downlink == pytest.approx(curve.downlink[-1], abs=2)
    assert (end.tried, end.accepted) == (0, 0)


def test_a_mode_that_is_tried_is_counted(job: Job) -> None:
    end = federate(_as(job, "ensemble"))
    assert end.tried == 2, "after rounds 1 and 2; there is no round to judge one after round 3"
    assert 0 <= end.accepted <= end.tried
    assert end.downlink > federate(_as(job, "none")).downlink, "candidates travel"
    assert end.agreement >= 0.95
    assert abs(end.score.unseen - end.int8.unseen) < 0.1  # type: ignore[operator]


def test_a_student_from_scratch_learns_nothing_from_the_teacher(config: Config, tmp_path: Path) -> None:
    """The same bytes from another teacher; a distilled student differs."""

    def made(hard: float, epochs: int) -> bytes:
        changed = replace(
            config,
            student=replace(config.student, hard_weight=hard, loss=""),
            teacher=replace(config.teacher, epochs=epochs),
        )
        job = Job(changed, tmp_path / "student")
        make_student(job)
        return _open(job)[1].snapshot

    assert made(1.0, 1) == made(1.0, 2)
    assert made(0.3, 1) != made(0.3, 2)


def test_central_training_has_the_servers_and_the_participants_training_windows(job: Job) -> None:
    world, prepared = _open(job)
    x, y = _everyone(world, prepared, prepared.plan.preprocess.apply)
    parts = [world.parts[c].train for c in world.roles.participants]
    assert len(x) == len(y) == len(prepared.x) + sum(map(len, parts))
    assert y.tolist() == [*prepared.y.tolist(), *(v for p in parts for v in p.y.tolist())]
    held = np.concatenate([prepared.plan.preprocess.apply(w.x) for w in world.held_out().values()])
    rows = {row.tobytes() for row in x.numpy()}
    assert not any(row.tobytes() in rows for row in held)


def test_scores_of_missing_classes_look_at_their_windows_only(job: Job) -> None:
    world, _ = _open(job)
    source, held = np.random.default_rng(4), world.held_out()
    given = {c: source.normal(0, 1, (len(w), 3)).astype(np.float32) for c, w in held.items()}
    naive: dict[str, list[float]] = {"unseen": [], "clients": []}
    for client, windows in held.items():
        hits = [s.argmax() == y for s, y in zip(given[client], windows.y, strict=True) if y in (0, 2)]
        naive["unseen" if client in world.roles.unseen else "clients"].append(statistics.fmean(hits))
    found = class_accuracy(world, given, (0, 2))
    assert found.unseen == pytest.approx(statistics.fmean(naive["unseen"]))
    assert found.clients == pytest.approx(statistics.fmean(naive["clients"]))
    assert class_accuracy(world, given, ()).unseen is None


def test_processes_give_their_results_in_order() -> None:
    with workers(2) as each:
        assert each("absolute values", abs, [-3, 1, -2], silent) == [3, 1, 2]


# --- the whole bench


@pytest.fixture(scope="module")
def result(fleet_file: Path) -> dict[str, Any]:
    quick = {**QUICK, "student__epochs": 2, "student__cut_epochs": 1, "student__cut_steps": 1}
    config = config_for(fleet_file, **quick, redistill__every=1)
    return measure(Plan(config, seeds=2, workers=1))


def test_the_result_keeps_its_contract(result: dict[str, Any]) -> None:
    assert result["split"] == "natural"
    assert list(result["modes"]) == list(MODES)
    for row in result["modes"].values():
        assert {"unseen", "clients", "unseen_std", "clients_std", "uplink", "downlink"} <= set(row)
        assert {"accepted", "tried", "gain_unseen", "gain_unseen_se", "gain_clients"} <= set(row)
    for key in ("ceiling", "student", "int8", "pruning"):
        assert result[key], key
    assert "missing_classes" not in result
    json.dumps(result, allow_nan=False)


def test_differences_follow_from_the_runs(result: dict[str, Any]) -> None:
    def scores(mode: str, keep: float = 1.0) -> list[float]:
        return [r["unseen"] for r in result["runs"] if (r["mode"], r["keep"]) == (mode, keep)]

    for mode in MODES:
        row, mine = result["modes"][mode], scores(mode)
        assert row["unseen"] == pytest.approx(np.mean(mine))
        assert row["unseen_std"] == pytest.approx(np.std(mine, ddof=1))
        assert row["gain_unseen"] == pytest.approx(np.mean(np.subtract(mine, scores("none"))))
    own = result["modes"][result["mode"]]["unseen"]
    assert result["gap_unseen"] == pytest.approx(result["ceiling"]["unseen"] - own)
    cut = result["pruning"]
    assert cut["unseen_half"] == pytest.approx(np.mean(scores("ensemble", 0.5)))
    assert cut["loss_unseen"] == pytest.approx(cut["unseen_full"] - cut["unseen_half"])
    assert 0.2 < cut["multiply_adds_kept"] <= 0.5
    pair = result["student"]
    assert pair["gain_unseen"] == pytest.approx(pair["distilled"]["unseen"] - pair["scratch"]["unseen"])


def test_a_person_is_told_of_every_part(result: dict[str, Any]) -> None:
    shown = "\n".join(lines(result))
    words = (*MODES, "trained centrally", "distilled", "scratch", "int8", "multiply-adds")
    assert all(word in shown for word in words)


def _of_four_classes(fleet: Path, path: Path) -> Path:
    """The same windows, one class of them dealt to two."""
    with np.load(fleet) as arrays:
        y = arrays["y"] + 3 * ((arrays["y"] == 0) & (np.arange(len(arrays["y"])) % 2 == 1))
        np.savez(path, X=arrays["X"], y=y, client=arrays["client"])
    return path


def test_folds_change_who_is_unseen_and_missing_classes_are_scored(fleet_file: Path, tmp_path: Path) -> None:
    data = _of_four_classes(fleet_file, tmp_path / "four.npz")
    config = config_for(data, rounds__rounds=2, data__split="missing")
    result = measure(Plan(config, seeds=1, folds=4, only=("int8",), workers=1))
    assert sorted(r["fold"] for r in result["runs"]) == [0, 1, 2, 3]
    assert len({r["unseen"] for r in result["runs"]}) > 1
    assert list(result["modes"]) == list(result["missing_classes"]) == ["ensemble"]
    assert 0 <= result["missing_classes"]["ensemble"]["unseen"] <= 1
    assert "gain_unseen" not in result["modes"]["ensemble"], "none did not run"
    assert "classes that the server lacks" in "\n".join(lines(result))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": 0}, "0 seeds"),
        ({"folds": 2}, "2 folds"),
        ({"folds": 99}, "99 folds"),
        ({"only": ("mode",)}, "did you mean 'modes'"),
        ({"only": ("rmse",)}, "for task 'activity'"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(config: Config, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        measure(replace(Plan(config, workers=1), **changes))


def test_the_command_reads_settings_as_simulate_does(
    fleet_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, words in (("local.epoch=3", "local.epochs"), ("rounds.rounds=1", "1 rounds")):
        arguments = ["bench", "learning", "--data", str(fleet_file), "--set", key]
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert said.startswith("fedge: error:")
        assert words in said
        assert said.count("\n") == 1


def test_all_parts_that_the_command_promises_exist() -> None:
    assert PARTS == ("modes", "ceiling", "server_only", "int8", "pruning")
    assert FAST["redistill.every"] < FAST["rounds.rounds"], "the settings of these tests do try modes"
