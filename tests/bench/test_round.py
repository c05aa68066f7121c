"""``fedge bench round``: bytes are counted to the last one, processes end, and fedge's part runs for real."""

import json
import os
import socket
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fedge.bench import _round_stock as stock
from fedge.bench import round as bench
from fedge.bench._processes import Process, await_, free_ports
from fedge.bench._wire import Meters
from fedge.cli import main
from fedge.errors import FedgeError
from fedge.observe import silent

KEYS = {"fedge_median_s", "stock_median_s", "ratio", "wire"}
WIRE = {"fedge_round", "stock_round", "fedge_idle_day", "stock_idle_day"}


@contextmanager
def _doubling() -> Iterator[int]:
    """A server that says everything twice; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    plug, _ = listener.accept()
                except OSError:
                    return
                with plug:
                    while data := plug.recv(1000):
                        plug.sendall(data * 2)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def _exchange(port: int, content: bytes) -> bytes:
    found = b""
    with socket.create_connection(("127.0.0.1", port), 5) as plug:
        plug.sendall(content)
        while len(found) < 2 * len(content):
            found += plug.recv(1 << 16)
    return found


def test_a_meter_counts_every_byte_of_both_directions_and_changes_none() -> None:
    with _doubling() as port, Meters([port, port]) as meters:
        first, second = meters.each
        start, content = time.monotonic(), os.urandom(10_007)
        assert len(_exchange(first.port, content)) == 2 * len(content)
        middle = time.monotonic()
        _exchange(second.port, b"abc")
        _exchange(second.port, b"de")
        end = time.monotonic()
        assert first.between(start, middle) == 3 * len(content)
        assert first.between(middle, end) == 0
        assert second.between(middle, end) == 15
        assert meters.total(start, end) == 3 * len(content) + 15


def test_where_nobody_listens_a_meter_hangs_up() -> None:
    (port,) = free_ports(1)
    with Meters([port]) as meters, socket.create_connection(("127.0.0.1", meters.each[0].port), 5) as plug:
        plug.settimeout(5)
        assert plug.recv(1) == b""


def _python(code: str, folder: Path) -> Process:
    return Process("x", [sys.executable, "-u", "-c", code], dict(os.environ), folder / "log")


def test_a_process_that_ends_before_its_time_is_told_with_its_last_words(tmp_path: Path) -> None:
    with (
        _python("print('no port'); raise SystemExit(3)", tmp_path) as process,
        pytest.raises(FedgeError, match="x ended before its time: no port"),
    ):
        await_("it", lambda: None, [process], 20)


def test_what_does_not_come_is_given_up(tmp_path: Path) -> None:
    with (
        _python("import time; time.sleep(60)", tmp_path) as process,
        pytest.raises(FedgeError, match=r"it did not come within 0\.1 s"),
    ):
        await_("it", lambda: None, [process], 0.1)


def test_nothing_that_a_process_started_is_left(tmp_path: Path) -> None:
    code = """
import os, signal, time
child = os.fork()
if child == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)
print(child)
time.sleep(60)
"""
    process = _python(code, tmp_path)
    pid = await_("its child", lambda: int((tmp_path / "log").read_text() or 0) or None, [process], 20)
    process.end()
    process.end()
    end = time.monotonic() + 10
    while _alive(pid):
        assert time.monotonic() < end, "it is still there"
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_of_flower_s_marks_come_the_rounds_after_the_warm_ones() -> None:
    """Three rounds of 10, 12 and 20 s, of which training took 6, 7 and 15; the first is to warm up."""
    marks = {"ends": [100.0, 110.0, 122.0, 142.0], "trained": [106.0, 117.0, 137.0], "arrays": 500}
    sizes = bench.Sizes(stock_rounds=2, stock_warm=1)
    rounds = bench._stock_rounds(marks, sizes)
    assert rounds.seconds == [12.0, 20.0]
    assert (rounds.start, rounds.end) == (110.0, 142.0)
    assert rounds.payload == 3 * 500 * 2 * 2  # down, up and down again; two clients, two rounds
    assert bench._training(marks, sizes) == {"stock_median_training_s": 11.0}


def test_the_wire_is_what_passed_beyond_the_payload_for_each_client_and_round() -> None:
    with _doubling() as port, Meters([port, port]) as meters:
        start = time.monotonic()
        for meter in meters.each:
            _exchange(meter.port, bytes(100))
        rounds = bench.Rounds([1.0, 1.0], payload=400, start=start, end=time.monotonic())
        assert rounds.wire(meters, clients=2) == (600 - 400) / 4


def test_the_app_for_flower_names_its_parts_and_has_its_settings(tmp_path: Path) -> None:
    app = stock.write_app(tmp_path, {"marks": "/x/marks.json", "rounds": 3})
    project = tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert project["config"] == {"marks": "/x/marks.json", "rounds": 3}
    for part in project["components"].values():
        module, _, name = part.partition(":")
        assert f"\n{name} = " in (app / f"{module}.py").read_text()
        assert f"{module}.py" in project["fab-include"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[bench.Running, bench.Sizes]]:
    """fedge's part: a server with Flower under it, and two devices."""
    sizes, folder = bench.Sizes(rounds=5, warm=2, ping=1.0), tmp_path_factory.mktemp("bench")
    with bench.start_fedge(folder, bench.provision(folder, sizes.clients), sizes) as found:
        yield found, sizes


def test_fedge_s_rounds_are_real_and_cost_hardly_more_than_their_payload(
    running: tuple[bench.Running, bench.Sizes],
) -> None:
    found, sizes = running
    rounds = found.rounds
    assert len(rounds.seconds) == sizes.rounds
    assert all(0 < s < 60 for s in rounds.seconds)
    assert rounds.start + sum(rounds.seconds) <= rounds.end
    each = rounds.payload / sizes.rounds / sizes.clients
    assert 64 < each < 1000  # a signature at the least; no plan, no snapshot
    wire = rounds.wire(found.meters, sizes.clients)
    assert 2 * 2 * 22 <= wire <= 400  # a TLS record each way at the least; what is promised at the most


def test_an_idle_device_still_pings(running: tuple[bench.Running, bench.Sizes]) -> None:
    found, sizes = running
    start, end = bench._idle(bench.Sizes(idle=3.0, ping=sizes.ping), (found,))
    assert end - start == 3.0
    each = found.meters.total(start, end) / sizes.clients / 3
    assert 2 * 24 <= each <= 150  # a ping and a pong of a few bytes, with their TLS records


@pytest.mark.full
def test_both_parts_run_side_by_side(wide: bool) -> None:
    if not wide:
        pytest.skip("stock Flower takes a minute: make test-full")
    sizes = bench.Sizes(rounds=5, warm=2, stock_rounds=1, stock_warm=1, idle=6.0, ping=2.0)
    found = bench.measure(sizes, silent)
    _check(found)
    wire = found["wire"]
    assert wire["stock_round"] > 10 * wire["fedge_round"]
    assert wire["stock_idle_day"] > 0


def _check(found: dict[str, Any]) -> None:
    assert set(found) >= KEYS
    assert set(found["wire"]) == WIRE
    assert found["ratio"] == pytest.approx(found["stock_median_s"] / found["fedge_median_s"])


def _example() -> dict[str, Any]:
    return {
        "fedge_median_s": 0.2,
        "stock_median_s": 12.0,
        "ratio": 60.0,
        "wire": {
            "fedge_round": 195.0,
            "stock_round": 30e3,
            "fedge_idle_day": 41e3,
            "stock_idle_day": 28e6,
        },
        "payload": {"fedge_round": 119.0, "stock_round": 1500.0},
        "ratio_training": 30.0,
        "stock_median_training_s": 6.0,
        "idle_s": 360.0,
    }


def test_json_is_one_object_on_the_last_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[float, int]] = []

    def run(idle: float, rounds: int) -> dict[str, Any]:
        asked.append((idle, rounds))
        return _example()

    monkeypatch.setattr(bench, "run", run)
    assert main(["bench", "round", "--json", "--idle-seconds", "7"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == _example()
    assert main(["bench", "round"]) == 0
    assert asked == [(7.0, 60), (300.0, 60)]
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("0.200 s", "12.00 s", "195 B", "28,000.0 kB", "60 times"))


@pytest.mark.parametrize("options", [["--rounds", "0"], ["--idle-seconds", "0"], ["--idle-seconds", "nan"]])
def test_options_out_of_range_are_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "round", *options]) == 2
    assert capsys.readouterr().err.startswith(f"fedge: error: {options[0]}")
