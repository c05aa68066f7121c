"""``fedge bench round``: a round with no work, fedge against stock Flower: seconds, and bytes at the socket.

Both have two clients and the same tiny model, on this machine, over TLS on loopback, each client behind a
proxy that counts. First fedge's rounds, then Flower's; then both idle side by side. ``docs/bench-round.md``
says what is compared and what is counted.
"""

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from fedge.bench import _round_fedge as ours
from fedge.bench import _round_stock as stock
from fedge.bench._processes import Process, await_, free_ports
from fedge.bench._wire import Meters
from fedge.observe import Observer, Terminal

DAY = 86_400.0
PING = 120.0
"""Seconds between two pings of an idle device link, as ``fedge client`` has it."""

_SETTLE = 5.0  # seconds after the last round, before idling is measured
_START, _ROUND, _STOCK_ROUND = 120.0, 10.0, 60.0  # seconds that are waited for at most


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        rounds: of fedge that count.
        warm: of fedge, before those.
        stock_rounds: of Flower that count.
        stock_warm: of Flower, before those.
        idle: seconds of idling, at least.
        ping: seconds between two pings of fedge's idle link.
        parameters: of the model.
        clients: how many.
    """

    rounds: int = 60
    warm: int = 10
    stock_rounds: int = 6
    stock_warm: int = 1
    idle: float = 300.0
    ping: float = PING
    parameters: int = 100
    clients: int = 2


@dataclass(frozen=True)
class Rounds:
    """Some rounds that were measured.

    Attributes:
        seconds: of each.
        payload: bytes of payload in all of them together, of all clients.
        start: when the first began, by ``time.monotonic``.
        end: when the last was over and the next could begin.
    """

    seconds: list[float]
    payload: int
    start: float
    end: float

    @property
    def median(self) -> float:
        """Seconds of a round."""
        return median(self.seconds)

    def wire(self, meters: Meters, clients: int) -> float:
        """Bytes beyond the payload, per client and round."""
        return (meters.total(self.start, self.end) - self.payload) / (len(self.seconds) * clients)


@dataclass(frozen=True)
class Running:
    """A federation whose rounds are over, and which is still there."""

    rounds: Rounds
    meters: Meters
    processes: tuple[Process, ...]
    more: Mapping[str, float]


def run(idle: float = Sizes.idle, rounds: int = Sizes.rounds) -> dict[str, Any]:
    """Measure; returns the JSON object. Progress goes to standard error.

    Raises:
        SetupError: Flower's programs are not installed.
        FedgeError: a process ended before its time, or took too long.
    """
    return measure(Sizes(idle=idle, rounds=rounds), Terminal(sys.stderr))


def measure(sizes: Sizes, observer: Observer) -> dict[str, Any]:
    """Measure that much."""
    with tempfile.TemporaryDirectory(prefix="fedge-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        provisioned = provision(folder, sizes.clients)
        with observer.stage("fedge's rounds") as stage:
            fedge = stack.enter_context(start_fedge(folder, provisioned, sizes))
            stage.result = f"median {fedge.rounds.median:.3f} s"
        with observer.stage("Flower's rounds") as stage:
            flower = stack.enter_context(start_stock(folder, provisioned, sizes))
            stage.result = f"median {flower.rounds.median:.2f} s"
        with observer.stage("idling") as stage:
            idled = _idle(sizes, (fedge, flower))
            stage.result = f"{idled[1] - idled[0]:.0f} s"
        return _result(sizes, fedge, flower, idled)


def provision(folder: Path, clients: int) -> Path:
    """A new federation of that many devices; returns its folder."""
    from fedge.deploy import enrol
    from fedge.deploy.issue import Device

    made = folder / "federation"
    devices = [Device(f"device{i}") for i in range(clients)]
    enrol.create(made, "bench", ("127.0.0.1", "localhost"), 8443, devices, time.time(), days=1)
    return made


@contextmanager
def start_fedge(folder: Path, provisioned: Path, sizes: Sizes) -> Iterator[Running]:
    """A server and its devices, once their rounds are over."""
    # One round more than count: the last one's acknowledgements come after its end.
    asked = ours.Settings(sizes.clients, sizes.warm + sizes.rounds + 1, sizes.parameters, sizes.ping)
    (port,), state, env = free_ports(1), folder / "server", {**os.environ, **stock.QUIET}
    with Meters([port] * sizes.clients) as meters, ExitStack() as stack:
        line = ours.command("server", state, provisioned / "server", port, asked)
        processes = [stack.enter_context(Process("fedge server", line, env, folder / "server.log"))]
        for i, meter in enumerate(meters.each):
            bundle, own = provisioned / "devices" / f"device{i}", folder / f"device{i}"
            own.mkdir()
            line = ours.command("device", own, bundle, meter.port, asked)
            processes.append(stack.enter_context(Process(f"device {i}", line, env, folder / f"d{i}.log")))
        limit = _START + asked.rounds * _ROUND
        marks = await_("fedge's rounds", lambda: _read(state / ours.MARKS), processes, limit)
        begins = [began for began, _ in marks["rounds"]]
        counted = slice(sizes.warm, -1)
        rounds = Rounds(
            seconds=[ended - began for began, ended in marks["rounds"][counted]],
            payload=sum(marks["payload"][counted]),
            start=begins[sizes.warm],
            end=begins[-1],
        )
        yield Running(rounds, meters, tuple(processes), {})


@contextmanager
def start_stock(folder: Path, provisioned: Path, sizes: Sizes) -> Iterator[Running]:
    """A SuperLink and its SuperNodes, once their rounds are over."""
    place, count = folder / "stock", sizes.stock_warm + sizes.stock_rounds
    place.mkdir()
    port, *own = free_ports(1 + sizes.clients)
    settings: dict[str, int | str] = {"marks": str(place / stock.MARKS), "rounds": count}
    app = stock.write_app(place, {**settings, "parameters": sizes.parameters, "clients": sizes.clients})
    stock.write_connection(place, port, provisioned / "server" / "ca.pem")
    env = stock.environment(place)
    with Meters([port] * sizes.clients) as meters, ExitStack() as stack:

        def start(name: str, line: list[str]) -> Process:
            return stack.enter_context(Process(name, line, env, place / f"{name}.log"))

        link = start("flower-superlink", stock.superlink(provisioned, port))
        await_("Flower's SuperLink", lambda: ours.listens(port) or None, [link], _START)
        lines = [stock.supernode(provisioned, m.port, p) for m, p in zip(meters.each, own, strict=True)]
        nodes = [start(f"flower-supernode-{i}", line) for i, line in enumerate(lines)]
        stock.start_run(app, env)
        marks = await_(
            "Flower's rounds",
            lambda: _complete(place / stock.MARKS, count),
            [link, *nodes],
            _START + count * _STOCK_ROUND,
        )
        yield Running(_stock_rounds(marks, sizes), meters, (link, *nodes), _training(marks, sizes))


def _stock_rounds(marks: Mapping[str, Any], sizes: Sizes) -> Rounds:
    """Arrays go down to be trained on, come back, and go down to be scored."""
    ends = marks["ends"][sizes.stock_warm :]
    payload = 3 * marks["arrays"] * sizes.clients * sizes.stock_rounds
    return Rounds([b - a for a, b in pairwise(ends)], payload, ends[0], ends[-1])


def _training(marks: Mapping[str, Any], sizes: Sizes) -> dict[str, float]:
    """Seconds of a round without its evaluation."""
    pairs = zip(marks["ends"][:-1], marks["trained"], strict=True)
    return {"stock_median_training_s": median([t - e for e, t in pairs][sizes.stock_warm :])}


def _idle(sizes: Sizes, running: tuple[Running, ...]) -> tuple[float, float]:
    """Wait: for a whole number of pings, so that none is counted in part. Returns from when until when."""
    start = time.monotonic() + _SETTLE
    end = start + math.ceil(sizes.idle / sizes.ping) * sizes.ping
    while (left := end - time.monotonic()) > 0:
        for each in running:
            for process in each.processes:
                process.check()
        time.sleep(min(1.0, left))
    return start, end


def _result(sizes: Sizes, fedge: Running, flower: Running, idled: tuple[float, float]) -> dict[str, Any]:
    def day(each: Running) -> float:
        return each.meters.total(*idled) * DAY / (idled[1] - idled[0]) / sizes.clients

    return {
        "fedge_median_s": fedge.rounds.median,
        "stock_median_s": flower.rounds.median,
        "ratio": flower.rounds.median / fedge.rounds.median,
        "wire": {
            "fedge_round": fedge.rounds.wire(fedge.meters, sizes.clients),
            "stock_round": flower.rounds.wire(flower.meters, sizes.clients),
            "fedge_idle_day": day(fedge),
            "stock_idle_day": day(flower),
        },
        "payload": {
            "fedge_round": fedge.rounds.payload / len(fedge.rounds.seconds) / sizes.clients,
            "stock_round": flower.rounds.payload / len(flower.rounds.seconds) / sizes.clients,
        },
        "fedge_slowest_s": max(fedge.rounds.seconds),
        "fedge_rounds_s": fedge.rounds.seconds,
        "stock_rounds_s": flower.rounds.seconds,
        "ratio_training": flower.more["stock_median_training_s"] / fedge.rounds.median,
        **flower.more,
        "idle_s": idled[1] - idled[0],
        "settings": asdict(sizes),
    }


def lines(result: Mapping[str, Any]) -> list[str]:
    """A table for the terminal."""
    wire, payload = result["wire"], result["payload"]
    rows = [
        ("", "fedge", "stock Flower"),
        ("round, median", f"{result['fedge_median_s']:.3f} s", f"{result['stock_median_s']:.2f} s"),
        ("payload of a round", *(f"{payload[k]:,.0f} B" for k in ("fedge_round", "stock_round"))),
        ("beyond the payload", *(f"{wire[k]:,.0f} B" for k in ("fedge_round", "stock_round"))),
        ("an idle day", *(f"{wire[k] / 1000:,.1f} kB" for k in ("fedge_idle_day", "stock_idle_day"))),
    ]
    told = f"{result['ratio']:.0f} times faster; against Flower's round without its evaluation "
    told += f"({result['stock_median_training_s']:.2f} s) {result['ratio_training']:.0f} times"
    idle = f"idle for {result['idle_s']:.0f} s; bytes are of one client, both ways, TLS included"
    return [*(f"{a:<20}{b:>14}{c:>16}" for a, b, c in rows), told, idle]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    return found


def _complete(path: Path, rounds: int) -> dict[str, Any] | None:
    marks = _read(path)
    return marks if marks is not None and len(marks["ends"]) > rounds else None
