"""Whole runs in virtual time: killed and resumed, what the report says, fleets that can never do it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedge.config import Config, Fleet
from fedge.errors import ConfigError, SetupError
from fedge.federated.journal import Journal
from fedge.simulation.folder import JOURNAL
from fedge.simulation.profiles import Profile, load_fleet
from fedge.simulation.reachable import check_reachable
from fedge.simulation.virtual import check_fleet, profiles_of, work_of
from fedge.simulation.world import World, build_world
from simulation.lives import Report, live, timeless

ONE = "share = 1.0\ncompute = 0.01\nuplink = 1000\ndownlink = 1000\nlatency = 1.0\ncompute_watts = 2.0\n"
QUICK = "share = 0.5\ncompute = 0.5\nuplink = 1e6\ndownlink = 1e6\nlatency = 0.01\ncompute_watts = 2.0\n"
SLOW = "share = 0.5\ncompute = 0.01\nuplink = 500\ndownlink = 500\nlatency = 1.0\njoules_per_byte = 0.001\n"


def _fleet(folder: Path, text: str) -> str:
    path = folder / "fleet.toml"
    path.write_text(text)
    return str(path)


@pytest.fixture(scope="module")
def asynchronous(small_config: Config, tmp_path_factory: pytest.TempPathFactory) -> World:
    """Half of the clients are far slower and drop out at times; a round ends with two updates."""
    fleet = _fleet(tmp_path_factory.mktemp("fleet"), f"[quick]\n{QUICK}[slow]\n{SLOW}drop = 0.3\n")
    rounds = replace(small_config.rounds, rounds=6, buffer=2, late="count", late_rounds=50)
    return build_world(replace(small_config, rounds=rounds, fleet=Fleet(devices=fleet, start_hour=6.0)))


@pytest.fixture(scope="module")
def whole(asynchronous: World, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return live(asynchronous, tmp_path_factory.mktemp("whole"))


# ----- what the report says


def test_virtual_time_and_energy_of_the_rounds_add_up_to_those_of_the_run(whole: Report) -> None:
    log, virtual = whole["rounds_log"], whole["virtual"]
    assert all(row["virtual_seconds"] > 0 for row in log)
    assert sum(row["virtual_seconds"] for row in log) == pytest.approx(virtual["seconds"])
    assert sum(row["joules"] for row in log) == pytest.approx(virtual["joules_mean"])
    assert virtual["joules_worst"] > virtual["joules_mean"] > 0
    total = sum(whole["bytes"].values())
    assert sum(row["bytes_per_client"] for row in log) == pytest.approx(total)


def test_the_start_of_the_day_is_no_part_of_the_run(whole: Report) -> None:
    """A run that begins at 6 in the morning has not taken six hours."""
    assert 0 < whole["virtual"]["seconds"] < 6 * 3600


def test_time_to_accuracy_is_within_the_run(whole: Report) -> None:
    found = whole["time_to_accuracy"]
    assert {(one["who"], one["below"]) for one in found} == {
        (who, below) for who in ("clients", "unseen") for below in (0.01, 0.02)
    }
    for one in found:
        assert 0 < one["seconds"] <= whole["virtual"]["seconds"] * (1 + 1e-9)
        assert 0 < one["bytes"] <= sum(whole["bytes"].values()) * (1 + 1e-9)
        assert 0 < one["joules"] <= whole["virtual"]["joules_mean"] * (1 + 1e-9)


def test_asynchronous_rounds_do_not_wait_for_the_slow(
    asynchronous: World, whole: Report, tmp_path: Path
) -> None:
    """The same fleet in synchronous rounds: each waits for its slowest device."""
    rounds = replace(asynchronous.config.rounds, buffer=0, late="drop")
    waiting = live(build_world(replace(asynchronous.config, rounds=rounds)), tmp_path)

    def middle(report: Report) -> float:  # the first round brings the student, the last one the final weights
        seconds: float = sum(row["virtual_seconds"] for row in report["rounds_log"][1:-1])
        return seconds

    assert 2 * middle(whole) < middle(waiting)


def test_a_run_without_a_fleet_says_nothing_of_virtual_time(small_world: World, tmp_path: Path) -> None:
    report = live(small_world, tmp_path)
    assert "virtual" not in report
    assert all("virtual_seconds" not in row and "joules" not in row for row in report["rounds_log"])
    assert all(one["seconds"] is None and one["bytes"] > 0 for one in report["time_to_accuracy"])


# ----- killed and resumed


@pytest.mark.parametrize(("kind", "number"), [("round", 1), ("round", 4), ("release", 4), ("release", 6)])
def test_an_interrupted_run_in_virtual_time_resumes_to_the_same_report(
    kind: str, number: int, asynchronous: World, whole: Report, tmp_path: Path
) -> None:
    def stop(found: str, fields: Mapping[str, object]) -> None:
        if found == kind and fields.get("round") == number:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        live(asynchronous, tmp_path, stop)
    assert timeless(live(asynchronous, tmp_path)) == timeless(whole)


def test_a_journal_that_has_lost_its_clock_is_refused(asynchronous: World, tmp_path: Path) -> None:
    def stop(kind: str, fields: Mapping[str, object]) -> None:
        if (kind, fields.get("round")) == ("round", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        live(asynchronous, tmp_path, stop)
    with Journal(tmp_path / JOURNAL) as journal:
        for name in ("clock-0", "clock-1"):
            journal.set_stage(name, b"not a clock")
    with pytest.raises(SetupError, match="damaged"):
        live(asynchronous, tmp_path)


# ----- refused before the run, with the numbers


def _refused(config: Config, **settings: Any) -> str:
    rounds = {k.removeprefix("rounds_"): v for k, v in settings.items() if k.startswith("rounds_")}
    fleet = {k: v for k, v in settings.items() if not k.startswith("rounds_")}
    config = replace(config, rounds=replace(config.rounds, **rounds), fleet=Fleet(**fleet))
    with pytest.raises(ConfigError) as caught:
        check_fleet(build_world(config))
    return str(caught.value)


def test_a_deadline_that_nobody_can_keep(small_config: Config, tmp_path: Path) -> None:
    said = _refused(small_config, devices=_fleet(tmp_path, f"[a]\n{ONE}"), rounds_deadline_seconds=3.0)
    assert "0 of 6 devices" in said
    assert "rounds.deadline_seconds = 3" in said
    assert "the fastest takes" in said


def test_a_quorum_that_only_half_of_the_fleet_can_answer_for(small_config: Config, tmp_path: Path) -> None:
    fleet = _fleet(tmp_path, f"[quick]\n{QUICK}[slow]\n{SLOW}")
    settings = {"devices": fleet, "rounds_deadline_seconds": 4.0}
    said = _refused(small_config, **settings, rounds_quorum=0.8)
    assert "needs 5 update(s); 3 of 6 devices" in said
    rounds = replace(small_config.rounds, deadline_seconds=4.0, quorum=0.5)
    check_fleet(build_world(replace(small_config, rounds=rounds, fleet=Fleet(devices=fleet))))


def test_a_first_download_that_nobody_can_take_in_time_is_refused_before_the_first_round(
    small_config: Config, tmp_path: Path
) -> None:
    """Its size is known when the student is there: every round would fit, and nobody would ever begin."""
    fleet = _fleet(tmp_path, f"[a]\n{ONE}".replace("downlink = 1000", "downlink = 100"))
    rounds = replace(small_config.rounds, deadline_seconds=40.0)
    world = build_world(replace(small_config, rounds=rounds, fleet=Fleet(devices=fleet)))
    check_fleet(world)
    with pytest.raises(ConfigError, match=r"0 of 6 devices can take the first download \([\d,]+ bytes\)"):
        live(world, tmp_path / "run")
    with Journal(tmp_path / "run" / JOURNAL) as journal:
        assert not journal.rounds()


def test_a_fleet_whose_hours_never_meet(small_config: Config, tmp_path: Path) -> None:
    text = f"[quick]\n{QUICK}hours = ['00:00-12:00']\n[slow]\n{SLOW}hours = ['12:00-24:00']\n"
    said = _refused(small_config, devices=_fleet(tmp_path, text), rounds_least=4)
    assert "needs 4 update(s)" in said
    assert "never are more than 3 of 6 devices there" in said


def test_what_is_promised_as_the_fastest_is_what_a_naive_sum_gives(small_world: World) -> None:
    (profile,) = [p for p in load_fleet("gateways") if p.name == "wired"]
    fleet: dict[str, Profile] = dict.fromkeys(small_world.parts, profile)
    work = work_of(small_world, 1000)
    naive = min(
        2 * profile.latency
        + 200 * 8 / profile.uplink
        + 200 * 8 / profile.downlink
        + w.training_seconds() / profile.compute
        for w in work.values()
    )
    rounds = replace(small_world.config.rounds, deadline_seconds=naive * 0.999)
    with pytest.raises(ConfigError, match=f"the fastest takes {naive:.3g} s"):
        check_reachable(replace(small_world.config, rounds=rounds), fleet, work)


def test_every_participant_has_a_profile(asynchronous: World) -> None:
    assert list(profiles_of(asynchronous)) == list(asynchronous.roles.participants)
