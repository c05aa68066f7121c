"""A server: its socket, its loop, and an end without a failed request."""

import asyncio
import gc
import ipaddress
import resource
import signal
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from fedge.errors import SetupError
from fedge.serving.batcher import Batcher, Bounds
from fedge.serving.desk import FrontDesk
from fedge.serving.http import Connection, House
from fedge.serving.limits import Limits
from fedge.serving.metrics import Counts
from fedge.serving.model import Served

_BACKLOG = 1024
_OTHER_FILES = 256
_SWEEP_SECONDS = 1.0
_STEP = 0.05  # seconds between two looks at what is still open, while the server ends


@dataclass(frozen=True)
class Settings:
    """How to serve.

    Attributes:
        bounds: of the queue.
        limits: of requests.
        grace: seconds that requests in progress have once the server ends.
        tls: None for none.
        follow: seconds between two looks for a newer model.
    """

    bounds: Bounds = field(default_factory=Bounds)
    limits: Limits = field(default_factory=Limits)
    grace: float = 10.0
    tls: ssl.SSLContext | None = None
    follow: float = 1.0


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        SetupError: there is no such address here, or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise SetupError(f"cannot listen on {host} port {port}: {why}; see --host and --port") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(
    served: Served,
    listener: socket.socket,
    settings: Settings,
    say: Callable[[str], None],
    ready: Callable[[], None],
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was begun.

    Args:
        served: what answers.
        listener: where clients connect.
        settings: how.
        say: is told what happens to the model.
        ready: is called once requests are taken.
    """
    import uvloop

    async def until_signal() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        _allow_files(settings.limits.connections)
        gc.freeze()  # what is here now stays: it need not be looked at again and again
        await serve_until(stop, served, listener, settings, say, ready)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(until_signal())


def _allow_files(connections: int) -> None:
    """Let this process have enough open files for its connections, if it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def serve_until(
    stop: asyncio.Event,
    served: Served,
    listener: socket.socket,
    settings: Settings,
    say: Callable[[str], None],
    ready: Callable[[], None] = lambda: None,
) -> None:
    """The same until ``stop`` is set, within a loop that runs."""
    loop, counts = asyncio.get_running_loop(), Counts()
    with (
        ThreadPoolExecutor(settings.bounds.threads, "fedge-model") as workers,
        ThreadPoolExecutor(1, "fedge-follow") as follower,
    ):
        batcher = Batcher(served, workers, settings.bounds, counts.batch)
        batcher.warm()
        desk = FrontDesk(served, batcher, settings.limits, counts, loop.time)
        house = House(desk, settings.limits)
        desk.connections = lambda: len(house.open)
        server = await loop.create_server(
            lambda: Connection(house), sock=listener, ssl=settings.tls, backlog=_BACKLOG
        )
        following = _follow(served, counts, follower, settings.follow, say)
        keepers = [asyncio.create_task(work) for work in (_sweep(house), following)]
        ready()
        await stop.wait()
        desk.ready, house.closing = False, True
        server.close()
        for keeper in keepers:
            keeper.cancel()
        await _finish(house, settings.grace)
        batcher.close()
        if said := await loop.run_in_executor(follower, served.close):
            say(said)


async def _sweep(house: House) -> None:
    """Close what waits too long."""
    while True:
        await asyncio.sleep(_SWEEP_SECONDS)
        house.sweep(asyncio.get_running_loop().time())


async def _follow(
    served: Served, counts: Counts, thread: ThreadPoolExecutor, every: float, say: Callable[[str], None]
) -> None:
    """Take a newer model when there is one."""
    while True:
        before = served.face()
        if said := await asyncio.get_running_loop().run_in_executor(thread, served.follow):
            say(said)
        counts.swaps += served.face() is not before
        await asyncio.sleep(every)


async def _finish(house: House, grace: float) -> None:
    """Let what was begun be answered, for ``grace`` seconds at most."""
    loop = asyncio.get_running_loop()
    end = loop.time() + grace
    while house.open and loop.time() < end:
        await asyncio.sleep(_STEP)
        house.sweep(loop.time())
    for connection in list(house.open):
        connection.abort()
