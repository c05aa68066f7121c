"""The process of a run: SuperExec's child, not ours; known by what it writes, and held by a pidfd."""

import asyncio
import math
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fedge.deploy.deployment import OUTCOME, RUN, heard, started


@dataclass(frozen=True)
class Ended:
    """How a run ended by itself."""

    code: int
    why: str


@dataclass
class Run:
    """A run, by what its process writes into the state directory."""

    number: int
    state: Path
    ready: float = math.inf  # when its process had begun

    @property
    def lived(self) -> float:
        """Seconds since its process had begun."""
        return max(0.0, time.monotonic() - self.ready)

    def pid(self) -> int | None:
        """The id of its process, once that has said so."""
        said = heard(self.state / RUN)
        return int(said["pid"]) if said.get("run") == self.number else None

    def _handle(self) -> int | None:
        """Its process, which nothing else can be taken for; ``None`` when that is gone."""
        said = heard(self.state / RUN)
        with suppress(ProcessLookupError):
            handle = os.pidfd_open(int(said["pid"]))
            if started(int(said["pid"])) == said["started"]:
                return handle
            os.close(handle)
        return None

    def outcome(self) -> Ended | None:
        """How it ended by itself."""
        said = heard(self.state / OUTCOME)
        return Ended(int(said["exit"]), str(said["why"])) if said.get("run") == self.number else None

    async def gone(self) -> None:
        """Wait until its process is gone."""
        if (handle := self._handle()) is not None:
            try:
                await _readable(handle)
            finally:
                os.close(handle)

    async def kill(self) -> None:
        """SIGTERM, and after a moment SIGKILL: what it has committed, it has committed."""
        if self.pid() is None or (handle := self._handle()) is None:
            return
        try:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with suppress(TimeoutError, ProcessLookupError):
                    signal.pidfd_send_signal(handle, number)
                    await asyncio.wait_for(_readable(handle), 1.0)
        finally:
            os.close(handle)


async def _readable(handle: int) -> None:
    loop, seen = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(handle, seen.set)
    try:
        await seen.wait()
    finally:
        loop.remove_reader(handle)
