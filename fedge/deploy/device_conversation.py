"""One open socket of a device's link: what is said and heard, and how its end is noticed."""

import contextlib
import selectors
import socket
import time
from typing import Protocol

from fedge.deploy.device_limits import Hold
from fedge.deploy.device_wire import Wire
from fedge.deploy.device_words import TroubleError, notify, watchdog_seconds
from fedge.link.device_end import DeviceEnd, Event, Opened
from fedge.link.frames import Reason

DEAD = 90.0
"""Seconds without a sign of life after which a link that was pinged is given up."""

_GREETING = 30.0  # seconds
_AHEAD = 32_768  # bytes that wait for the socket
_READ = 65_536
_NUDGE = 60.0  # seconds


class Link(Protocol):
    """Who keeps the link; ``device_link.DeviceLink`` does.

    Attributes:
        stopping: it is to end with a goodbye.
        wake: a file that becomes readable when another thread wants something.
        resumed: connections that went on with an earlier TLS session.
    """

    stopping: bool
    wake: int
    resumed: int

    def take_posts(self) -> None:
        """Do what other threads have asked for."""

    def happened(self, event: Event, now: float) -> None:
        """Act on what the gateway says."""

    def hold(self) -> Hold | None:
        """Why the owner wants no link now, if so."""

    def spent(self) -> Hold | None:
        """Why it may say no more today, if so."""

    def moved(self, sent: int = 0, received: int = 0) -> None:
        """Count bytes of the socket."""


class Conversation:
    """One open socket, until it ends."""

    def __init__(
        self,
        link: Link,
        end: DeviceEnd,
        plug: socket.socket,
        selector: selectors.BaseSelector,
        wire: Wire,
        ping: float,
    ) -> None:
        """Nothing is said yet; ``ping`` is in seconds, less if the gateway asks for it."""
        self._link, self._end, self._plug, self._selector, self._wire = link, end, plug, selector, wire
        self._out = bytearray()
        self._began = self._read_at = self._said = self._wrote = time.monotonic()
        self._pinged: float | None = None
        self._interval = ping

    def run(self) -> None:
        """Raises what ended it; returns when the link is stopped."""
        self._selector.register(self._plug, selectors.EVENT_READ)
        self._selector.register(self._link.wake, selectors.EVENT_READ)
        self._wire.start()
        while True:
            self._fill()
            if self._link.stopping and (not self._end.opened or self._goodbye()):
                return
            mask = selectors.EVENT_WRITE if self._out else 0
            mask |= selectors.EVENT_READ if len(self._out) < 2 * _AHEAD else 0
            self._selector.modify(self._plug, mask)
            ready = {key.fileobj: events for key, events in self._selector.select(self._wait())}
            self._link.take_posts()
            self._move(ready.get(self._plug, 0))
            self._keep_alive()

    def _fill(self) -> None:
        """Bytes for the socket, a little ahead of it."""
        while len(self._out) < _AHEAD:
            size = 0  # small frames share a TLS record
            while self._wire.open and size < 4096 and (message := self._end.next_message()) is not None:
                self._wire.send(message)
                size += len(message)
            data = self._wire.outgoing()
            if not data:
                return
            if size:
                self._said = time.monotonic()
            self._out += data

    def _move(self, ready: int) -> None:
        now = time.monotonic()
        if ready & selectors.EVENT_WRITE and self._out:
            with contextlib.suppress(BlockingIOError):
                count = self._plug.send(self._out)
                del self._out[:count]
                self._wrote = now
                self._link.moved(sent=count)
        if ready & selectors.EVENT_READ:
            with contextlib.suppress(BlockingIOError):
                data = self._plug.recv(_READ)
                self._read_at, self._pinged = now, None
                self._link.moved(received=len(data))
                self._hear(data, now)

    def _hear(self, data: bytes, now: float) -> None:
        for message in self._wire.receive(data):
            for event in self._end.receive(message):
                if isinstance(event, Opened):
                    self._interval = min(self._interval, event.silence * 0.4)
                    self._link.resumed += self._wire.resumed
                self._link.happened(event, now)
        if self._wire.closed or not data:
            raise ConnectionResetError(0, "the server closed the connection")

    def _wait(self) -> float:
        """Seconds until something has to be looked at."""
        now = time.monotonic()
        due = [self._said + self._interval, self._read_at + DEAD if self._pinged else now + self._interval]
        if not self._end.opened:
            due.append(self._began + _GREETING)
        beat = watchdog_seconds()
        return max(0.01, min([*due, *([now + beat] if beat else [])]) - now)

    def _keep_alive(self) -> None:
        now = time.monotonic()
        notify("WATCHDOG=1")
        if not self._end.opened:
            if now - self._began > _GREETING:
                raise TimeoutError
            return
        if self._pinged is not None and now - max(self._pinged, self._wrote, self._read_at) > DEAD:
            raise TimeoutError
        if now - self._said >= self._interval:
            if now - self._read_at > _NUDGE:
                self._end.nudge()
            self._wire.ping()
            self._said, self._pinged = now, self._pinged or now
            if (hold := self._link.hold()) is not None:
                self._part(hold)
        elif (spent := self._link.spent()) is not None:
            self._part(spent)

    def _part(self, hold: Hold) -> None:
        """The device's owner allows no more."""
        self._end.part(Reason.LATER, hold.seconds, hold.text)
        self._farewell()
        raise TroubleError(hold.kind.name.lower(), f"no link for now: {hold.text}", min(hold.seconds, 300))

    def _goodbye(self) -> bool:
        self._end.part(Reason.LATER, 0, "the device stops")
        self._farewell()
        return True

    def _farewell(self) -> None:
        """Send what is left, for two seconds at most, and hang up."""
        self._fill()
        self._wire.close()
        self._out += self._wire.outgoing()
        self._plug.settimeout(2.0)
        with contextlib.suppress(OSError):
            self._plug.sendall(self._out)
