"""Simulations with edge servers: the same on any number of workers and after any kill; what a report says."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedge.config import Config, Fleet, load_config
from fedge.errors import ConfigError
from fedge.federated.journal import Journal
from fedge.simulation.tiers import FOLDER, deal
from fedge.simulation.world import World, build_world
from simulation.lives import Report, live, timeless

FLEET = """
[quick]
share = 0.5
compute = 0.5
uplink = 1e6
downlink = 1e6
latency = 0.01
compute_watts = 2.0
[slow]
share = 0.5
compute = 0.01
uplink = 500
downlink = 500
latency = 1.0
joules_per_byte = 0.001
drop = 0.5
"""


@pytest.fixture(scope="module")
def tiers(small_config: Config) -> World:
    """Two edge servers of three clients each; releases, and re-distilled students to judge."""
    return build_world(replace(small_config, fleet=Fleet(edges=2)))


@pytest.fixture(scope="module")
def whole(tiers: World, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return live(tiers, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def timed(small_config: Config, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The same in virtual time; half of the devices are slow and leave every other task unanswered."""
    path = tmp_path_factory.mktemp("fleet") / "fleet.toml"
    path.write_text(FLEET)
    return build_world(replace(small_config, fleet=Fleet(devices=str(path), edges=3, start_hour=6.0)))


@pytest.fixture(scope="module")
def whole_timed(timed: World, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return live(timed, tmp_path_factory.mktemp("timed"))


# ----- who belongs to whom


def test_participants_are_dealt_in_groups_of_about_the_same_size(tiers: World) -> None:
    for edges in (1, 2, 3, 4, 6):
        world = replace(tiers, config=replace(tiers.config, fleet=Fleet(edges=edges)))
        groups = deal(world)
        assert [c for group in groups.values() for c in group] == list(tiers.roles.participants)
        assert len(groups) == edges
        sizes = [len(group) for group in groups.values()]
        assert max(sizes) - min(sizes) <= 1
    assert deal(replace(tiers, config=replace(tiers.config, fleet=Fleet()))) == {}


def test_more_edge_servers_than_participants_are_refused_with_one_line(small_config: Config) -> None:
    with pytest.raises(ConfigError) as caught:
        build_world(replace(small_config, fleet=Fleet(edges=7)))
    assert "fleet.edges = 7, but there are 6 participants" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_groups_that_can_never_have_enough_updates_are_refused(small_config: Config) -> None:
    rounds = replace(small_config.rounds, least=3)
    build_world(replace(small_config, rounds=rounds, fleet=Fleet(edges=2)))
    with pytest.raises(ConfigError, match=r"fleet\.edges = 4 leaves an edge server 1 participants"):
        build_world(replace(small_config, rounds=rounds, fleet=Fleet(edges=4)))


def test_feddyn_is_refused_above_edge_servers() -> None:
    """It goes by the share of clients that took part, and the server knows edge servers only."""
    dynamic = {"rounds.optimizer": "dyn", "local.dynamic": 0.1}
    load_config(None, dynamic, name="mine")
    with pytest.raises(ConfigError, match=r"fleet\.edges"):
        load_config(None, dynamic | {"fleet.edges": 2}, name="mine")


# ----- the same report


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_the_same_report(workers: int, tiers: World, whole: Report, tmp_path: Path) -> None:
    assert timeless(live(tiers, tmp_path, workers=workers)) == timeless(whole)


def test_workers_give_the_same_report_in_virtual_time(
    timed: World, whole_timed: Report, tmp_path: Path
) -> None:
    assert timeless(live(timed, tmp_path, workers=2)) == timeless(whole_timed)


def _interrupted(world: World, out: Path, kind: str, number: int) -> Report:
    def stop(found: str, fields: Mapping[str, object]) -> None:
        if found == kind and fields.get("round") == number:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        live(world, out, stop)
    return live(world, out)


@pytest.mark.parametrize(
    ("kind", "number"), [("round", 1), ("redistillation", 2), ("release", 2), ("release", 4)]
)
def test_an_interrupted_run_resumes_to_the_same_report(
    kind: str, number: int, tiers: World, whole: Report, tmp_path: Path
) -> None:
    assert timeless(_interrupted(tiers, tmp_path, kind, number)) == timeless(whole)


@pytest.mark.parametrize(("kind", "number"), [("redistillation", 2), ("release", 2), ("release", 4)])
def test_an_interrupted_run_in_virtual_time_resumes_to_the_same_report(
    kind: str, number: int, timed: World, whole_timed: Report, tmp_path: Path
) -> None:
    assert timeless(_interrupted(timed, tmp_path, kind, number)) == timeless(whole_timed)


class Dies(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("virtual", [False, True])
def test_a_run_killed_around_any_commit_gives_the_same_report(
    virtual: bool,
    tiers: World,
    timed: World,
    whole: Report,
    whole_timed: Report,
    tmp_path: Path,
    wide: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before and after each write of each journal: that of the server, and those of the edge servers."""
    world, expected = (timed, whole_timed) if virtual else (tiers, whole)
    counted, dies_at = 0, -1

    def around(write: Callable[..., None]) -> Callable[..., None]:
        def dying(journal: Journal, *args: Any) -> None:
            nonlocal counted
            for after in (False, True):
                if after:
                    write(journal, *args)
                counted += 1
                if counted == dies_at:
                    raise Dies

        return dying

    for name in ("commit_round", "set_state", "set_stage"):
        monkeypatch.setattr(Journal, name, around(getattr(Journal, name)))
    live(world, tmp_path / "count")
    points = counted
    assert points > 2 * (4 * (1 + 2) + 2 * 3)
    chosen = range(4, points) if wide else [7, points // 3, points - 5]  # 1 to 3: before there is a student
    for at in chosen:
        counted, dies_at = 0, at
        with pytest.raises(Dies):
            live(world, tmp_path / str(at))
        dies_at = -1
        assert timeless(live(world, tmp_path / str(at))) == timeless(expected), at


# ----- what the report says


def test_the_report_says_what_went_over_which_link(tiers: World, whole: Report) -> None:
    said = whole["tiers"]
    assert (said["edges"], said["clients_per_edge"]) == (2, 3.0)
    everyone = sum(row["initial_download"] + row["uplink"] + row["downlink"] for row in whole["clients_log"])
    assert said["clients_bytes"] == everyone
    assert said["ratio"] == pytest.approx(said["clients_bytes"] / said["server_bytes"])
    assert 2.5 < said["ratio"] < 3.5  # about as many as there are clients to an edge server
    assert whole["bytes"]["uplink"] == pytest.approx(everyone / 6 - _down(whole))
    assert [row["participants"] for row in whole["rounds_log"]] == [6] * 4
    assert [row["counted"] for row in whole["rounds_log"]] == [6] * 4
    assert {row["id"] for row in whole["clients_log"] if row["role"] == "participant"} == set(
        tiers.roles.participants
    )


def _down(report: Report) -> float:
    return float(report["bytes"]["initial_download"] + report["bytes"]["downlink"])


def test_releases_are_counted_and_decided_by_the_clients(tiers: World, whole: Report) -> None:
    assert [r["version"] for r in whole["releases"]] == [1, 2]
    for release in whole["releases"]:
        assert [d["client"] for d in release["decisions"]] == sorted(tiers.roles.participants)
    first, second = (r["bytes"] for r in whole["releases"])
    assert 0 < second < first


def test_a_run_of_two_tiers_says_nothing_of_tiers(small_world: World, tmp_path: Path) -> None:
    assert "tiers" not in live(small_world, tmp_path)
    assert not (tmp_path / FOLDER).exists()


def test_edge_servers_take_about_as_long_as_their_slowest_client(whole_timed: Report) -> None:
    """Time goes on, energy is spent by devices, and both add up to those of the run."""
    log, virtual = whole_timed["rounds_log"], whole_timed["virtual"]
    assert all(row["virtual_seconds"] > 0 for row in log)
    assert sum(row["virtual_seconds"] for row in log) == pytest.approx(virtual["seconds"])
    assert sum(row["joules"] for row in log) == pytest.approx(virtual["joules_mean"])
    assert 0 < virtual["seconds"] < 6 * 3600
