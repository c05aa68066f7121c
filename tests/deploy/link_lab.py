"""A gateway in a thread, a plain upstream, devices without torch, and a proxy that breaks connections."""

import asyncio
import contextlib
import secrets
import select
import socket
import ssl
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from fedge.deploy import device, enrol, federation, tls
from fedge.deploy.device_limits import ByteAccount, DeviceLimits
from fedge.deploy.device_link import DeviceLink, Server
from fedge.deploy.device_store import LinkStore
from fedge.deploy.device_wire import Wire
from fedge.deploy.device_work import Worker
from fedge.deploy.federation import Enrolment, Federation
from fedge.deploy.gateway import Gateway
from fedge.deploy.gateway_admission import RegistryFile
from fedge.deploy.gateway_limits import Limits
from fedge.deploy.gateway_tasks import Task
from fedge.errors import UpdateError
from fedge.link.device_end import DeviceDesk, DeviceEnd

LARGEST = 8 << 20
Seen = TypeVar("Seen")


def make_federation(folder: Path, devices: tuple[str, ...], days: int = 30) -> Federation:
    """A federation on loopback."""
    wanted = [enrol.Device(name, days=days) for name in devices]
    return enrol.create(folder, "lab", ("127.0.0.1", "localhost"), 8443, wanted, time.time(), days)


def answer_to(frame: bytes) -> bytes:
    """What a device without torch answers."""
    return b"answer to " + frame


@dataclass
class PlainUpstream:
    """Tasks from queues, answers into lists."""

    tasks: "dict[str, asyncio.Queue[Task]]" = field(default_factory=lambda: defaultdict(asyncio.Queue))
    answers: list[tuple[str, bytes, bytes]] = field(default_factory=list)
    refusals: list[tuple[str, bytes, str, bool]] = field(default_factory=list)
    accusations: list[tuple[str, bytes, str]] = field(default_factory=list)
    here: Counter[str] = field(default_factory=Counter)
    unwanted: set[bytes] = field(default_factory=set)
    failures: int = 0  # hand-overs that fail for now

    async def join(self, client: str) -> None:
        self.here[client] += 1

    async def leave(self, client: str) -> None:
        self.here[client] -= 1

    async def next_task(self, client: str) -> Task:
        return await self.tasks[client].get()

    async def answer(self, client: str, task: bytes, frame: bytes) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("not now")
        if task in self.unwanted:
            raise UpdateError("nobody waits for it")
        self.answers.append((client, task, frame))

    async def refuse(self, client: str, task: bytes, text: str, *, lost: bool = False) -> None:
        self.refusals.append((client, task, text, lost))

    async def accuse(self, client: str, task: bytes, text: str) -> None:
        self.accusations.append((client, task, text))


@dataclass
class Running:
    """A gateway that serves, in a thread with an event loop of its own."""

    folder: Path
    limits: Limits = field(default_factory=Limits)
    port: int = 0
    clients: str = "required"
    releases: Path | None = None
    upstream: PlainUpstream = field(default_factory=PlainUpstream)

    def __enter__(self) -> Self:
        started = threading.Event()

        async def serve() -> None:
            self.stop = asyncio.Event()
            server = self.folder / federation.SERVER
            registry = RegistryFile(server / federation.REGISTRY)
            context = tls.server_context(server, self.clients)  # type: ignore[arg-type]
            name = Federation.load(self.folder).id
            self.gateway = Gateway(self.upstream, registry, context, name, self.limits, self.releases)
            self.port = await self.gateway.start("127.0.0.1", self.port)
            started.set()
            await self.stop.wait()
            await self.gateway.close(1)
            await asyncio.sleep(0.05)

        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=lambda: self.loop.run_until_complete(serve()), daemon=True)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.loop.call_soon_threadsafe(self.stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()

    def give(self, client: str, frame: bytes, deadline: float | None = None) -> bytes:
        """A task for a client; gives its id."""
        task = Task(secrets.token_bytes(16), frame, deadline)
        self.loop.call_soon_threadsafe(lambda: self.upstream.tasks[client].put_nowait(task))
        return task.id

    def call(self, what: Callable[[], object]) -> None:
        """Run something in the gateway's thread and wait for it."""
        done = threading.Event()

        def run() -> None:
            what()
            done.set()

        self.loop.call_soon_threadsafe(run)
        assert done.wait(10)


def until(what: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for something that has to happen."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.005)


@dataclass
class Lab:
    """A device whose rounds need no torch; ``start`` and ``stop`` it as often as you like."""

    bundle: Path
    state: Path
    port: int
    limits: DeviceLimits = field(default_factory=DeviceLimits)
    work: Callable[[bytes], bytes] = answer_to
    ping: float = 120.0
    rounds: list[bytes] = field(default_factory=list)
    host: str = "127.0.0.1"

    def start(self) -> Self:
        self.state.mkdir(exist_ok=True)
        enrolment = Enrolment.load(self.bundle)
        files = LinkStore(self.state / "link", LARGEST)
        desk, held = files.load()
        self.worker = Worker(self._round, files, replace(self.limits, nice=0), lambda: None)
        self.link = DeviceLink(
            Server(self.host, self.port),
            lambda: tls.device_context(self.bundle),
            device.identity_of(enrolment, self.bundle),
            files,
            desk,
            self.worker,
            self.limits,
            ByteAccount(self.state / "bytes.json"),
            LARGEST,
            self.ping,
        )
        self.desk = desk
        self.worker.reports = self.link
        if held is not None:
            self.worker.begin(held.id, held.frame, None)
        self._threads = [threading.Thread(target=t, daemon=True) for t in (self.link.run, self.worker.run)]
        for thread in self._threads:
            thread.start()
        return self

    def _round(self, frame: bytes) -> bytes:
        self.rounds.append(frame)
        return self.work(frame)

    def stop(self) -> None:
        self.link.stop()
        self.worker.stop()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Caller:
    """A device's end on a blocking socket, for tests that look at every step."""

    def __init__(self, folder: Path, name: str, port: int, shown: str | None = None) -> None:
        bundle = folder / "devices" / name
        self.end = DeviceEnd(device.identity_of(Enrolment.load(bundle), bundle), DeviceDesk(), 1 << 20)
        self.plug = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.wire = Wire(tls.device_context(folder / "devices" / (shown or name)), "127.0.0.1", port)
        self.wire.start()

    def step(self) -> list[object]:
        """Send what there is; hear what comes next."""
        while self.wire.open and (message := self.end.next_message()) is not None:
            self.wire.send(message)
        self.plug.sendall(self.wire.outgoing())
        data = self.plug.recv(65_536)
        events: list[object] = []
        for message in self.wire.receive(data):
            events += self.end.receive(message)
        return [*events, *([] if data else [EOFError()])]

    def until(self, kind: type[Seen]) -> Seen:
        """The first event of this kind."""
        while True:
            for event in self.step():
                if isinstance(event, kind):
                    return event
                assert not isinstance(event, EOFError), "hung up"

    def close(self) -> None:
        self.plug.close()


class Proxy:
    """Passes bytes on to a port, counts them, and breaks each connection after as many as it is told.

    Once ``stall[0]`` bytes have gone up, nothing moves for ``stall[1]`` seconds, once.
    """

    stall = (0, 0.0)

    def __init__(self, port: int, lives: Iterator[int] | None = None) -> None:
        self._to, self._lives = port, lives
        self.up = self.down = self.connections = 0
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._door.getsockname()[1]
        self.open = True
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.open = False
        self._thread.join(10)
        self._door.close()

    def _serve(self) -> None:
        while self.open:
            if not select.select([self._door], [], [], 0.02)[0]:
                continue
            near, _ = self._door.accept()
            self.connections += 1
            life = next(self._lives, -1) if self._lives is not None else -1
            with near, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._to)) as far:
                self._pass(near, far, life)

    def _pass(self, near: socket.socket, far: socket.socket, life: int) -> None:
        while self.open:
            for plug in select.select([near, far], [], [], 0.02)[0]:
                data = plug.recv(65_536 if life < 0 else max(1, min(life, 65_536)))
                if not data:
                    return
                if life >= 0 and (life := life - len(data)) <= 0:
                    return
                if plug is near:
                    self.up += len(data)
                    if self.stall[1] and self.up > self.stall[0]:
                        time.sleep(self.stall[1])
                        self.stall = (0, 0.0)
                    far.sendall(data)
                else:
                    self.down += len(data)
                    near.sendall(data)


def plain_client(folder: Path, name: str | None, port: int) -> ssl.SSLSocket:
    """A TLS connection, with a device's certificate or with none, for whoever wants to misbehave on it."""
    if name is not None:
        context = tls.device_context(folder / "devices" / name)
    else:
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context.wrap_socket(
        socket.create_connection(("127.0.0.1", port), timeout=10), server_hostname="127.0.0.1"
    )
