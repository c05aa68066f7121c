"""Processes that a benchmark starts: they die with it, and are ended by their own ids."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeVar

from fedge.deploy import tied
from fedge.errors import FedgeError

_T = TypeVar("_T")

_GRACE = 10.0  # seconds that a process may take to end
_LAST_WORDS = 400


class Process:
    """One process with a session of its own. Use it as a context manager."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        """Start ``command``; what it says goes to the file ``log``."""
        self.name, self._log = name, log
        tie = [sys.executable, "-I", "-S", tied.__file__, str(os.getpid())]
        with log.open("wb") as out:
            self._process = subprocess.Popen(  # noqa: S603  (our own command line)
                [*tie, *command],
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its id."""
        return self._process.pid

    def ended(self) -> bool:
        """Whether it has ended. It is not reaped before ``end``, so that nothing else gets its id."""
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return self._process.returncode is not None or (
            os.waitid(os.P_PID, self._process.pid, options) is not None
        )

    def check(self) -> None:
        """Raise if it has ended.

        Raises:
            FedgeError: with its last words.
        """
        if self.ended():
            words = self._log.read_text(errors="replace").strip()[-_LAST_WORDS:]
            raise FedgeError(f"{self.name} ended before its time: {words or 'it said nothing'}")

    def end(self) -> None:
        """SIGTERM, and SIGKILL to whatever is left of its session."""
        if self._process.returncode is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        end = time.monotonic() + _GRACE
        while not self.ended() and time.monotonic() < end:
            time.sleep(0.02)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Self:
        """The process itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.end()


def await_(what: str, look: Callable[[], _T | None], processes: Sequence[Process], seconds: float) -> _T:
    """What ``look`` gives, once it gives something.

    Raises:
        FedgeError: a process has ended meanwhile, or it took longer than ``seconds``.
    """
    end = time.monotonic() + seconds
    while (found := look()) is None:
        for process in processes:
            process.check()
        if time.monotonic() > end:
            raise FedgeError(f"{what} did not come within {seconds:g} s")
        time.sleep(0.1)
    return found


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    ends = [socket.socket() for _ in range(count)]
    try:
        for end in ends:
            end.bind(("127.0.0.1", 0))
        return [int(end.getsockname()[1]) for end in ends]
    finally:
        for end in ends:
            end.close()
