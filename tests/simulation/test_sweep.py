"""Sweeps: which points there are, what is refused before anything runs, and going on where it stopped."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from federated.build import FAST
from hypothesis import given
from hypothesis import strategies as st

from fedge.cli import main
from fedge.config import Config, load_config
from fedge.errors import ConfigError, SetupError
from fedge.simulation.sweep import SWEEP, Point, _split, grid, run_sweep


def _plain(assignments: Sequence[str]) -> Config:
    return load_config(None, {}, assignments)


# ----- the grid


def test_every_combination_is_there_once_and_the_last_key_changes_fastest() -> None:
    points = grid(["rounds.rounds=2,3", "seed=0,1,2"], _plain)
    got = [(p.config.rounds.rounds, p.config.seed) for p in points]
    assert got == [(r, s) for r in (2, 3) for s in (0, 1, 2)]
    assert [p.folder for p in points[:2]] == ["rounds.rounds=2,seed=0", "rounds.rounds=2,seed=1"]


def test_values_may_be_lists_and_text_with_commas() -> None:
    points = grid(["fleet.uplink_bytes=[200,300],[400]", "data.target='a,b',c"], _plain)
    assert [p.config.fleet.uplink_bytes for p in points] == [(200, 300)] * 2 + [(400,)] * 2
    assert [p.config.data.target for p in points] == ["a,b", "c"] * 2


@given(st.lists(st.text("ab1.", min_size=1), min_size=1))
def test_plain_values_are_split_as_text_is(values: list[str]) -> None:
    assert _split(",".join(values)) == values


@given(st.lists(st.text(max_size=150), min_size=2, max_size=6, unique=True))
def test_no_two_points_share_a_folder_and_none_leaves_it(values: list[str]) -> None:
    folders = [Point({"data.source": value}, Config()).folder for value in values]
    assert len(set(folders)) == len(values)
    assert all("/" not in name and "\\" not in name and len(name) < 120 for name in folders)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["rounds.rounds="], "empty"),
        (["rounds.rounds=1,,2"], "empty"),
        (["rounds.rounds=1,"], "empty"),
        (["rounds.rounds"], "write --sweep"),
        (["=1,2"], "write --sweep"),
        (["rounds.rounds=2,2"], "there twice"),
        (["seed=1", "seed=2"], "there twice"),
        (["rounds.bufer=1,2"], "did you mean 'rounds.buffer'"),
        (["rounds.fraction=0.5,7"], r"7.0 is not within"),
        (["rounds.rounds=3,many"], "expected a whole number"),
        (["rounds.buffer=0,4"], "rounds.late = 'count'"),
        (["scenario=a,b"], "unknown key 'scenario'"),
        (
            [f"seed={','.join(map(str, range(40)))}", f"rounds.rounds={','.join(map(str, range(1, 41)))}"],
            "1600",
        ),
    ],
)
def test_a_bad_sweep_is_refused_in_one_line(texts: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        grid(texts, _plain)
    assert "\n" not in str(caught.value)


# ----- running it


@pytest.fixture(scope="module")
def points(fleet_file: Path) -> list[Point]:
    """Two runs that take a second or two."""

    def config(assignments: Sequence[str]) -> Config:
        small = FAST | {"data.source": str(fleet_file), "rounds.rounds": 2, "fleet.devices": "gateways"}
        return load_config(None, small, assignments, name="small")

    return grid(["local.epochs=1,2"], config)


@pytest.fixture(scope="module")
def finished(points: list[Point], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sweep") / "out"
    run_sweep(points, out, engine="local", workers=0)
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


def _read(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(path.read_text())
    return read


def _written(out: Path, points: list[Point]) -> list[int]:
    return [(out / p.folder / "report.json").stat().st_mtime_ns for p in points]


def test_each_point_is_a_run_of_its_own_with_its_settings(finished: Path, points: list[Point]) -> None:
    for point in points:
        report = _read(finished / point.folder / "report.json")
        assert report["config"]["local"]["epochs"] == point.config.local.epochs
    assert (finished / "sweep.html").read_text().startswith("<!doctype html>")


def test_sweep_json_says_of_each_point_what_its_report_says(finished: Path, points: list[Point]) -> None:
    sweep = _read(finished / SWEEP)
    assert sweep["sweep"] == {"local.epochs": ["1", "2"]}
    for row, point in zip(sweep["points"], points, strict=True):
        report = _read(finished / point.folder / "report.json")
        assert (row["folder"], row["settings"]) == (point.folder, dict(point.settings))
        assert all(row[key] == report[key] for key in ("score", "bytes", "virtual"))
        for kept, whole in zip(row["rounds_log"], report["rounds_log"], strict=True):
            assert kept == {key: whole[key] for key in kept}
            assert "virtual_seconds" in kept
        assert row["same_score"]["score"] == sweep["points"][0]["same_score"]["score"]


def test_a_finished_point_is_not_run_again(out: Path, points: list[Point]) -> None:
    before, said = _written(out, points), (out / SWEEP).read_bytes()
    run_sweep(points, out, engine="local", workers=0)
    assert _written(out, points) == before
    assert (out / SWEEP).read_bytes() == said


def test_a_sweep_that_was_killed_goes_on_with_what_is_missing(out: Path, points: list[Point]) -> None:
    """One point was in its rounds, its report not yet written."""
    before = _written(out, points)
    whole = _read(out / points[1].folder / "report.json")
    (out / points[1].folder / "report.json").unlink()
    run_sweep(points, out, engine="local", workers=0)
    after = _written(out, points)
    assert after[0] == before[0]
    again = _read(out / points[1].folder / "report.json")
    assert again["score"] == whole["score"]
    assert again["virtual"] == whole["virtual"]
    assert len(_read(out / SWEEP)["points"]) == 2


def test_the_same_folder_takes_more_values_but_no_other_settings(out: Path, fleet_file: Path) -> None:
    def config(seed: int) -> Any:
        small = FAST | {"data.source": str(fleet_file), "rounds.rounds": 2, "fleet.devices": "gateways"}
        return lambda given: load_config(None, small | {"seed": seed}, given, name="small")

    run_sweep(grid(["local.epochs=2"], config(FAST["seed"])), out, engine="local", workers=0)
    assert len(_read(out / SWEEP)["points"]) == 1
    with pytest.raises(SetupError, match="other settings"):
        run_sweep(grid(["local.epochs=1,2"], config(9)), out, engine="local", workers=0)


def test_a_folder_that_holds_something_else_is_left_alone(points: list[Point], tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(SetupError, match="not empty"):
        run_sweep(points, tmp_path, engine="local", workers=0)
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_a_point_that_cannot_run_stops_the_sweep_before_the_first(fleet_file: Path, tmp_path: Path) -> None:
    def config(assignments: Sequence[str]) -> Config:
        small = FAST | {"data.source": str(fleet_file), "fleet.devices": "lorawan"}
        return load_config(None, small, assignments, name="small")

    points = grid(["rounds.deadline_seconds=0,1"], config)
    with pytest.raises(ConfigError, match="devices can answer within"):
        run_sweep(points, tmp_path / "new", engine="local", workers=0)
    assert not (tmp_path / "new").exists()


# ----- the command


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--sweep", "rounds.bufer=1,2"], "did you mean 'rounds.buffer'"),
        (["--sweep", "rounds.fraction=0.5,7"], "not within"),
        (["--sweep", "rounds.rounds="], "empty"),
        (["--sweep", "seed=0,1", "--resume"], "without --resume"),
        (["--sweep", "fleet.devices=phone,gateways"], "did you mean 'phones'"),
    ],
)
def test_the_command_ends_with_2_and_one_line_and_writes_nothing(
    more: list[str], said: str, fleet_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new"
    assert main(["simulate", "--data", str(fleet_file), "--out", str(out), *more]) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert len(printed.err.splitlines()) == 1
    assert not out.exists()
