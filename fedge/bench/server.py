"""``fedge bench server``: how many updates a second a server takes in, and what their number costs in memory.

One round of 10,000 clients in this process, by the code of every round: tasks are made, answers parsed, their
signatures verified, the payloads decoded and held against the limits, added up, the round closed and
committed to the journal. What the clients do themselves is not timed. ``docs/bench-round.md`` says more.
"""

import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from fedge.errors import FedgeError
from fedge.observe import Observer, Terminal

FEDERATION = "be" * 16


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        clients: in a round.
        few: clients in the round that memory is compared with.
        parameters: of the student whose updates are timed.
        large: of the model whose memory is measured.
        repeats: rounds that are timed.
        payloads: different updates; clients send them in turns, each with its own signature.
    """

    clients: int = 10_000
    few: int = 100
    parameters: int = 20_000
    large: int = 1_000_000
    repeats: int = 3
    payloads: int = 200


@dataclass(frozen=True)
class Taken:
    """What a round took of the server, without the clients' share.

    Attributes:
        wall: seconds by the clock.
        cpu: seconds of CPU time of the process.
    """

    wall: float
    cpu: float


def run(clients: int = Sizes.clients) -> dict[str, Any]:
    """Measure; returns the JSON object. Progress goes to standard error.

    Raises:
        FedgeError: a round did not count all updates.
    """
    return measure(Sizes(clients=clients), Terminal(sys.stderr))


def measure(sizes: Sizes, observer: Observer) -> dict[str, Any]:
    """Measure that much."""
    taken = []
    with observer.stage("updates") as stage, one_thread():
        for repeat in range(sizes.repeats):
            taken.append(one_round(sizes.clients, sizes.parameters, sizes.payloads))
            observer.progress(repeat + 1, sizes.repeats)
        wall, cpu = median(t.wall for t in taken), median(t.cpu for t in taken)
        stage.result = f"{sizes.clients / wall:,.0f} a second"
    with observer.stage("memory") as stage:
        peaks = {n: _peak_of(n, sizes.large) for n in (sizes.few, sizes.clients)}
        growth = (peaks[sizes.clients] - peaks[sizes.few]) / (4 * sizes.large)
        stage.result = f"{growth:.2f} models"
    return {
        "updates_per_s": sizes.clients / wall,
        "memory_growth_models": growth,
        "updates_per_cpu_s": sizes.clients / cpu,
        "us_per_update": parts(sizes.parameters),
        "peak_bytes": {str(n): peak for n, peak in peaks.items()},
        "growth_bytes_per_client": (peaks[sizes.clients] - peaks[sizes.few]) / (sizes.clients - sizes.few),
        "rounds_s": [t.wall for t in taken],
        "settings": asdict(sizes),
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch takes part in nothing here; it shall not start threads either."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def one_round(clients: int, parameters: int, payloads: int) -> Taken:
    """One round of ``clients``, with a journal in a temporary folder.

    Raises:
        FedgeError: not every update counted.
    """
    from fedge.bench import _synthetic as synthetic
    from fedge.federated.journal import Journal
    from fedge.federated.server import run_round

    config = synthetic.settings(rounds=2)  # a run's last round would be another thing
    prepared = synthetic.prepared_of(config, parameters, FEDERATION)
    coded = synthetic.payloads_of(prepared.plan.uplink, prepared.support.shapes(), payloads)
    crowd = synthetic.Crowd(prepared.plan, coded)
    enrolled = {f"c{i:06d}": b"" for i in range(clients)}
    enrolled = {client: synthetic.key_of(client).public for client in enrolled}
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal.sqlite") as journal:
        federation = synthetic.federation_of(config, prepared, crowd, enrolled, journal)
        state = synthetic.welcomed_state(federation)
        gc.collect()
        _forget_peak()
        wall, cpu = time.perf_counter(), time.process_time()
        run_round(state, federation)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        counted = len(journal.rounds()[0]["counted"])
    if counted != clients:
        raise FedgeError(f"{counted} of {clients} updates were counted: this measures nothing")
    return Taken(wall - crowd.seconds, cpu - crowd.cpu)


def parts(parameters: int, repeats: int = 7) -> dict[str, float]:
    """Microseconds of CPU time of the three parts that an update alone costs; the round has others."""
    from fedge.bench import _synthetic as synthetic
    from fedge.bench._timing import race
    from fedge.federated.adder import Adder
    from fedge.federated.checks import check_trained, sound_change
    from fedge.federated.coding import build_codec
    from fedge.federated.frames import Train, encode_task
    from fedge.federated.journal import Journal
    from fedge.federated.lineage import begin

    prepared = synthetic.prepared_of(synthetic.settings(2), parameters, FEDERATION)
    plan, key = prepared.plan, synthetic.key_of("c")
    (payload,) = synthetic.payloads_of(plan.uplink, prepared.support.shapes(), 1)
    task = Train(1, 0, 0, begin(prepared.snapshot), (), 0.1)
    frame = synthetic.answer(encode_task(task), "c", key, plan.federation, payload)
    crowd, enrolled = synthetic.Crowd(plan, []), {"c": key.public}
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal.sqlite") as journal:
        fed = synthetic.federation_of(synthetic.settings(2), prepared, crowd, enrolled, journal)
        adder, uplink = Adder(fed, 0), build_codec(plan.uplink)
        trained = check_trained("c", frame, task, fed)
        sound = sound_change(trained, fed, uplink)
        if sound is None:
            raise FedgeError("the synthetic update is empty")
        change, weight = sound
        taken = race(
            {
                "verify": lambda: check_trained("c", frame, task, fed),
                "decode": lambda: sound_change(trained, fed, uplink),
                "add": lambda: adder.add("c", change, weight),
            },
            repeats,
        )
    return {name: round(seconds.cpu * 1e6, 1) for name, seconds in taken.items()}


def _peak_of(clients: int, parameters: int) -> int:
    """The largest resident memory of a process while it runs one such round, in bytes."""
    line = [sys.executable, "-m", "fedge.bench.server", str(clients), str(parameters)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)  # noqa: S603  (our own command line)
    if done.returncode:
        raise FedgeError(f"measuring memory failed: {done.stderr.strip()[-400:]}")
    return int(json.loads(done.stdout.splitlines()[-1]))


def _forget_peak() -> None:
    """What was resident before the round does not count (``proc(5)``, ``clear_refs``)."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    """The largest resident memory since then, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def lines(result: Mapping[str, Any]) -> list[str]:
    """A few lines for the terminal."""
    sizes, us = result["settings"], result["us_per_update"]
    return [
        f"{result['updates_per_s']:,.0f} updates a second ({result['updates_per_cpu_s']:,.0f} by CPU time): "
        f"{sizes['clients']:,} clients, {sizes['parameters']:,} parameters",
        f"of an update: verify {us['verify']:.0f} us, decode {us['decode']:.0f} us, add {us['add']:.0f} us",
        f"memory grows by {result['memory_growth_models']:.2f} models of {sizes['large']:,} parameters "
        f"between {sizes['few']:,} and {sizes['clients']:,} clients "
        f"({result['growth_bytes_per_client']:,.0f} bytes a client)",
    ]


if __name__ == "__main__":
    with one_thread():
        one_round(int(sys.argv[1]), int(sys.argv[2]), payloads=8)
    print(_peak())  # noqa: T201  (the answer to _peak_of)
