"""One batch for several devices: who does which part next, and what to do when one fails. No IO.

A batch is cut into parts. A device that is free takes the next part; one for which none is left takes over
the part that another has had for too long, and whichever answer comes first counts. A part whose device
failed goes back to the front. A device that failed rests, longer each time, and is then tried again.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from fedge.errors import ReleaseError
from fedge.serving.peer import PeerError

_REST, _LONGEST_REST = 0.2, 30.0  # seconds after the first failure, and at most
_TRIES = 3  # failures in a row of each device after which there is no hope
_PART_TRIES = 3  # devices on which the model itself may fail on a part
_SLOW = 2.0  # times the median that a part may take before another device tries, too


@dataclass
class _Device:
    """How a device does: failures in a row, until when it rests, what it said last."""

    failures: int = 0
    rests_until: float = -math.inf
    said: str = ""


@dataclass
class _Part:
    """A part that is out: since when, with how many devices."""

    since: float
    holders: int = 1


@dataclass
class Split:
    """The state of one batch. Devices are numbered; times are seconds of any one clock.

    Attributes:
        parts: how many there are.
        names: of the devices, for messages.
        patience: seconds without any part being finished after which the batch is given up.
        now: when it began.
    """

    parts: int
    names: Sequence[str]
    patience: float
    now: float
    _left: deque[int] = field(init=False)
    _out: dict[int, _Part] = field(default_factory=dict)
    _done: set[int] = field(default_factory=set)
    _broken: dict[int, int] = field(default_factory=dict)
    _took: deque[float] = field(default_factory=lambda: deque(maxlen=64))

    def __post_init__(self) -> None:
        self._left = deque(range(self.parts))
        self._devices = [_Device() for _ in self.names]
        self._progress = self.now

    @property
    def finished(self) -> bool:
        """Whether every part has been answered."""
        return len(self._done) == self.parts

    def take(self, device: int, now: float) -> int | None:
        """The next part for ``device``; None if there is none for it at present."""
        if self.finished or now < self._devices[device].rests_until:
            return None
        if self._left:
            part = self._left.popleft()
            self._out[part] = _Part(now)
            return part
        return self._take_over(now)

    def _take_over(self, now: float) -> int | None:
        """The part that has been out for longest, if for too long, and with one device only."""
        alone = [part for part, out in self._out.items() if out.holders == 1]
        if not alone or not self._took:
            return None
        oldest = min(alone, key=lambda part: self._out[part].since)
        if now - self._out[oldest].since < _SLOW * statistics.median(self._took):
            return None
        self._out[oldest].holders += 1
        return oldest

    def done(self, device: int, part: int, now: float, took: float) -> bool:
        """``device`` answered ``part`` after ``took`` seconds; False if another had before."""
        self._devices[device] = _Device()
        self._took.append(took)
        self._progress = now
        if part in self._done:
            return False
        self._done.add(part)
        self._out.pop(part, None)
        return True

    def busy(self, device: int, part: int, now: float, said: str) -> None:
        """``device`` has too much to do: it rests for a moment, which is no failure.

        Raises:
            PeerError: nothing was finished for too long.
        """
        own = self._devices[device]
        own.rests_until, own.said = now + _REST, said
        self._give_back(part)
        self.check(now)

    def failed(self, device: int, part: int, now: float, said: str) -> None:
        """``device`` did not answer ``part``.

        Raises:
            PeerError: every device has failed too often.
        """
        own = self._devices[device]
        own.failures, own.said = own.failures + 1, said
        own.rests_until = now + min(_LONGEST_REST, _REST * 2 ** (own.failures - 1))
        self._give_back(part)
        self.check(now)

    def broken(self, device: int, part: int, now: float, said: str) -> None:
        """The model itself failed on ``part``: it is tried elsewhere, a few times.

        Raises:
            ReleaseError: it failed everywhere.
            PeerError: nothing was finished for too long.
        """
        self._broken[part] = self._broken.get(part, 0) + 1
        if self._broken[part] >= _PART_TRIES:
            raise ReleaseError(f"the model fails on every device: {said}")
        self._devices[device].said = said
        self._give_back(part)
        self.check(now)

    def check(self, now: float) -> None:
        """Give up if there is no hope.

        Raises:
            PeerError: every device has failed too often, or nothing was finished for too long.
        """
        hopeless = all(own.failures >= _TRIES for own in self._devices)
        if not self.finished and (hopeless or now - self._progress > self.patience):
            said = "; ".join(own.said or f"{name}: no answer" for name, own in self._named())
            raise PeerError(f"no device answers any more: {said}")

    def _named(self) -> list[tuple[str, _Device]]:
        return list(zip(self.names, self._devices, strict=True))

    def _give_back(self, part: int) -> None:
        """``part`` is to be done by somebody, unless somebody else still has it or has done it."""
        out = self._out.get(part)
        if out is None:
            return
        out.holders -= 1
        if not out.holders:
            del self._out[part]
            self._left.appendleft(part)
