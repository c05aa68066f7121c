"""The scenarios that come along: each can be read, says what to look at, and what it names exists."""

import re
from pathlib import Path

import pytest
from federated.build import FAST

from fedge.config import SCENARIOS, Config, load_config, scenarios
from fedge.simulation.profiles import load_fleet
from fedge.simulation.sweep import grid
from fedge.simulation.virtual import check_fleet
from fedge.simulation.world import build_world

FOLDER = next(p for p in SCENARIOS if (p / "watch.toml").is_file())
EXPECTED = {
    "watch", "watch-skewed", "machines", "camera", "remaining-life", "flaky-links", "asynchronous",
    "fleet-10k", "three-tier",
}  # fmt: skip
WITHOUT_DATA = ("machines", "remaining-life")


def _text(name: str) -> str:
    return (FOLDER / f"{name}.toml").read_text(encoding="utf-8")


def test_they_are_all_there() -> None:
    assert set(scenarios()) >= EXPECTED


@pytest.mark.parametrize("name", scenarios())
def test_a_scenario_says_what_to_look_at_and_how_to_run_it(name: str) -> None:
    comment = "\n".join(line for line in _text(name).splitlines() if line.startswith("#"))
    assert "ook at" in comment
    assert f"fedge simulate {name}" in comment
    assert f"`{name}`" in (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", scenarios())
def test_commands_in_its_comments_can_be_given(name: str) -> None:
    """Their sweeps and settings are known, and the combinations make sense."""
    load_config(name, {})
    commands = re.findall(rf"^#\s+fedge simulate {name}\b(.*)$", _text(name), re.MULTILINE)
    for command in commands:
        sweeps = re.findall(r"--sweep (\S+)", command)
        assert not sweeps or grid(sweeps, lambda more: load_config(name, {}, more))
        load_config(name, {}, re.findall(r"--set (\S+)", command))


@pytest.mark.parametrize("name", [n for n in scenarios() if n not in WITHOUT_DATA])
def test_a_scenario_with_data_makes_a_world_whose_fleet_can_do_it(name: str) -> None:
    world = build_world(load_config(name, {"teacher.cache": False}))
    check_fleet(world)
    clients = len(world.roles.participants)
    assert clients == (10_000 if name == "fleet-10k" else clients)
    assert clients >= 12


@pytest.mark.parametrize("name", [n for n in scenarios() if load_config(n, {}).fleet.devices])
def test_the_fleet_of_a_scenario_comes_along(name: str) -> None:
    config: Config = load_config(name, {})
    assert load_fleet(config.fleet.devices)


def test_the_asynchronous_fleet_is_as_uneven_as_it_says() -> None:
    speeds = [p.compute for p in load_fleet("mixed")]
    assert max(speeds) / min(speeds) == pytest.approx(50)


def test_a_scenario_is_more_than_its_defaults(tmp_path: Path) -> None:
    """A copy under another name is a scenario of the user's own."""
    copy = tmp_path / "mine.toml"
    copy.write_text(_text("watch-skewed"))
    own, ours = load_config(str(copy), dict(FAST)), load_config("watch-skewed", dict(FAST))
    assert own.scenario == "mine"
    assert own.data == ours.data
    assert own.data.split == "skewed"
