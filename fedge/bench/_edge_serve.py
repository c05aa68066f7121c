"""``fedge serve`` under load, beside the same model behind FastAPI: in turns, each on one core."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from fedge.bench import _edge_load as load
from fedge.bench import _edge_start as starts
from fedge.bench._edge_models import TASK, windows
from fedge.bench._processes import free_ports
from fedge.errors import FedgeError

OTHER = "fastapi"


def under_load(release: Path, folder: Path, connections: int, seconds: float, repeats: int) -> dict[str, Any]:
    """Requests a second and milliseconds of each server; FastAPI only where it is installed.

    Raises:
        FedgeError: a server ended, or refused or lost a request.
    """
    names = ["fedge", *([OTHER] if find_spec(OTHER) else [])]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    core, others = _cores()
    request = load.oip_request(TASK, windows(1))
    with ExitStack() as stack:
        process = {
            name: stack.enter_context(
                starts.start(
                    name, starts.pinned(_command(name, release, port), core), port, folder / f"{name}.log"
                )
            )
            for name, port in ports.items()
        }
        stack.enter_context(_only_on(others))
        loads: dict[str, list[load.Load]] = {name: [] for name in names}
        for _ in range(repeats):
            for name in names:
                taken = load.measure(ports[name], request, connections, seconds)
                if taken.failed:
                    raise FedgeError(f"{name} failed {taken.failed} requests: {dict(taken.statuses)}")
                loads[name].append(taken)
        memory = {name: starts.resident(p.pid) for name, p in process.items()}
    found = {name: {**_summary(loads[name]), "resident_bytes": memory[name]} for name in names}
    return {**found, **_compared(found), "connections": connections, "pinned": core is not None}


def _command(name: str, release: Path, port: int) -> list[str]:
    if name == "fedge":
        return starts.serve_command(release, port)
    model = str(release / "model.onnx")
    return [sys.executable, "-m", "fedge.bench._edge_fastapi", model, TASK, str(port)]


def _summary(loads: list[load.Load]) -> dict[str, float]:
    return {
        "requests_per_s": round(median(each.per_second for each in loads), 1),
        "p50_ms": round(median(each.p50_ms for each in loads), 3),
        "p99_ms": round(median(each.p99_ms for each in loads), 3),
        "max_ms": round(max(each.max_ms for each in loads), 3),
    }


def _compared(found: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    if OTHER not in found:
        return {"ratio": None, "not_measured": [OTHER]}
    ratio = found["fedge"]["requests_per_s"] / found[OTHER]["requests_per_s"]
    return {"ratio": round(ratio, 2), "not_measured": []}


def _cores() -> tuple[int | None, set[int]]:
    """A core for the servers, which take turns on it, and those for the load; none where there is one."""
    cores = sorted(os.sched_getaffinity(0))
    return (cores[0], set(cores[1:])) if len(cores) > 1 else (None, set(cores))


@contextmanager
def _only_on(cores: set[int]) -> Iterator[None]:
    """This process, and those that it starts meanwhile, on ``cores`` only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
