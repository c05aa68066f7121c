"""``fedge infer --devices``: two servers, each on a core of its own, beside one of them alone; in turns."""

import os
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from fedge.bench import _edge_start as starts
from fedge.bench._edge_models import windows
from fedge.bench._processes import free_ports
from fedge.serving.across import Devices
from fedge.serving.peer import Address


def across(release: Path, folder: Path, count: int, repeats: int) -> dict[str, Any]:
    """Windows a second of one device and of two, which share out ``count`` windows.

    The ratio is the median over the repeats, each of which has both devices alone and both together. With a
    single core there is nothing to measure.

    Raises:
        FedgeError: a server ended, or does not answer.
    """
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        return {"ratio": None, "cores": len(cores)}
    ports, x = free_ports(2), windows(count)
    addresses = [Address("127.0.0.1", port) for port in ports]
    alone: list[float] = []
    both: list[float] = []
    with ExitStack() as stack:
        for core, port in zip(cores, ports, strict=True):
            command = starts.pinned(starts.serve_command(release, port), core)
            stack.enter_context(starts.start("fedge", command, port, folder / f"device-{port}.log"))
        sets = [[addresses[0]], addresses, [addresses[1]]]
        devices = [Devices(chosen, deadline=60.0) for chosen in sets]
        for one in devices:
            stack.callback(one.close)
            one.predict(x[: count // 8])
        for _ in range(repeats):
            first, together, second = (_per_second(one, x) for one in devices)
            alone.append((first + second) / 2)
            both.append(together)
    return {
        "one_per_s": round(median(alone), 1),
        "two_per_s": round(median(both), 1),
        "ratio": round(median(b / a for a, b in zip(alone, both, strict=True)), 2),
        "cores": len(cores),
        "load": round(os.getloadavg()[0], 1),
    }


def _per_second(devices: Devices, x: Any) -> float:
    start = time.perf_counter()
    devices.predict(x)
    return len(x) / (time.perf_counter() - start)
