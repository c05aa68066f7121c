"""Keeps a device's link to its gateway, for ever: one thread, one socket, nothing polled.

It owns the desk (``fedge.link``) and the files of the link, and begins one conversation after the other
(``device_conversation``). Rounds are run elsewhere: whole tasks are handed
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

from fedge.deploy.device_conversation import Conversation
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
from fedge.link.frames import LinkError, Place, Refusal, Refused

_log = logging.getLogger("fedge.client")

PING = 120.0
"""Seconds between two pings of an idle link: some 41 kB a day, pongs and TLS included."""

_CONNECT = 20.0  # seconds
_LONGEST_WAIT, _LONGEST_HINT = 300.0, 86_400.0


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
        self.wake, self._wake_out = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.stopping = False
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
        self.stopping = True
        self._wake()

    def start(self) -> threading.Thread:
        """``run`` in a thread of its own, which is given."""
        thread = threading.Thread(target=self.run, name="link", daemon=True)
        thread.start()
        return thread

    def run(self) -> None:
        """Keep the link until ``stop``."""
        while not self.stopping:
            wait = self._once()
            self._end = DeviceEnd(self._identity, self._desk, self._largest)
            self._rest(wait)
        with contextlib.suppress(OSError):
            self._account.save()
        self._store.close()

    def _once(self) -> float:
        """One connection, from its beginning to its end; gives the seconds to wait after it."""
        try:
            if (hold := self.hold()) is not None:
                raise TroubleError(
                    hold.kind.name.lower(), f"no link for now: {hold.text}", min(hold.seconds, 300)
                )
            self._talk()
        except Exception as error:  # whatever happens, a device comes back
            if self.stopping:
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
        return 0.0 if self.stopping else back_off(self._failures, 0)

    def hold(self) -> Hold | None:
        """Why the owner wants no link now, if so."""
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
                Conversation(self, self._end, plug, selector, wire, self._ping).run()
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
            selector.register(self.wake, selectors.EVENT_READ)
            while not self.stopping and (left := until - time.monotonic()) > 0:
                selector.select(left if beat is None else min(left, beat))
                self.take_posts()
                notify("WATCHDOG=1")

    def _post(self, act: Callable[[], None]) -> None:
        self._posts.append(act)
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_out, b"!")

    def spent(self) -> Hold | None:
        """Why it may say no more today, if so."""
        return hold_bytes(self._limits, self._account, datetime.now(UTC))

    def moved(self, sent: int = 0, received: int = 0) -> None:
        """Count bytes of the socket."""
        self.sent += sent
        self.received += received
        self._account.add(sent + received, datetime.now(UTC))

    def take_posts(self) -> None:
        """Do what other threads have asked for."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.wake, 4096)
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

    def happened(self, event: Event, now: float) -> None:
        """Act on what the gateway says."""
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
