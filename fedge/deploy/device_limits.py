"""Limits that belong to a device: its server can neither see nor set them.

CPU share, memory, hours of the day, mains, metered links, bytes per day. What reads the machine is passed in,
so that tests can stand in for it.
"""

import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType, TracebackType

from fedge.durable import replace_file
from fedge.errors import ConfigError
from fedge.link.frames import Refused

POWER = Path("/sys/class/power_supply")
_LOOK_AGAIN = 300  # seconds, where nobody knows how long a condition lasts
_TICK = 0.02  # seconds of CPU time between two rests
_MINUTES = 24 * 60
_COMMAND_SECONDS = 10
_SAVE_BYTES = 65_536  # a kill may forget to count so many bytes


@dataclass(frozen=True)
class Hold:
    """Why nothing may be done now, and for how many seconds at least."""

    kind: Refused
    seconds: int
    text: str


@dataclass(frozen=True)
class Hours:
    """A part of the day in local time: minutes from midnight, ``start`` to ``end``; it may span midnight."""

    start: int
    end: int

    @staticmethod
    def parse(text: str) -> "Hours":
        """``HH:MM-HH:MM``.

        Raises:
            ConfigError: it is something else, or empty.
        """
        start, dash, end = text.partition("-")
        found = Hours(_minutes(start, text), _minutes(end, text))
        if not dash or found.start == found.end:
            raise ConfigError(f"hours are given as 22:00-06:00, not {text!r:.40}")
        return found

    def left(self, minute: int) -> int:
        """Minutes until it begins; 0 while it lasts."""
        inside = (minute - self.start) % _MINUTES < (self.end - self.start) % _MINUTES
        return 0 if inside else (self.start - minute) % _MINUTES


def _minutes(text: str, whole: str) -> int:
    hour, colon, minute = text.strip().partition(":")
    digits = hour.isdecimal() and minute.isdecimal() and hour.isascii() and minute.isascii()
    if not (colon and digits and len(hour) <= 2 and len(minute) == 2 and int(minute) < 60):
        raise ConfigError(f"hours are given as 22:00-06:00, not {whole!r:.40}")
    if int(hour) * 60 + int(minute) > _MINUTES:
        raise ConfigError(f"a day has 24 hours; {whole!r:.40} has more")
    return (int(hour) * 60 + int(minute)) % _MINUTES


@dataclass(frozen=True)
class DeviceLimits:
    """What a device's owner allows.

    Attributes:
        cpu_share: of one core while training, above 0 up to 1.
        nice: added to the niceness of training, 0 to 19.
        memory: most bytes of data that the process may have; ``None``: no limit.
        hours: when rounds may run; empty: always.
        mains_only: whether rounds run on mains only.
        metered_file: a file that exists while the link is metered (and does not hold ``0`` or ``no``).
        metered_command: a command that ends with 0 while it is.
        bytes_per_day: most bytes of the link, both ways together, in a UTC day; ``None``: no limit.
        patience: seconds that a task without a deadline waits for its hour before it is declined.
    """

    cpu_share: float = 1.0
    nice: int = 10
    memory: int | None = None
    hours: tuple[Hours, ...] = ()
    mains_only: bool = False
    metered_file: Path | None = None
    metered_command: tuple[str, ...] = ()
    bytes_per_day: int | None = None
    patience: int = 900

    def __post_init__(self) -> None:
        if not 0.01 <= self.cpu_share <= 1:
            raise ConfigError(f"the CPU share is {self.cpu_share:g}; it must be from 0.01 to 1")
        if not 0 <= self.nice <= 19:
            raise ConfigError(f"the niceness is {self.nice}; it must be from 0 to 19")
        if self.memory is not None and self.memory < 64 << 20:
            raise ConfigError("a limit of less than 64 MiB of memory leaves no room for Python itself")
        if self.bytes_per_day is not None and self.bytes_per_day < 10_000:
            raise ConfigError("fewer than 10,000 bytes a day do not carry even one connection")


def hold_rounds(limits: DeviceLimits, now: datetime, power: Path = POWER) -> Hold | None:
    """Why no round may start now; ``now`` in local time."""
    if limits.hours:
        minutes = min(h.left(now.hour * 60 + now.minute) for h in limits.hours)
        if minutes:
            return Hold(Refused.HOURS, minutes * 60 - now.second, "outside the hours that this device allows")
    if limits.mains_only and not on_mains(power):
        return Hold(Refused.POWER, _LOOK_AGAIN, "this device runs on its battery")
    return None


def hold_link(limits: DeviceLimits, account: "ByteAccount", now: datetime) -> Hold | None:
    """Why there may be no link now; ``now`` in UTC."""
    if (spent := hold_bytes(limits, account, now)) is not None:
        return spent
    if metered(limits):
        return Hold(Refused.METERED, _LOOK_AGAIN, "this device's link is metered now")
    return None


def hold_bytes(limits: DeviceLimits, account: "ByteAccount", now: datetime) -> Hold | None:
    """Whether the bytes of the day are used up; ``now`` in UTC."""
    if limits.bytes_per_day is None or account.of(now) < limits.bytes_per_day:
        return None
    midnight = datetime(now.year, now.month, now.day, tzinfo=UTC) + timedelta(days=1)
    seconds = int((midnight - now).total_seconds()) + 1
    return Hold(Refused.BYTES, seconds, f"the {limits.bytes_per_day} bytes of this day are used up")


def on_mains(power: Path = POWER) -> bool:
    """Whether the machine draws from mains. One that knows of no battery does.

    A supply of type Mains or USB that is online decides; without one, a battery that does not discharge.
    """
    found = [
        (_read(s / "type"), _read(s / "online"), _read(s / "status"), _read(s / "scope"))
        for s in _folders(power)
    ]
    own = [s for s in found if s[3] != "Device"]  # not the battery of a mouse
    if any(kind in ("Mains", "USB", "Wireless") and online == "1" for kind, online, _, _ in own):
        return True
    batteries = [status for kind, _, status, _ in own if kind == "Battery"]
    if any(kind == "Mains" for kind, _, _, _ in own):
        return False
    return all(status in ("Charging", "Full", "Not charging") for status in batteries)


def _folders(power: Path) -> list[Path]:
    try:
        return sorted(power.iterdir())
    except OSError:
        return []


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(64).decode("ascii", "replace").strip()
    except OSError:
        return ""


def metered(
    limits: DeviceLimits, run: Callable[..., "subprocess.CompletedProcess[bytes]"] = subprocess.run
) -> bool:
    """Whether the file or the command of the owner says that the link is metered.

    A command that cannot be run, or does not end in 10 s, counts as yes.
    """
    if limits.metered_file is not None and limits.metered_file.exists():
        return _read(limits.metered_file).lower() not in ("0", "no", "false")
    if not limits.metered_command:
        return False
    try:
        ended = run(list(limits.metered_command), capture_output=True, timeout=_COMMAND_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return True
    return ended.returncode == 0


@dataclass
class ByteAccount:
    """The bytes of the link in the present UTC day, in a file that survives a restart."""

    path: Path
    _day: str = ""
    _bytes: int = 0
    _unsaved: int = 0

    def __post_init__(self) -> None:
        try:
            with self.path.open("rb") as file:
                found = json.loads(file.read(256))
            day, count = str(found["day"]), int(found["bytes"])
        except (OSError, ValueError, KeyError, TypeError):
            return  # none yet, or damaged: the day begins anew
        self._day, self._bytes = day[:10], max(0, count)

    def of(self, now: datetime) -> int:
        """Bytes of the day of ``now`` (UTC)."""
        return self._bytes if self._day == f"{now:%Y-%m-%d}" else 0

    def add(self, count: int, now: datetime) -> None:
        """Count so many; they are written down every 64 KiB."""
        self._bytes, self._day = self.of(now) + count, f"{now:%Y-%m-%d}"
        self._unsaved += count
        if self._unsaved >= _SAVE_BYTES:
            self.save()

    def save(self) -> None:
        """Write it down.

        Raises:
            OSError: the disk does not take it.
        """
        if self._unsaved:
            replace_file(self.path, json.dumps({"day": self._day, "bytes": self._bytes}).encode())
            self._unsaved = 0


@dataclass
class DutyCycle:
    """Holds the process to a share of one core: after every 20 ms of CPU time it rests.

    The rests are taken in the main thread between two steps of Python, by a timer of the process's CPU time.
    So use it in the main thread, around work that is done there.
    """

    share: float
    used: Callable[[], float] = time.process_time
    sleep: Callable[[float], None] = time.sleep
    _then: float = field(default=0.0, init=False)
    _before: object = field(default=None, init=False)

    def __enter__(self) -> None:
        self._then = self.used()
        self._before = signal.signal(signal.SIGPROF, self._on_signal)
        signal.setitimer(signal.ITIMER_PROF, _TICK, _TICK)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, self._before)  # type: ignore[arg-type]  # what signal() gave

    def rest(self) -> None:
        """Sleep in proportion to what was used since the last time."""
        now = self.used()
        self.sleep(max(0.0, now - self._then) * (1 / self.share - 1))
        self._then = self.used()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.rest()


def working(limits: DeviceLimits) -> AbstractContextManager[None]:
    """Around a round, in the main thread: its share of the CPU."""
    return DutyCycle(limits.cpu_share) if limits.cpu_share < 1 else nullcontext()


def settle_in(limits: DeviceLimits) -> None:
    """Once, in the main thread: niceness and memory.

    The limit is the kernel's ``RLIMIT_DATA``: what is private and writable, not what is merely mapped. A
    round that needs more ends with an error, and the device goes on.
    """
    if limits.nice:
        os.setpriority(os.PRIO_PROCESS, 0, min(19, os.getpriority(os.PRIO_PROCESS, 0) + limits.nice))
    if limits.memory is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = limits.memory if hard == resource.RLIM_INFINITY else min(limits.memory, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
