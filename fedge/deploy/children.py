"""Child processes of the supervisor: tied to it, heard in one stream, stopped with all they started."""

import asyncio
import json
import math
import os
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TextIO

from fedge.deploy import tied
from fedge.errors import FedgeError

MAX_LINE = 8192
"""Bytes of the longest line of a child that is passed on; the rest of it is cut."""

_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
_LAST_WORDS = 5


@dataclass(frozen=True)
class Log:
    """One stream for all processes, for people or for machines."""

    form: Literal["human", "json"] = "human"
    stream: TextIO = sys.stderr
    clock: Callable[[], float] = time.time

    def say(self, process: str, text: str) -> None:
        """One line; what would move the cursor or colour the terminal is left out."""
        text = _CONTROL.sub("", text).rstrip()
        if not text:
            return
        now = self.clock()
        if self.form == "json":
            line = json.dumps({"time": round(now, 3), "process": process, "text": text})
        else:
            line = f"{time.strftime('%H:%M:%S', time.localtime(now))} {process:<9} {text}"
        self.stream.write(line + "\n")
        self.stream.flush()


@dataclass
class Restarts:
    """How often a child may die.

    A child that dies young, again and again, will not get better: ``in_a_row`` deaths within ``young``
    seconds of being ready, or ``an_hour`` deaths of any kind in an hour, are the end.
    """

    name: str
    in_a_row: int = 5
    young: float = 3.0
    an_hour: int = 120
    _row: int = 0
    _deaths: deque[float] = field(default_factory=deque)

    def died(self, now: float, lived: float, why: str) -> float:
        """It died after ``lived`` seconds; returns seconds to wait before it is started again.

        Raises:
            FedgeError: it has died too often.
        """
        self._row = self._row + 1 if lived < self.young else 0
        self._deaths.append(now)
        while self._deaths[0] < now - 3600.0:
            self._deaths.popleft()
        if self._row >= self.in_a_row or len(self._deaths) >= self.an_hour:
            times = self._row if self._row >= self.in_a_row else len(self._deaths)
            raise FedgeError(f"{self.name} died {times} times, the last time because: {why}")
        return min(0.1 * 4.0**self._row, 15.0)


class Child:
    """One child process, which may be started many times."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
        log: Log,
        expected: tuple[str, ...] = (),
    ) -> None:
        """Nothing is started yet; lines with one of ``expected`` in them say nothing new and are left out."""
        self._expected = expected
        self.name, self._command, self._env, self._log = name, list(command), dict(env), log
        self._process: asyncio.subprocess.Process | None = None
        self._pipe: int | None = None
        self._lines = Lines(self._line)
        self._words: deque[str] = deque(maxlen=_LAST_WORDS)
        self._ready = math.inf

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        return None if self._process is None else self._process.pid

    @property
    def lived(self) -> float:
        """Seconds since it was ready; 0 if it never was."""
        return max(0.0, time.monotonic() - self._ready)

    def is_ready(self) -> None:
        """It does its work."""
        self._ready = time.monotonic()

    async def start(self) -> None:
        """Start it, in a session of its own, tied to this process."""
        tie = [sys.executable, "-I", "-S", tied.__file__, str(os.getpid())]
        self._words.clear()
        mine, its = os.pipe()  # our own: what it starts itself may hold it open for longer than it lives
        try:
            self._process = await asyncio.create_subprocess_exec(
                *tie,
                *self._command,
                env=self._env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=its,
                stderr=its,
                start_new_session=True,
            )
        except BaseException:
            os.close(mine)
            raise
        finally:
            os.close(its)
        self._ready = math.inf
        self._listen(mine)

    async def ended(self) -> str:
        """Wait for its end; returns why it ended, in words."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        code = await self._process.wait()
        self._hear()
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return " | ".join([how, *self._words])

    async def stop(self, grace: float = 5.0) -> None:
        """SIGTERM, and SIGKILL after ``grace`` seconds; to all that it started, too."""
        if self._process is None:
            return
        if grace > 0 and self._process.returncode is None:
            self._signal(signal.SIGTERM)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), grace)
        self._signal(signal.SIGKILL)
        await self._process.wait()
        self._hear()
        self._deaf()
        self._process = None

    def _listen(self, pipe: int) -> None:
        self._deaf()
        os.set_blocking(pipe, False)
        self._pipe, self._lines = pipe, Lines(self._line)
        asyncio.get_running_loop().add_reader(pipe, self._hear)

    def _hear(self) -> None:
        """Pass on what it has said."""
        with suppress(BlockingIOError):
            while self._pipe is not None:
                if data := os.read(self._pipe, 1 << 16):
                    self._lines.add(data)
                else:
                    self._deaf()

    def _deaf(self) -> None:
        if self._pipe is not None:
            asyncio.get_running_loop().remove_reader(self._pipe)
            os.close(self._pipe)
            self._pipe = None
            self._lines.add(b"\n")

    def _signal(self, number: int) -> None:
        """To the whole session; its id is not given to others while one of it lives."""
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def _line(self, text: str) -> None:
        if any(known in text for known in self._expected):
            return
        self._log.say(self.name, text)
        if text.strip():
            self._words.append(_CONTROL.sub("", text).strip()[:300])


class Lines:
    """Cuts what comes in pieces into lines, and passes each on."""

    def __init__(self, line: Callable[[str], None]) -> None:
        """Each line goes to ``line``."""
        self._line, self._rest, self._cut = line, b"", False

    def add(self, data: bytes) -> None:
        """The next piece."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if not self._cut:
                self._line(line[:MAX_LINE].decode(errors="replace"))
            self._cut = False
        if len(self._rest) > MAX_LINE:
            if not self._cut:
                self._line(self._rest[:MAX_LINE].decode(errors="replace"))
            self._rest, self._cut = b"", True


@contextmanager
def voice(path: Path, line: Callable[[str], None]) -> Iterator[None]:
    """Pass on what is written into a named pipe at ``path``, by processes that are not our children.

    Raises:
        OSError: it cannot be made.
    """
    path.unlink(missing_ok=True)
    os.mkfifo(path, 0o600)
    end = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)  # read and write: it never ends
    lines, loop = Lines(line), asyncio.get_running_loop()

    def some() -> None:
        with suppress(BlockingIOError):
            lines.add(os.read(end, 1 << 16))

    loop.add_reader(end, some)
    try:
        yield
    finally:
        loop.remove_reader(end)
        os.close(end)
