"""A federation with real processes on loopback: the server's tree, devices with and without torch."""

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from fedge.deploy import enrol
from fedge.deploy.federation import Federation
from fedge.federated.journal import Journal

ROOT = Path(__file__).parents[2]
ENV = {
    **os.environ,
    "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}
PATIENCE = 120.0
"""Seconds for what has to happen, on a machine that has other things to do."""

FAST = {
    "teacher.epochs": 3,
    "teacher.cache": "false",
    "student.size": "tiny",
    "student.epochs": 4,
    "student.tune_epochs": 1,
    "local.epochs": 1,
    "redistill.mode": "none",
    "release.every": 1000,
}
"""Settings with which a server is ready in seconds."""


def until(true: Callable[[], object], seconds: float = PATIENCE, why: str = "it did not happen") -> float:
    """Wait for something that has to happen; gives the seconds that it took."""
    start = time.monotonic()
    while not true():
        assert time.monotonic() < start + seconds, why
        time.sleep(0.02)
    return time.monotonic() - start


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as end:
        end.bind(("127.0.0.1", 0))
        return int(end.getsockname()[1])


def provisioned(folder: Path, names: Sequence[str], port: int, days: int = 30) -> Federation:
    """A federation for ``localhost`` at ``port``."""
    devices = [enrol.Device(name, days=days) for name in names]
    return enrol.create(folder, "lab", ("localhost", "127.0.0.1"), port, devices, time.time(), days)


def split(data: Path, folder: Path, names: Sequence[str]) -> list[Path]:
    """The windows of the first clients of ``data`` in one file each, as devices have them."""
    whole, paths = dict(np.load(data)), []
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        mine = whole["client"] == np.unique(whole["client"])[number]
        paths.append(folder / f"{name}.npz")
        np.savez(paths[-1], **{key: value[mine] for key, value in whole.items()})
    return paths


def tree(pid: int) -> dict[int, str]:
    """Everything that runs under a process: id and command line."""
    found: dict[int, str] = {}
    with suppress(OSError):
        for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
            found[child] = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            found |= tree(child)
    return found


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def memory(pid: int, what: str = "VmRSS") -> int:
    """Bytes resident now, or at most so far (``VmHWM``)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


def open_files(pid: int) -> int:
    """How many files and sockets a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def records(state: Path) -> list[dict[str, Any]]:
    """What the journal of a server that has ended says of its rounds."""
    with Journal(state / "journal.sqlite") as journal:
        return journal.rounds()


def set_version(journal: Path, version: int) -> None:
    """Make a journal one of another version."""
    with sqlite3.connect(journal) as database:
        database.execute(f"PRAGMA user_version={version}")
    database.close()


@dataclass
class Process:
    """A process with its output in a file; whatever happens, it and all under it end with the block."""

    command: Sequence[str]
    log: Path
    env: dict[str, str] = field(default_factory=dict)

    def __enter__(self) -> Self:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self.command], env={**ENV, **self.env}, stdout=log, stderr=log
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Its id."""
        return self._process.pid

    def said(self) -> str:
        """Its output so far, and that of earlier processes with the same file."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def hears(self, words: str, times: int = 1) -> None:
        """Wait until it has said this so often."""
        until(lambda: self.said().count(words) >= times or not self.running, why=self.said()[-3000:])
        assert self.said().count(words) >= times, self.said()[-3000:]

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def child(self, word: str) -> int:
        """The id of the process under it whose command line has ``word`` in it; waited for."""
        until(lambda: any(word in line for line in tree(self.pid).values()), why=f"no {word}")
        return next(pid for pid, line in tree(self.pid).items() if word in line)

    def ends(self, seconds: float = PATIENCE) -> int:
        """Wait for its end; gives the exit code."""
        return self._process.wait(seconds)

    def terminate(self) -> int:
        """SIGTERM; gives the exit code, and checks that nothing is left of it."""
        everyone = [self.pid, *tree(self.pid)]
        self._process.send_signal(signal.SIGTERM)
        code = self.ends()
        until(lambda: not any(alive(pid) for pid in everyone))
        return code

    def kill(self) -> None:
        """SIGKILL to it and everything under it, each by its id; nothing is left when this returns."""
        everyone = [self.pid, *tree(self.pid)]
        if self.running:
            for pid in everyone:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._process.wait()
        until(lambda: not any(alive(pid) for pid in everyone[1:]))


def server(
    folder: Path, state: Path, log: Path, data: Path, rounds: int, *more: str, **settings: Any
) -> Process:
    """``fedge server`` with small settings; ``section__key`` stands for ``section.key``."""
    wanted = FAST | {key.replace("__", "."): value for key, value in settings.items()}
    line = ["-m", "fedge", "server", "--federation", str(folder), "--state", str(state), "--data", str(data)]
    line += ["--rounds", str(rounds), "--host", "127.0.0.1", "--status-port", "0", *more]
    return Process([*line, *(w for key, value in wanted.items() for w in ("--set", f"{key}={value}"))], log)


def client(folder: Path, name: str, data: Path, state: Path, log: Path) -> Process:
    """``fedge client``."""
    bundle = str(folder / "devices" / name)
    return Process(["-m", "fedge", "client", bundle, "--data", str(data), "--state", str(state)], log)


def plain_server(folder: Path, state: Path, log: Path, *more: str, **settings: Any) -> Process:
    """A whole server whose rounds need no torch (``plain_rounds``)."""
    line = ["-m", "deploy.plain_rounds", "server", str(folder), str(state), *more]
    return Process([*line, *(f"{key}={value}" for key, value in settings.items())], log)


def plain_client(folder: Path, name: str, state: Path, log: Path, port: int, seconds: float = 0.0) -> Process:
    """A device's process whose rounds take ``seconds`` and need no torch."""
    line = ["-m", "deploy.plain_rounds", "client", str(folder / "devices" / name), str(state), str(port)]
    return Process([*line, str(seconds)], log)
