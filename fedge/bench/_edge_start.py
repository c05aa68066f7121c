"""What starting ``fedge infer`` and ``fedge serve`` takes: seconds, memory, and what is imported."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import numpy as np

from fedge.bench import _edge_launch
from fedge.bench._edge_models import windows
from fedge.bench._processes import Process, await_
from fedge.errors import FedgeError

FEDGE = (sys.executable, "-m", "fedge")
HEAVY = ("torch", "flwr", "onnx", "pandas", "scipy", "sklearn")
"""Packages that no device needs to answer a window."""
_TRACED = {"PYTHONPROFILEIMPORTTIME": "1"}  # each import is a line on standard error
_TRACE = "import time:"
_READY = 60.0  # seconds that a server may take to be ready
_SETTLE = 2.0  # seconds after that, before its memory is looked at
_PIN = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])}); os.execvp(sys.argv[2], sys.argv[2:])"


@dataclass(frozen=True)
class Infer:
    """One run of ``fedge infer`` on one window.

    Attributes:
        seconds: from its start to its end, the answer in between.
        cpu_seconds: of CPU time in these.
        peak_bytes: most memory that was resident.
        answer: what it printed.
    """

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    answer: Mapping[str, object]


def write_window(folder: Path) -> Path:
    """A file with one window."""
    path = folder / "window.npz"
    np.savez(path, X=windows(1))
    return path


def infer(release: Path, window: Path) -> Infer:
    """Run ``fedge infer`` once.

    Raises:
        FedgeError: it failed, or did not answer.
    """
    lines = _run([*FEDGE, "infer", str(release), str(window)], {}).stdout.splitlines()
    taken = json.loads(lines[-1])
    if taken["exit"] or len(lines) != 2:
        raise FedgeError(f"fedge infer ended with {taken['exit']} and {len(lines) - 1} answers, not with one")
    return Infer(taken["seconds"], taken["cpu_seconds"], taken["peak_bytes"], json.loads(lines[0]))


def infer_imports(release: Path, window: Path) -> list[str]:
    """Which of the heavy packages a run of ``fedge infer`` imports."""
    return heavy(_run([*FEDGE, "infer", str(release), str(window)], _TRACED).stderr)


def _run(command: Sequence[str], more: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    launch = [sys.executable, "-I", "-S", _edge_launch.__file__, *command]
    return subprocess.run(  # noqa: S603  (our own command line)
        launch, capture_output=True, text=True, check=True, env={**os.environ, **more}
    )


def heavy(trace: str) -> list[str]:
    """Which of the heavy packages are in the trace of a process's imports.

    Raises:
        FedgeError: there is no trace.
    """
    lines = [line for line in trace.splitlines() if line.startswith(_TRACE)]
    if not lines:
        raise FedgeError("the process left no trace of what it imports")
    found = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in lines}
    return sorted(found & set(HEAVY))


def pinned(command: Sequence[str], core: int | None) -> list[str]:
    """``command``, on one core only."""
    return list(command) if core is None else [sys.executable, "-I", "-S", "-c", _PIN, str(core), *command]


def start(name: str, command: Sequence[str], port: int, log: Path, more: Mapping[str, str] = {}) -> Process:
    """A server, once it is ready to answer on ``port``.

    Raises:
        FedgeError: it ended, or was not ready in time.
    """
    process = Process(name, command, {**os.environ, **more}, log)
    try:
        await_(name, lambda: _is_ready(port) or None, [process], _READY)
    except BaseException:
        process.end()
        raise
    return process


def _is_ready(port: int) -> bool:
    with suppress(OSError, HTTPException), closing(HTTPConnection("127.0.0.1", port, timeout=5)) as asked:
        asked.request("GET", "/v2/health/ready")
        with asked.getresponse() as answer:
            return answer.status == 200
    return False


def serve_command(release: Path, port: int) -> list[str]:
    """``fedge serve`` with nothing but its port."""
    return [*FEDGE, "serve", str(release), "--port", str(port)]


def serve_idle(release: Path, port: int, folder: Path) -> dict[str, float]:
    """Seconds until ``fedge serve`` is ready, and the memory that it holds when nobody asks."""
    began = time.perf_counter()
    with start("fedge serve", serve_command(release, port), port, folder / "idle.log") as process:
        seconds = time.perf_counter() - began
        time.sleep(_SETTLE)
        return {"seconds": seconds, "idle_bytes": resident(process.pid)}


def serve_imports(release: Path, port: int, folder: Path) -> list[str]:
    """Which of the heavy packages ``fedge serve`` imports until it is ready."""
    log = folder / "imports.log"
    with start("fedge serve", serve_command(release, port), port, log, _TRACED):
        pass
    return heavy(log.read_text())


def resident(pid: int) -> int:
    """Bytes of a process's memory that are resident now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise FedgeError(f"process {pid} has no memory")
