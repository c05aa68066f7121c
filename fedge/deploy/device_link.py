"""Keeps a device's link to its gateway, for ever: one thread, one socket, nothing polled.

It owns the desk (``fedge.link``) and the files of the link. Rounds are run elsewhere: whole tasks are handed
to ``Work``, and answers come back through ``answered`` and ``refused``, from any thread.
"""

import contextlib
import logging
import os
import random
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from fedge.deploy.device_limits import ByteAccount, DeviceLimits, Hold, hold_bytes, hold_link
from fedge.deploy.device_store import LinkStore
from fedge.deploy.device_wire import Wire
from fedge.deploy.device_words import Complaints, TroubleError, clock_words, notify, trouble, watchdog_seconds
from fedge.link.device_end import (
    Arrived,
    Begun,
    DeviceDesk,
    DeviceEnd,
    Event,
    Identity,
    Opened,
    Parted,
    Settled,
    TaskWhole,
    Withdrawn,
)
from fedge.link.frames import LinkError, Place, Reason, Refusal, Refused

_log = logging.getLogger("fedge.client")

PING = 120.0
"""Seconds between two pings of an idle link: some 41 kB a day, pongs and TLS included."""

_CONNECT, _GREETING, _DEAD = 20.0, 30.0, 90.0  # seconds
_AHEAD = 32_768  # bytes that wait for the socket
_READ = 65_536
_LONGEST_WAIT, _LONGEST_HINT = 300.0, 86_400.0
_NUDGE = 60.0


class Work(Protocol):
    """Who does tasks."""

    def begin(self, id: bytes, frame: bytes, deadline: float | None) -> None:  # noqa: A002
        """Do this task, by ``deadline`` (of ``time.monotonic``)."""

    def forget(self, id: bytes) -> None:  # noqa: A002
        """This task is not wanted any more."""


@dataclass(frozen=True)
class Server:
    """Where the gateway is."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def back_off(failures: int, hint: int, draw: Callable[[], float] = random.random) -> float:
    """Seconds before the next attempt: the server's hint and a little, or 1, 2, 4 ... 300 s and jitter.

    Args:
        failures: how often it failed in a row, from 1.
        hint: what the server asked for; 0 for nothing.
        draw: uniform from [0, 1).
    """
    if hint:
        return min(hint, _LONGEST_HINT) * (1 + 0.25 * draw())
    return min(_LONGEST_WAIT, 2.0 ** min(failures - 1, 16)) * (0.5 + 0.5 * draw())


class DeviceLink:
    """``run`` in a thread of its own until ``stop``."""

    def __init__(
        self,
        server: Server,
        context: Callable[[], ssl.SSLContext],
        identity: Identity,
        store: LinkStore,
        desk: DeviceDesk,
        work: Work,
        limits: DeviceLimits,
        account: ByteAccount,
        largest_task: int,
        ping: float = PING,
    ) -> None:
        """Nothing happens yet. ``context`` is asked for anew after a failure: certificates get renewed."""
        self._server, self._make_context, self._identity = server, context, identity
        self._store, self._desk, self._work = store, desk, work
        self._limits, self._account, self._largest, self._ping = limits, account, largest_task, ping
        self._context: ssl.SSLContext | None = None
        self._session: ssl.SSLSession | None = None
        self._end = DeviceEnd(identity, desk, largest_task)
        self._posts: deque[Callable[[], None]] = deque()
        self._wake_in, self._wake_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stopping = False
        self._failures = 0
        self._say = Complaints(_log.log)
        self.received = self.sent = 0
        self.connections = self.resumed = 0

    def answered(self, id: bytes, content: bytes) -> None:  # noqa: A002
        """The answer to a task is on the disk: send it. From any thread."""
        self._post(lambda: self._kept(id, self._end.finish(id, content)))

    def refused(self, refusal: Refusal) -> None:
        """A task will not be answered, and why; that is on the disk. From any thread."""
        r = refusal
        self._post(lambda: self._kept(r.id, self._end.refuse(r.id, r.kind, r.seconds, r.text)))

    def delayed(self, id: bytes, hold: Hold) -> None:  # noqa: A002
        """A task starts later, and why. From any thread."""
        self._post(lambda: self._end.delay(id, hold.kind, hold.seconds, hold.text))

    def stop(self) -> None:
        """Say goodbye and end. From any thread, and from a signal handler."""
        self._stopping = True
        self._wake()

    def start(self) -> threading.Thread:
        """``run`` in a thread of its own, which is given."""
        thread = threading.Thread(target=self.run, name="link", daemon=True)
        thread.start()
        return thread

    def run(self) -> None:
        """Keep the link until ``stop``."""
        while not self._stopping:
            wait = self._once()
            self._end = DeviceEnd(self._identity, self._desk, self._largest)
            self._rest(wait)
        with contextlib.suppress(OSError):
            self._account.save()
        self._store.close()

    def _once(self) -> float:
        """One connection, from its beginning to its end; gives the seconds to wait after it."""
        try:
            if (hold := self._hold()) is not None:
                raise TroubleError(
                    hold.kind.name.lower(), f"no link for now: {hold.text}", min(hold.seconds, 300)
                )
            self._talk()
        except Exception as error:  # whatever happens, a device comes back
            if self._stopping:
                return 0.0
            found = trouble(error, str(self._server))
            self._say.about(found.kind, str(found))
            if found.kind.startswith(
                ("certificate", "tls", "os-", "foreign", "expired", "unknown", "revoked")
            ):
                self._session = self._context = None  # perhaps the bundle has been renewed
            if type(error) not in _EXPECTED:
                _log.debug("where it happened", exc_info=error)
            self._failures += 1
            return back_off(self._failures, found.seconds)
        self._failures += 1
        return 0.0 if self._stopping else back_off(self._failures, 0)

    def _hold(self) -> Hold | None:
        return hold_link(self._limits, self._account, datetime.now(UTC))

    def _talk(self) -> None:
        if self._context is None:
            self._context = self._make_context()
        plug = socket.create_connection((self._server.host, self._server.port), timeout=_CONNECT)
        with plug, selectors.DefaultSelector() as selector:
            plug.setblocking(False)
            plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wire = Wire(self._context, self._server.host, self._server.port, self._session)
            try:
                _Conversation(self, plug, selector, wire).run()
            finally:
                if wire.open or self._end.opened:
                    self._session = wire.session
                self._account_for()

    def _account_for(self) -> None:
        try:
            self._account.save()
        except OSError as error:
            self._say.about("disk", str(trouble(error, str(self._server))))

    def _rest(self, seconds: float) -> None:
        """Wait, but not beyond ``stop``; answers that come meanwhile are taken."""
        until = time.monotonic() + seconds
        beat = watchdog_seconds()
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_in, selectors.EVENT_READ)
            while not self._stopping and (left := until - time.monotonic()) > 0:
                selector.select(left if beat is None else min(left, beat))
                self._take_posts()
                notify("WATCHDOG=1")

    def _post(self, act: Callable[[], None]) -> None:
        self._posts.append(act)
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_out, b"!")

    def _take_posts(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_in, 4096)
        while self._posts:
            self._posts.popleft()()

    def _kept(self, id: bytes, wanted: bool) -> None:  # noqa: A002
        if not wanted:
            self._forget(id)

    def _forget(self, id: bytes) -> None:  # noqa: A002
        self._work.forget(id)
        try:
            self._store.forget(id)
        except OSError as error:
            self._say.about("disk", str(trouble(error, str(self._server))))

    def _happened(self, event: Event, now: float) -> None:
        match event:
            case Opened(server_time, _):
                self._opened(server_time)
            case Begun(told):
                self._to_disk(lambda: self._store.begin(told))
            case Arrived(data):
                self._to_disk(lambda: self._store.append(data))
            case TaskWhole(task, frame, seconds):
                self._take_task(task, frame, now + seconds if seconds else None)
            case Withdrawn(task):
                _log.info("the server no longer wants task %s", task.hex()[:8])
                self._forget(task)
            case Settled(task, _):
                self._forget(task)
            case Parted(reason, seconds, text):
                raise LinkError(text, reason, seconds)

    def _opened(self, server_time: int) -> None:
        self._failures = 0
        self.connections += 1
        self._say.over(f"the link to {self._server} is up again")
        if self.connections == 1:
            _log.info("the link to %s is up", self._server)
        notify(f"STATUS=linked to {self._server}")
        if (words := clock_words(time.time() - server_time)) is not None:
            self._say.about("clock", words)

    def _to_disk(self, act: Callable[[], None]) -> None:
        """What is lost here is only sent again; the whole task is what counts."""
        try:
            act()
        except OSError as error:
            self._say.about("disk", str(trouble(error, str(self._server))))

    def _take_task(self, id: bytes, frame: bytes, deadline: float | None) -> None:  # noqa: A002
        try:
            self._store.keep_task(id, frame)
        except OSError as error:
            found = trouble(error, str(self._server))
            self._say.about("disk", str(found))
            self._desk.held = Place(id, len(frame))
            self._end.refuse(id, Refused.SETUP, 600, str(found))
            return
        self._end.stored(id, len(frame))
        self._work.begin(id, frame, deadline)


_EXPECTED = (
    OSError,
    TimeoutError,
    ConnectionError,
    ConnectionResetError,
    LinkError,
    TroubleError,
    ssl.SSLError,
)


class _Conversation:
    """One open socket, until it ends."""

    def __init__(
        self, link: DeviceLink, plug: socket.socket, selector: selectors.BaseSelector, wire: Wire
    ) -> None:
        self._link, self._plug, self._selector, self._wire = link, plug, selector, wire
        self._out = bytearray()
        self._began = self._read_at = self._said = self._wrote = time.monotonic()
        self._pinged: float | None = None
        self._interval = link._ping
        self._resumed = False

    def run(self) -> None:
        """Raises what ended it; returns when the link is stopped."""
        self._selector.register(self._plug, selectors.EVENT_READ)
        self._selector.register(self._link._wake_in, selectors.EVENT_READ)
        self._wire.start()
        while True:
            self._fill()
            if self._link._stopping and (not self._end.opened or self._goodbye()):
                return
            mask = selectors.EVENT_WRITE if self._out else 0
            mask |= selectors.EVENT_READ if len(self._out) < 2 * _AHEAD else 0
            self._selector.modify(self._plug, mask)
            ready = {key.fileobj: events for key, events in self._selector.select(self._wait())}
            self._link._take_posts()
            self._move(ready.get(self._plug, 0))
            self._keep_alive()

    @property
    def _end(self) -> DeviceEnd:
        return self._link._end

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
        link, now = self._link, time.monotonic()
        if ready & selectors.EVENT_WRITE and self._out:
            with contextlib.suppress(BlockingIOError):
                count = self._plug.send(self._out)
                del self._out[:count]
                self._wrote = now
                link.sent += count
                link._account.add(count, datetime.now(UTC))
        if ready & selectors.EVENT_READ:
            with contextlib.suppress(BlockingIOError):
                data = self._plug.recv(_READ)
                self._read_at, self._pinged = now, None
                link.received += len(data)
                link._account.add(len(data), datetime.now(UTC))
                self._hear(data, now)

    def _hear(self, data: bytes, now: float) -> None:
        for message in self._wire.receive(data):
            for event in self._end.receive(message):
                if isinstance(event, Opened):
                    self._interval = min(self._interval, event.silence * 0.4)
                    self._link.resumed += self._wire.resumed
                self._link._happened(event, now)
        if self._wire.closed or not data:
            raise ConnectionResetError(0, "the server closed the connection")

    def _wait(self) -> float:
        """Seconds until something has to be looked at."""
        now = time.monotonic()
        due = [self._said + self._interval, self._read_at + _DEAD if self._pinged else now + self._interval]
        if not self._end.opened:
            due.append(self._began + _GREETING)
        beat = watchdog_seconds()
        return max(0.01, min([*due, *([now + beat] if beat else [])]) - now)

    def _keep_alive(self) -> None:
        now, link = time.monotonic(), self._link
        notify("WATCHDOG=1")
        if not self._end.opened:
            if now - self._began > _GREETING:
                raise TimeoutError
            return
        if self._pinged is not None and now - max(self._pinged, self._wrote, self._read_at) > _DEAD:
            raise TimeoutError
        if now - self._said >= self._interval:
            if now - self._read_at > _NUDGE:
                self._end.nudge()
            self._wire.ping()
            self._said, self._pinged = now, self._pinged or now
            if (hold := link._hold()) is not None:
                self._part(hold)
        elif (spent := hold_bytes(link._limits, link._account, datetime.now(UTC))) is not None:
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
