"""``fedge bench edge``: the models it compares compute the same, and what it says of processes is theirs."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedge.bench import _edge_devices as devices
from fedge.bench import _edge_launch as launch
from fedge.bench import _edge_load as load
from fedge.bench import _edge_serve as serving
from fedge.bench import _edge_start as starts
from fedge.bench import _edge_times as times
from fedge.bench import edge as bench
from fedge.bench._edge_models import CLASSES, TASK, WINDOW, release, student, teacher, windows
from fedge.bench._processes import free_ports
from fedge.cli import main
from fedge.edge.runtime import Runtime
from fedge.errors import ConfigError, FedgeError
from fedge.observe import silent
from fedge.release.manifest import parse

KEYS = {"overhead_us", "p50_us", "size_ratio", "batch256_speedup"}
SMALL = bench.Sizes(
    repeats=3, calls=10, batch_calls=1, students=(("plain", "tiny"), ("separable", "tiny")), starts=1,
    connections=4, seconds=0.3, load_repeats=1, shared=128, device_repeats=1,
)  # fmt: skip


def test_a_student_is_the_same_function_in_all_three_models() -> None:
    made = student("plain", "tiny")
    answers = {name: Runtime(model).predict(windows(40)) for name, model in made.models.items()}
    assert answers["usual"].shape == (40, len(CLASSES))
    spread = float(answers["usual"].std())
    assert spread > 0
    np.testing.assert_allclose(answers["float32"], answers["usual"], atol=0.1 * spread)  # it clips
    np.testing.assert_allclose(answers["int8"], answers["float32"], atol=0.2 * spread)
    assert made.int8 != student("plain", "small").int8


def test_a_teacher_takes_the_same_windows() -> None:
    runtime = Runtime(teacher("residual", "small"))
    assert (runtime.window, runtime.outputs) == (WINDOW, len(CLASSES))


def _ticking(steps: dict[str, list[int]], said: list[str]) -> Callable[[], int]:
    """A clock that has moved on, at every second look, by what the job before it takes next."""
    now, looks = [0], [0]

    def clock() -> int:
        looks[0] += 1
        if looks[0] % 2 == 0:
            now[0] += steps[said[-1]].pop(0)
        return now[0]

    return clock


def test_medians_are_those_of_each_job_and_repeat() -> None:
    said: list[str] = []
    steps = {"a": [1000, 9000, 2000, 7000, 7000, 7000], "b": [5000, 5000, 4000, 1000, 2000, 3000]}
    jobs = {"a": lambda: said.append("a"), "b": lambda: said.append("b")}
    taken = times.p50(jobs, 2, 3, _ticking(steps, said))
    assert taken == {"a": [2.0, 7.0], "b": [5.0, 2.0]}
    assert times.middle([3.0, 1.0, 2.004]) == 2.0


def test_jobs_take_turns_and_each_is_called_alike_often() -> None:
    said: list[str] = []
    times.p50({"a": lambda: said.append("a"), "b": lambda: said.append("b")}, 2, 2 * times._TURN + 5)
    counted = said[2 * times._WARM :]
    assert counted.count("a") == counted.count("b") == 2 * (2 * times._TURN + 5)
    longest = max(len(run) for run in "".join(counted).replace("ab", "a b").replace("ba", "b a").split())
    assert longest <= 2 * times._TURN


@pytest.mark.parametrize("way", [times.bound, times.bare, times.device])
def test_every_way_of_calling_answers_the_windows_given(way: Callable[..., times.Job]) -> None:
    made, x = student("plain", "tiny"), windows(3)
    expected = Runtime(made.int8).predict(x)
    said: Any = way(made.int8, x)()
    answer = said[1] if way is times.bound else said[0] if way is times.bare else said
    np.testing.assert_array_equal(answer, expected)


def test_memory_is_that_of_the_command_not_of_the_benchmark() -> None:
    """Linux counts what the parent held between fork and exec; this process holds far more than 120 MB."""
    ballast = bytearray(os.urandom(1 << 10) * (150 << 10))
    few, much = (
        json.loads(starts._run([sys.executable, "-I", "-S", "-c", code], {}).stdout.splitlines()[-1])
        for code in ("pass", "x = b'x' * 100_000_000")
    )
    assert len(ballast) > 120e6
    assert few["exit"] == much["exit"] == 0
    assert few["peak_bytes"] < 60e6
    assert 95e6 < much["peak_bytes"] - few["peak_bytes"] < 110e6
    assert Path(launch.__file__).name == "_edge_launch.py"


def test_a_command_that_fails_is_told_apart(tmp_path: Path) -> None:
    place = release(tmp_path / "release", student("plain", "tiny").int8)
    with pytest.raises(FedgeError, match="ended with 2"):
        starts.infer(place, tmp_path / "none.npz")


TRACE = """import time: self [us] | cumulative | imported package
import time:        81 |         81 |   torch._C
import time:        10 |         91 | torch
import time:         5 |          5 | fedge.torchlike
import time:         9 |          9 |     flwrish
"""


def test_heavy_packages_are_found_in_a_trace_by_their_whole_name() -> None:
    assert starts.heavy(TRACE) == ["torch"]
    assert starts.heavy(TRACE.replace("torch._C", "a").replace("| torch\n", "| b\n")) == []
    with pytest.raises(FedgeError, match="no trace"):
        starts.heavy("fedge: error: something else\n")


def test_a_release_for_the_processes_is_one_that_they_accept(tmp_path: Path) -> None:
    place = release(tmp_path / "release", student("plain", "tiny").int8)
    assert parse((place / "manifest.json").read_bytes()).task == TASK
    taken = starts.infer(place, starts.write_window(tmp_path))
    assert taken.answer["class"] in CLASSES
    assert taken.seconds > 0
    assert taken.cpu_seconds > 0
    assert 30e6 < taken.peak_bytes < 200e6
    assert starts.infer_imports(place, tmp_path / "window.npz") == []


def test_fastapi_gets_and_gives_what_fedge_serve_does() -> None:
    pytest.importorskip("fastapi", reason="FastAPI is not installed")
    client = pytest.importorskip("fastapi.testclient").TestClient
    from fedge.bench._edge_fastapi import make_app

    model, x = student("plain", "tiny").int8, windows(1)
    head, body = load.oip_request(TASK, x).split(b"\r\n\r\n", 1)
    first, *lines = head.decode().split("\r\n")
    with client(make_app(model, TASK)) as asked:
        path = first.split(" ")[1]
        said = asked.post(path, content=body, headers=dict(line.split(": ", 1) for line in lines))
    assert said.status_code == 200
    size = int(said.headers["inference-header-content-length"])
    (output,) = json.loads(said.content[:size])["outputs"]
    scores = np.frombuffer(said.content[size:], "<f4").reshape(output["shape"])
    np.testing.assert_array_equal(scores, Runtime(model).predict(x))


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    command = [*starts.FEDGE, "serve", str(tmp_path / "nothing"), "--port", str(port)]
    with pytest.raises(FedgeError, match=r"ended before its time: fedge: error: .*manifest\.json"):
        starts.start("fedge serve", command, port, tmp_path / "log")


def test_load_goes_to_one_core_and_servers_to_another() -> None:
    before = os.sched_getaffinity(0)
    core, others = serving._cores()
    assert core is None or core not in others
    with serving._only_on(others):
        assert os.sched_getaffinity(0) == others
    assert os.sched_getaffinity(0) == before


def test_everything_is_measured_and_told() -> None:
    found = bench.measure(SMALL, silent)
    assert set(found) >= KEYS
    assert set(found["p50_us"]) >= {"teacher_fp32", "student_fp32", "student_int8"}
    assert all(us > 0 for us in found["p50_us"].values())
    assert found["size_ratio"] == pytest.approx(
        found["bytes"]["teacher_fp32"] / found["bytes"]["student_int8"], abs=0.1
    )
    assert found["size_ratio"] > 20
    assert set(found["students"]) == {"plain_tiny", "separable_tiny"}
    assert found["start"]["imported"] == {"infer": [], "serve": []}
    assert found["serve"]["fedge"]["requests_per_s"] > 0
    json.dumps(found, allow_nan=False)
    told = "\n".join(bench.lines(found))
    assert "plain_tiny" in told
    assert "imported: none" in told


def test_parts_are_measured_alone_and_unknown_ones_refused() -> None:
    found = bench.measure(SMALL, silent, parts=("models",))
    assert "start" not in found
    assert "serve" not in found
    assert bench.lines(found)
    with pytest.raises(ConfigError, match="cores"):
        bench.run(only="models,cores")


def test_json_is_one_object_on_the_last_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "measure", lambda *_: {"overhead_us": 1.0, "settings": {}})
    assert main(["bench", "edge", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["overhead_us"] == 1.0
    assert main(["bench", "edge", "--repeats", "0"]) == 2
    assert "--repeats" in capsys.readouterr().err


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two devices need a core each")
def test_two_devices_are_measured_beside_each_of_them_alone(tmp_path: Path) -> None:
    place = release(tmp_path / "release", student("plain", "tiny").int8)
    found = devices.across(place, tmp_path, 128, 1)
    assert found["ratio"] == pytest.approx(found["two_per_s"] / found["one_per_s"], rel=0.01, abs=0.01)
    assert found["cores"] == 2


def test_a_single_core_is_nothing_to_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert devices.across(tmp_path, tmp_path, 128, 1) == {"ratio": None, "cores": 1}
