"""``fedge bench server``: the updates that it counts are sound, signed ones, and only the server is timed."""

import gc
import json
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedge.bench import _synthetic as synthetic
from fedge.bench import server as bench
from fedge.cli import main
from fedge.errors import FedgeError, UpdateError
from fedge.federated import frames
from fedge.federated.checks import check_hello
from fedge.federated.coding import build_codec, limits
from fedge.federated.frames import Offer, Train, Trained, Welcome
from fedge.federated.journal import Journal
from fedge.federated.server import run_round
from fedge.observe import silent

KEYS = {"updates_per_s", "memory_growth_models"}
CLIENTS = 24


class _Liar(synthetic.Crowd):
    """One client's answer is changed on its way."""

    def ask(
        self, tasks: Mapping[str, bytes], deadline: float | None = None, enough: int | None = None
    ) -> Iterator[tuple[str, bytes | FedgeError]]:
        for client, answer in super().ask(tasks, deadline, enough):
            assert isinstance(answer, bytes)
            yield client, answer[:-1] + bytes([answer[-1] ^ 1]) if client == "c3" else answer


def _played(crowd: type[synthetic.Crowd], folder: Path) -> tuple[dict[str, Any], Any, list[bytes]]:
    config = synthetic.settings(rounds=2)
    prepared = synthetic.prepared_of(config, 2000, bench.FEDERATION)
    payloads = synthetic.payloads_of(prepared.plan.uplink, prepared.support.shapes(), 5)
    enrolled = {f"c{i}": synthetic.key_of(f"c{i}").public for i in range(CLIENTS)}
    assert len(set(enrolled.values())) == CLIENTS
    with Journal(folder / "journal") as journal:
        federation = synthetic.federation_of(
            config, prepared, crowd(prepared.plan, payloads), enrolled, journal
        )
        state = run_round(synthetic.welcomed_state(federation), federation)
        return journal.rounds()[0], (state, prepared), payloads


def test_every_update_counts_and_the_sum_is_theirs(tmp_path: Path) -> None:
    record, (state, prepared), payloads = _played(synthetic.Crowd, tmp_path)
    assert len(record["counted"]) == CLIENTS
    shapes = prepared.support.shapes()
    codec = build_codec(prepared.plan.uplink)
    one_by_one = [codec.decode(payloads[i % 5], limits(shapes)) for i in range(CLIENTS)]
    downlink = build_codec(prepared.plan.downlink)
    mean = {n: np.mean([u[n] for u in one_by_one], axis=0, dtype=np.float64) for n in shapes}
    mean32 = {n: m.astype(np.float32) for n, m in mean.items()}
    told = downlink.decode(downlink.encode(downlink.init(shapes), mean32)[1], limits(shapes))
    for name, before in prepared.weights.items():
        moved = state.weights[name] - before
        assert np.allclose(moved.reshape(-1), told[name], atol=1e-6)
    assert any(np.any(change) for change in told.values())


def test_an_update_that_was_changed_on_its_way_does_not_count(tmp_path: Path) -> None:
    record, _, _ = _played(_Liar, tmp_path)
    assert record["refused"] == ["c3"]
    assert len(record["counted"]) == CLIENTS - 1


def test_a_round_that_does_not_count_everyone_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "Crowd", _Liar)
    assert bench.one_round(3, 500, 2).wall > 0  # none of them is called c3
    monkeypatch.setattr(_Liar, "ask", lambda *_: iter([]))
    with pytest.raises(FedgeError, match="0 of 3"):
        bench.one_round(3, 500, 2)


def _traced_peak(clients: int) -> int:
    gc.collect()
    tracemalloc.start()
    try:
        bench.one_round(clients, 500, 2)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_client_costs_the_server_less_than_700_bytes() -> None:
    """10,000 clients then cost less than two models of a million parameters; names and keys count."""
    _traced_peak(10)  # imports
    few, many = 100, 1500
    assert _traced_peak(many) - _traced_peak(few) < 700 * (many - few)


def test_a_synthetic_client_says_who_it_is_and_takes_no_release() -> None:
    config = synthetic.settings(rounds=2)
    prepared = synthetic.prepared_of(config, 500, bench.FEDERATION)
    key = synthetic.key_of("c")
    federation = synthetic.federation_of(config, prepared, None, {"c": key.public}, None)  # type: ignore[arg-type]
    welcome = frames.encode_task(Welcome(b"q" * 16, prepared.plan.to_dict(), prepared.snapshot))
    hello = synthetic.answer(welcome, "c", key, bench.FEDERATION, b"")
    check_hello("c", hello, b"q" * 16, federation)
    with pytest.raises(UpdateError):
        synthetic.answer(frames.encode_task(Offer(b"x")), "c", key, bench.FEDERATION, b"")
    task = frames.encode_task(Train(3, 0, 0, b"n" * 8, (), 0.1))
    reply = frames.decode_reply(synthetic.answer(task, "c", key, bench.FEDERATION, b"payload"))
    assert isinstance(reply, Trained)
    assert (reply.round, reply.payload) == (3, b"payload")


@pytest.mark.parametrize("parameters", [100, 20_000, 1_000_000])
def test_the_student_has_about_as_many_parameters_as_asked_for(parameters: int) -> None:
    found = sum(int(np.prod(s)) for s in synthetic.shapes_of(parameters).values())
    assert found == pytest.approx(parameters, rel=0.05)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    sizes = bench.Sizes(clients=300, few=100, parameters=1000, large=5000, repeats=1, payloads=3)
    return bench.measure(sizes, silent)


def test_the_promised_keys_are_there_and_agree_with_each_other(result: dict[str, Any]) -> None:
    assert set(result) >= KEYS
    assert result["updates_per_s"] == pytest.approx(300 / result["rounds_s"][0])
    few, many = result["peak_bytes"]["100"], result["peak_bytes"]["300"]
    assert result["memory_growth_models"] == pytest.approx((many - few) / 20_000)
    assert result["growth_bytes_per_client"] == pytest.approx((many - few) / 200)
    assert set(result["us_per_update"]) == {"verify", "decode", "add"}


def test_json_is_one_object_on_the_last_line(
    result: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "run", lambda _clients: result)
    assert main(["bench", "server", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == json.loads(json.dumps(result))
    assert main(["bench", "server"]) == 0
    assert capsys.readouterr().out.splitlines() == bench.lines(result)


def test_too_few_clients_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "server", "--clients", "100"]) == 2
    assert capsys.readouterr().err.startswith("fedge: error: --clients 100")
