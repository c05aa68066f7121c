"""``fedge bench simulation``: real rounds, in which every update counts; what is counted as overhead."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fedge.bench import _simulation_app as idle_app
from fedge.bench import _simulation_cases as cases
from fedge.bench import simulation as bench
from fedge.bench._simulation_app import Crowd, Idle
from fedge.bench._simulation_cases import Direct, Trainers
from fedge.cli import main
from fedge.errors import FedgeError, SignatureError, UpdateError
from fedge.federated.checks import check_trained
from fedge.federated.frames import Train, Welcome, encode_task
from fedge.federated.lineage import begin
from fedge.observe import silent
from fedge.simulation.engines import cores

KEYS = {"overhead_ms", "ratio_to_ray", "end_to_end_ratio"}
IDLE = Idle(clients=5, parameters=500)


class _Answers:
    """``Clients`` in this process; ``lie`` changes an answer of theirs."""

    def __init__(self, crowd: Crowd, lie: bool = False) -> None:
        self._crowd, self._lie = crowd, lie

    def ask(
        self, tasks: Mapping[str, bytes], deadline: float | None = None, enough: int | None = None
    ) -> Iterator[tuple[str, bytes | FedgeError]]:
        del deadline, enough
        for number, (client, frame) in enumerate(tasks.items()):
            answer = self._crowd.answer(frame, number)
            yield client, answer[:-1] + bytes([answer[-1] ^ 1]) if self._lie and number == 3 else answer


def test_a_round_in_which_an_update_does_not_count_is_no_measurement() -> None:
    case, crowd = cases.idle_case(IDLE), idle_app.crowd_of(IDLE.text())
    assert len(case.over(_Answers(crowd), 0.5, 3).rounds) == 3
    with pytest.raises(FedgeError, match=r"\[4, 4\] of 5"):
        case.over(_Answers(crowd, lie=True), 0.0, 1)


def test_signatures_are_real_unless_they_are_left_out() -> None:
    case, unsigned = cases.idle_case(IDLE), Idle(IDLE.clients, IDLE.parameters, signed=False)
    crowd = idle_app.crowd_of(IDLE.text())
    task = Train(1, 0, 0, begin(crowd.prepared.snapshot), (), 0.1)
    federation, _ = case.begin(_Answers(crowd), None)  # type: ignore[arg-type]
    signed = crowd.answer(encode_task(task), 2)
    bare = idle_app.crowd_of(unsigned.text()).answer(encode_task(task), 2)
    assert len(signed) == len(bare)
    assert check_trained("c000002", signed, task, federation).payload
    with pytest.raises(SignatureError):
        check_trained("c000002", bare, task, federation)
    with cases.unsigned():
        assert check_trained("c000002", bare, task, federation).payload
    with pytest.raises(SignatureError):
        check_trained("c000002", bare, task, federation)


def test_unsigned_clients_answer_nothing_but_a_task() -> None:
    crowd = Crowd.of(Idle(1, 500, signed=False))
    with pytest.raises(UpdateError):
        crowd.answer(encode_task(Welcome(b"q" * 16, {}, b"")), 0)


def test_overhead_is_what_a_round_takes_beyond_the_clients_work_on_all_cores() -> None:
    assert bench._overhead([0.5, 0.3, 0.4], 100, 0.0) == pytest.approx(4.0)
    assert bench._overhead([0.5, 0.3, 0.4], 100, 0.001 * cores()) == pytest.approx(3.0)


def test_the_clients_that_train_are_those_of_fedge_simulate(tmp_path: Path) -> None:
    trainers = Trainers.of(3, 20, tmp_path)
    assert len(trainers.world.roles.participants) == 3
    assert 15_000 < trainers.prepared.plan.spec.parameters() < 25_000
    direct = Direct(trainers.world)
    assert len(trainers.case().over(direct, 0.0, 1).rounds) == 1
    assert len(direct.seconds) == 3  # a welcome and two rounds
    assert min(direct.seconds[-1:]) > 0
    assert len(trainers.torch_loop(2)) == 2


# ----- the whole of it, small


@pytest.fixture(scope="module")
def result() -> Iterator[dict[str, Any]]:
    sizes = bench.Sizes(
        clients=(5, 8), parameters=500, rounds=2, trainers=3, windows=20, train_rounds=1, ray_rounds=1
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "SHOWN", 8)
        yield bench.measure(sizes, silent, ray=False)


def test_the_promised_keys_are_there_and_agree_with_each_other(result: dict[str, Any]) -> None:
    assert set(result) >= KEYS
    assert all(list(result[key]) == ["5", "8"] for key in ("overhead_ms", "ratio_to_ray", "client_ms"))
    assert all(ms > 0 for ms in result["overhead_ms"].values())
    assert result["unsigned_ms"]["5"] is None
    assert result["unsigned_ms"]["8"] > 0
    for key in ("ratio_to_ray", "stock_ms", "ray_ms", "ratio_same_apps"):
        assert result[key] == {"5": None, "8": None}
    real = result["real"]
    assert real["over_ideal"] == pytest.approx(real["local_s"] / (real["work_s"] / cores()))
    assert result["end_to_end_ratio"] is None


def test_ratios_are_those_of_the_two_engines(result: dict[str, Any]) -> None:
    assert bench._ratio(20.0, 0.4) == pytest.approx(50)
    assert bench._ratio(None, 0.4) is None
    assert any("pip install 'fedge[ray]'" in line for line in bench.lines(result))
    with_ray = {
        **result,
        "stock_ms": {"5": 12.0, "8": 13.0},
        "ratio_to_ray": {"5": 30.0, "8": 31.0},
        "ray_ms": {"5": 4.0, "8": 5.0},
        "ratio_same_apps": {"5": 10.0, "8": 12.0},
        "real": {**result["real"], "ray_s": 7.0, "ray_default_s": 9.0, "ray_start_s": 8.0},
    }
    shown = bench.lines(with_ray)
    assert any(line.startswith("5 clients") and "12.0" in line and " 30 " in line for line in shown)
    assert any("7.00 s" in line and "9.00 s" in line for line in shown)
    assert not any("not installed" in line for line in shown)


def test_json_is_one_object_on_the_last_line(
    result: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[int]] = []
    monkeypatch.setattr(bench, "run", lambda clients: (asked.append(clients), result)[1])
    assert main(["bench", "simulation", "--clients", "5,8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == json.loads(json.dumps(result))
    assert main(["bench", "simulation"]) == 0
    assert capsys.readouterr().out.splitlines() == bench.lines(result)
    assert asked == [[5, 8], [30, 300, 1000]]


@pytest.mark.parametrize("given", ["", "0", "30,", "x", "-3", "1000000000"])
def test_impossible_numbers_of_clients_are_refused(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "simulation", f"--clients={given}"]) == 2
    assert capsys.readouterr().err.startswith("fedge: error: --clients")
