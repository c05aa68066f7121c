"""The whole life of a model: the same seed gives the same report, interrupted or not."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from federated.build import FAST, MemoryStore
from onnx import numpy_helper

from fedge.config import Config, Fleet
from fedge.data.types import Windows
from fedge.edge.disk import MemoryDisk
from fedge.edge.gate import GateInputs
from fedge.edge.home import Home
from fedge.edge.sources import FolderSource
from fedge.edge.updater import Updater
from fedge.errors import SetupError
from fedge.federated.journal import Journal
from fedge.observe import read_events
from fedge.simulation.folder import JOURNAL
from fedge.simulation.world import BEGINNING, World, build_world
from simulation.lives import Report, Stop, live, timeless


@pytest.fixture(scope="module")
def out(small_world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    live(small_world, folder)
    return folder


@pytest.fixture(scope="module")
def whole(out: Path) -> Report:
    report: Report = json.loads((out / "report.json").read_text())
    return report


CONTRACT: dict[str, Any] = {
    "schema": int,
    "fedge_version": str,
    "scenario": str,
    "task": str,
    "seed": int,
    "clients": int,
    "rounds": int,
    "engine": str,
    "metric": str,
    "teacher": {"parameters": int, "bytes": int, "score_unseen": float},
    "student": {"parameters": int, "bytes_float32": int, "bytes_int8_onnx": int},
    "score": {
        "unseen_initial": float,
        "clients_initial": float,
        "unseen": float,
        "clients": float,
        "unseen_int8": float,
        "clients_int8": float,
    },
    "bytes": {"initial_download": float, "uplink": float, "downlink": float},
    "rounds_log": [
        {
            "round": int,
            "seconds": float,
            "uplink": float,
            "downlink": float,
            "score_unseen": float,
            "score_clients": float,
            "redistilled": bool,
            "released_version": int | None,
        }
    ],
    "release": {"version": int, "path": str, "sha256": str, "bytes_per_client": int},
}


def _check_contract(value: Any, wanted: Any, where: str) -> None:
    if isinstance(wanted, dict):
        assert wanted.keys() <= value.keys(), where
        for key, kind in wanted.items():
            _check_contract(value[key], kind, f"{where}.{key}")
    elif isinstance(wanted, list):
        assert value, where
        for item in value:
            _check_contract(item, wanted[0], where)
    else:
        assert isinstance(value, wanted), f"{where} is {value!r}"


def test_the_report_has_every_key_of_the_contract(whole: Report) -> None:
    _check_contract(whole, CONTRACT, "report")
    assert (whole["schema"], whole["rounds"], whole["clients"]) == (1, 4, 6)
    assert [r["round"] for r in whole["rounds_log"]] == [1, 2, 3, 4]
    assert [r["released_version"] for r in whole["rounds_log"]] == [None, 1, None, 2]
    assert all(0 <= s <= 1 for s in whole["score"].values())


def test_the_same_seed_gives_the_same_report(small_world: World, whole: Report, tmp_path: Path) -> None:
    live(small_world, tmp_path)
    assert timeless(json.loads((tmp_path / "report.json").read_text())) == timeless(whole)


def test_another_seed_gives_another_report(small_config: Config, whole: Report, tmp_path: Path) -> None:
    other = timeless(live(build_world(replace(small_config, seed=4)), tmp_path))
    assert other["score"] != whole["score"]
    assert other["release"]["sha256"] != whole["release"]["sha256"]


def test_what_stands_in_for_the_mean_on_machines_does_so_in_a_simulation(
    small_config: Config, whole: Report, tmp_path: Path
) -> None:
    rounds = replace(small_config.rounds, robust="multikrum", hostile=1)
    robust = live(build_world(replace(small_config, rounds=rounds)), tmp_path / "robust")
    assert timeless(robust)["score"] != timeless(whole)["score"]
    assert [r["counted"] for r in robust["rounds_log"]] == [r["counted"] for r in whole["rounds_log"]]


def test_the_stated_share_of_zeros_is_in_the_released_file(out: Path, whole: Report) -> None:
    model = onnx.load(out / whole["release"]["path"] / "model.onnx")
    arrays = [numpy_helper.to_array(i) for i in model.graph.initializer]
    weights = [a for a in arrays if a.dtype == "int8" and a.ndim > 1]
    parameters, zeros = sum(a.size for a in weights), sum(int((a == 0).sum()) for a in weights)
    assert parameters == sum(layer["parameters"] for layer in whole["pruning"]["layers"])
    assert whole["pruning"]["stated_share"] == 0.4
    assert zeros / parameters >= 0.4
    assert whole["pruning"]["zero_share"] >= 0.4
    assert zeros / parameters >= whole["pruning"]["zero_share"] - 1e-9


def test_the_released_model_answers_as_the_clients_student_does(whole: Report) -> None:
    assert whole["agreement"]["windows"] > 90
    assert whole["agreement"]["share"] >= 0.99


def test_releases_are_what_a_device_enrolled_here_takes(small_world: World, out: Path, whole: Report) -> None:
    home = Home(MemoryDisk())
    root, federation = small_world.trust()["1.root.json"], json.loads(_manifest(out, 1))["federation"]
    updater = Updater(home, root, federation, lambda: BEGINNING)
    x = np.zeros((0, *small_world.dataset.window), np.float32)
    nobody = Windows(x, np.zeros(0, np.int64), np.zeros(0, np.int64))
    nothing = GateInputs(nobody, latency_factor=None)
    outcome = updater.update(FolderSource(out / "releases"), nothing)
    assert (outcome.taken, outcome.version) == (True, 2)
    installed = home.current()
    assert installed is not None
    assert installed.manifest.to_bytes() == _manifest(out, 2)
    assert hashlib.sha256(installed.model).hexdigest() == whole["release"]["sha256"]
    assert whole["release"]["bytes_per_client"] == sum(r["bytes"] for r in whole["releases"])


def _manifest(out: Path, version: int) -> bytes:
    return (out / "releases" / f"v{version:04d}" / "manifest.json").read_bytes()


def test_the_bytes_are_the_sums_of_the_rounds(whole: Report) -> None:
    for way in ("uplink", "downlink"):
        rows = sum(r[way] for r in whole["rounds_log"])
        hello = whole["bytes"][way] - rows  # the answer to the welcome goes up, and stands in no round's row
        assert (0 < hello < 200) if way == "uplink" else hello == pytest.approx(0)
        assert whole["bytes"][way] == pytest.approx(sum(c[way] for c in whole["clients_log"]) / 6)
    assert 500 < whole["bytes"]["initial_download"] < 10_000


# ----- interrupted


def _at(kind: str, number: int) -> Stop:
    def stop(found: str, fields: Mapping[str, object]) -> None:
        if found == kind and fields.get("round") == number:
            raise KeyboardInterrupt

    return stop


@pytest.mark.parametrize(
    ("kind", "number"),
    [("round", 1), ("round", 3), ("release", 2), ("redistillation", 2), ("release", 4)],
    ids=["first", "third", "offered, not committed", "judged, not committed", "pushed, not committed"],
)
def test_an_interrupted_run_resumes_to_the_same_report(
    kind: str, number: int, small_world: World, whole: Report, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        live(small_world, tmp_path, _at(kind, number))
    assert not (tmp_path / "report.json").exists()
    assert timeless(live(small_world, tmp_path)) == timeless(whole)


def test_a_run_interrupted_while_a_stage_before_the_rounds_resumes(
    small_world: World, whole: Report, tmp_path: Path
) -> None:
    def stop(kind: str, fields: Mapping[str, object]) -> None:
        if (kind, fields.get("name")) == ("stage_start", "student"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        live(small_world, tmp_path, stop)
    assert timeless(live(small_world, tmp_path)) == timeless(whole)


def test_a_finished_run_resumed_says_the_same_again(small_world: World, out: Path, whole: Report) -> None:
    assert timeless(live(small_world, out)) == timeless(whole)


def test_resuming_with_other_settings_is_refused_by_name(small_config: Config, out: Path) -> None:
    before = (out / "report.json").read_bytes()
    other = replace(small_config, seed=9, local=replace(small_config.local, epochs=3))
    with pytest.raises(SetupError, match=r"local\.epochs was 1, now 3.*seed was 3, now 9"):
        live(build_world(other), out)
    assert (out / "report.json").read_bytes() == before


def test_a_run_that_was_killed_before_it_began_resumes_to_the_same_report(
    small_world: World, whole: Report, tmp_path: Path
) -> None:
    """Its journal is there, and nothing in it."""
    Journal(tmp_path / JOURNAL).close()
    assert timeless(live(small_world, tmp_path)) == timeless(whole)


# ----- few in each round, and devices that may not send much


@pytest.fixture(scope="module")
def sparse_world(small_config: Config) -> World:
    """A third takes part in each round; uplinks of three kinds, all of them small."""
    rounds = replace(small_config.rounds, fraction=0.34, rounds=8)
    return build_world(replace(small_config, rounds=rounds, fleet=Fleet((400, 160, 250))))


@pytest.fixture(scope="module")
def sparse(sparse_world: World, tmp_path_factory: pytest.TempPathFactory) -> Report:
    return live(sparse_world, tmp_path_factory.mktemp("sparse"))


def test_budgets_are_dealt_to_the_participants_in_turn(sparse_world: World, small_world: World) -> None:
    def dealt(world: World) -> list[int | None]:
        return [world.device(i, MemoryStore()).uplink_budget for i in range(len(world.roles.participants))]

    assert dealt(sparse_world) == [400, 160, 250, 400, 160, 250]
    assert dealt(small_world) == [None] * 6


def test_no_client_sends_more_in_a_round_than_its_budget(
    sparse_world: World, sparse: Report, tmp_path: Path
) -> None:
    assert timeless(live(sparse_world, tmp_path)) == timeless(sparse)
    budgets = dict(zip(sparse_world.roles.participants, (400, 160, 250) * 2, strict=True))
    with Journal(tmp_path / JOURNAL) as journal:
        rounds = journal.rounds()
    asked = [r["counted"] for r in rounds]
    assert [len(c) for c in asked] == [2] * 8
    assert {c for cs in asked for c in cs} == set(budgets)
    for record in rounds[:-1]:  # the last one also brings the final weights, and a second answer
        for client, sent in record["up"].items():
            assert 80 < sent <= budgets[client]


@pytest.mark.parametrize(("kind", "number"), [("round", 5), ("release", 6), ("release", 8)])
def test_an_interrupted_run_with_few_in_each_round_resumes_to_the_same_report(
    kind: str, number: int, sparse_world: World, sparse: Report, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        live(sparse_world, tmp_path, _at(kind, number))
    assert timeless(live(sparse_world, tmp_path)) == timeless(sparse)


def test_resuming_with_other_budgets_is_refused_by_name(sparse_world: World, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        live(sparse_world, tmp_path, _at("round", 1))
    other = replace(sparse_world.config, fleet=Fleet((400, 160)))
    with pytest.raises(SetupError, match=r"fleet\.uplink_bytes"):
        live(build_world(other), tmp_path)


# ----- the command, in a process of its own

MAIN = "import sys; from fedge.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def scenario(fleet_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small settings as a file."""
    path = tmp_path_factory.mktemp("scenario") / "small.toml"
    settings = FAST | {"data.source": str(fleet_file)}
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
    return path


def _start(scenario: Path, out: Path, *more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", MAIN, "simulate", str(scenario), "--out", str(out), *more]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    try:
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    return process.returncode, said


def _wait_for(process: "subprocess.Popen[str]", metrics: Path, rounds: int) -> None:
    """Until so many rounds are done, or the process has ended."""
    while process.poll() is None:
        if metrics.exists() and metrics.read_bytes().count(b'"event":"round"') >= rounds:
            return
        time.sleep(0.01)


def _report(out: Path) -> Report:
    report: Report = json.loads((out / "report.json").read_text())
    return report


def test_ctrl_c_ends_the_run_and_what_was_written_can_be_read(scenario: Path, tmp_path: Path) -> None:
    """A run of many rounds, so that it is never over before it is interrupted."""
    out = tmp_path / "run"
    process = _start(scenario, out, "--rounds", "2000")
    try:
        _wait_for(process, out / "metrics.jsonl", 1)
        os.kill(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1
    (line,) = [text for text in said.splitlines() if "interrupted" in text]
    assert line.startswith("fedge: error: interrupted")
    assert f"--resume --out {out}" in line
    assert "Traceback" not in said
    told = [e for e in read_events(out / "metrics.jsonl") if e["event"] == "round"]
    with Journal(out / JOURNAL) as journal:
        done = journal.rounds()
    assert [e["round"] for e in told] == [r["round"] for r in done][: len(told)]
    assert len(told) in (len(done), len(done) - 1)
    assert not (out / "report.json").exists()


def test_a_run_killed_at_any_moment_resumes_to_the_same_report(
    scenario: Path, whole: Report, tmp_path: Path, wide: bool
) -> None:
    chance = random.Random(8)
    for attempt in range(10 if wide else 1):
        out = tmp_path / f"run{attempt}"
        process = _start(scenario, out)
        _wait_for(process, out / "metrics.jsonl", chance.randrange(4))
        while not (out / JOURNAL).exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0.1, 0.8))
        process.kill()
        assert process.stderr is not None
        process.stderr.close()
        process.wait()
        code, said = _finish(_start(scenario, out, "--resume"))
        assert code == 0, said
        assert timeless(_report(out)) == timeless(whole)
