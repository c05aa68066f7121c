"""The Ray engine and ``flwr run .`` give the local engine's result, bit for bit; what is said without Ray."""

import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from federated.build import FAST, Recorder, without_time

from fedge.cli import main
from fedge.config import Config
from fedge.errors import ConfigError, SetupError
from fedge.federated.journal import Journal
from fedge.simulation import engines
from fedge.simulation.engines import check_engine
from fedge.simulation.flwr_run import serve
from fedge.simulation.folder import JOURNAL
from fedge.simulation.life import client_app, simulate
from fedge.simulation.local import LocalGrid
from fedge.simulation.world import World, build_world, config_of
from simulation.lives import timeless

ROOT = Path(__file__).parents[2]
RAY = importlib.util.find_spec("ray") is not None


def _result(out: Path) -> tuple[Any, list[str], bytes | None]:
    """The report without times and the engine's name, the records of the rounds, the last state."""
    report = timeless(json.loads((out / "report.json").read_text()))
    del report["engine"]
    with Journal(out / JOURNAL) as journal:
        return report, [json.dumps(without_time(r)) for r in journal.rounds()], journal.state()


def _here(config: Config, out: Path) -> tuple[Any, list[str], bytes | None]:
    """With the local engine, in this process."""
    out.mkdir()
    with Journal(out / JOURNAL) as journal:
        simulate(config, build_world(config), out, journal, Recorder())
    return _result(out)


@pytest.fixture
def scenario(fleet_file: Path, tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    settings = FAST | {"data.source": str(fleet_file)}
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    return path


# ----- on Ray, where it is installed


@pytest.mark.skipif(not RAY, reason="Ray is not installed")
def test_ray_gives_the_bits_of_the_local_engine(small_config: Config, scenario: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fedge", "simulate", str(scenario), "--engine", "ray", "--workers", "2"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "ray")], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "ray" / "report.json").read_text())["engine"] == "ray"
    assert _result(tmp_path / "ray") == _here(small_config, tmp_path / "here")


@pytest.mark.skipif(not RAY, reason="Ray is not installed")
def test_what_the_server_raises_on_ray_is_raised_here() -> None:
    """In a process of its own: Ray warns a lot."""
    code = (
        "from flwr.clientapp import ClientApp\n"
        "from fedge.errors import SetupError\n"
        "from fedge.simulation.ray_engine import on_ray\n"
        "def server(grid):\n"
        "    raise SetupError(f'{len(list(grid.get_node_ids()))} nodes')\n"
        "try:\n"
        "    on_ray(server, ClientApp(), 3, 1)\n"
        "except SetupError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.splitlines()[-1] == "3 nodes"


# ----- without it


def test_without_ray_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda _name: None)
    assert main(["simulate", "--engine", "ray", "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fedge: error: ")
    assert "pip install 'fedge[ray]'" in line
    assert not (tmp_path / "run").exists()


def test_the_local_engine_asks_for_no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda _name: None)
    check_engine("local", None, resume=True)
    check_engine("local", 0, resume=False)
    with pytest.raises(SetupError):
        check_engine("ray", None, resume=False)


def test_what_ray_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda _name: object())
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    check_engine("ray", 3, resume=False)
    with pytest.raises(ConfigError, match="resumed"):
        check_engine("ray", None, resume=True)
    with pytest.raises(ConfigError, match="--workers 0"):
        check_engine("ray", 0, resume=False)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check_engine("ray", None, resume=False)
    with pytest.raises(ConfigError, match="cluster"):
        check_engine("ray", 3, resume=False)


# ----- started by Flower itself


def _served(scenario: Path, out: Path, nodes: int, **run_config: Any) -> None:
    """As ``server/app.py`` does it, over nodes that have Flower's own run config."""
    settings = {"scenario": str(scenario), "seed": FAST["seed"], **run_config}
    with LocalGrid(client_app, nodes, settings, out.with_suffix(".states")) as grid:
        serve(grid, {**settings, "out": str(out)})


def test_flwr_run_gives_the_bits_of_the_local_engine(
    small_config: Config, scenario: Path, tmp_path: Path
) -> None:
    rounds = replace(small_config.rounds, rounds=2)
    _served(scenario, tmp_path / "flwr", 6, set="rounds.rounds=2")
    assert _result(tmp_path / "flwr") == _here(replace(small_config, rounds=rounds), tmp_path / "here")


def test_with_fewer_nodes_the_first_clients_take_part(
    small_config: Config, scenario: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _served(scenario, tmp_path / "flwr", 2, set="rounds.rounds=1 redistill.mode=none")
    assert "2 of 6 clients take part" in capsys.readouterr().out
    config = replace(
        small_config,
        rounds=replace(small_config.rounds, rounds=1),
        redistill=replace(small_config.redistill, mode="none"),
        data=replace(small_config.data, clients=2),
    )
    assert _result(tmp_path / "flwr") == _here(config, tmp_path / "here")


def test_more_nodes_than_clients_are_refused(scenario: Path, tmp_path: Path, small_world: World) -> None:
    nodes = len(small_world.roles.participants) + 1
    with pytest.raises(ConfigError, match=f"{nodes} nodes; {nodes - 1} clients"):
        _served(scenario, tmp_path / "flwr", nodes)
    assert not (tmp_path / "flwr").exists()


def test_the_run_config_of_the_repository_is_that_of_fedge_simulate() -> None:
    app = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert config_of(app["config"]) == config_of({})
    changed = config_of({**app["config"], "seed": 5, "set": "rounds.rounds=3 'data.normal=\"rul > 100\"'"})
    assert (changed.seed, changed.rounds.rounds, changed.data.normal) == (5, 3, "rul > 100")


def test_the_components_of_the_repository_are_there() -> None:
    app = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    names = [component.split(":") for component in app["components"].values()]
    code = "; ".join(f"from {module} import {name}" for module, name in names)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert code.count("import app") == 2, code
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True, timeout=120)
