"""The gateway: the only thing of a server that devices reach. TLS, WebSocket and the device link in front,
an ``Upstream`` behind it.

A client is known by its certificate (TLS has checked who signed it) and by a hello that its signing key has
signed. What it has of a task, and what has come of its answer, stays here when its connection breaks.
"""

import asyncio
import logging
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fedge.deploy.gateway_admission import REFUSED_FOR, Admission
from fedge.deploy.gateway_connection import Connection
from fedge.deploy.gateway_limits import Address, Addresses, Bucket, Limits
from fedge.deploy.gateway_tasks import Client, Delivery, Tasks, Upstream
from fedge.deploy.registry import Registry
from fedge.edge.sources import FetchError, FolderSource
from fedge.errors import FedgeError, SetupError
from fedge.link.frames import Delay, Hello, LinkError, Reason, Refusal
from fedge.link.gateway_end import AnswerWhole, Event, GatewayDesk, Greeted, Left, TaskHeld
from fedge.link.withheld import Watch
from fedge.release.manifest import MAX_MODEL_BYTES

_log = logging.getLogger("fedge.gateway")

_LOOK = 5.0  # seconds between two looks at the registry, at silent and at expired clients
_BACKLOG = 1024
_OFFENCES = (Reason.PROTOCOL, Reason.TOO_LARGE)  # TLS has checked that it is this client who says it


class Gateway:
    """Serves the device link. ``start``, then ``close``."""

    def __init__(
        self,
        upstream: Upstream,
        registry: Callable[[], Registry],
        context: ssl.SSLContext,
        federation: str,
        limits: Limits | None = None,
        releases: Path | None = None,
    ) -> None:
        """Nothing happens yet.

        Args:
            upstream: tasks and answers.
            registry: who is enrolled now; asked again every few seconds (``RegistryFile``).
            context: of the server, asking for client certificates.
            federation: hex name of the federation.
            limits: what others may take.
            releases: the repository of releases, which enrolled devices may read at ``/releases/``.
        """
        self.limits = limits or Limits()
        self._registry, self._context = registry, context
        self._releases = releases
        self._federation, self._members = federation, registry()
        self.addresses = Addresses(self.limits)
        self.clients: dict[str, Client] = {}
        self.refusals: Counter[str] = Counter()
        self.received = self.sent = 0
        self._tasks = Tasks(upstream, self.limits.task, self._spawn)
        self._work: set[asyncio.Task[None]] = set()
        self._doors: list[socket.socket] = []
        self._open: set[Connection] = set()

    async def start(self, host: str, port: int) -> int:
        """Listen; gives the port, which is chosen if it is 0.

        Raises:
            SetupError: the address or port cannot be had.
        """
        try:
            door = socket.create_server(
                (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=_BACKLOG
            )
        except OSError as error:
            raise SetupError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None
        door.setblocking(False)
        self._doors.append(door)
        self._spawn(self._accept(door))
        self._spawn(self._look())
        self._spawn(self._look_at_answers())
        return int(door.getsockname()[1])

    async def close(self, seconds: int = 5) -> None:
        """Say goodbye to everyone, who should come back in ``seconds``, and stop."""
        for door in self._doors:
            door.close()
        for connection in list(self._open):
            connection.part(LinkError("the server stops or starts anew", Reason.LATER, seconds))
        for work in [*self._work, *(c.pump for c in self.clients.values() if c.pump is not None)]:
            work.cancel()
        for client in self.clients.values():
            if client.leaving is not None:
                client.leaving.cancel()
        for _ in range(50):
            if not self._open:
                break
            await asyncio.sleep(0.02)
        for connection in list(self._open):
            connection.abort()
        await asyncio.sleep(0)

    def admit(self, connection: Connection, hello: Hello, nonce: bytes) -> GatewayDesk:
        """Check certificate and hello of a client, and seat it."""
        expires = self._admission().check(connection.certificate, hello, nonce)
        client = self.clients.get(hello.name)
        if client is None:
            limits = self.limits
            client = self.clients[hello.name] = Client(
                hello.name,
                Bucket(limits.messages, limits.messages_burst),
                Bucket(limits.takeovers / 60, limits.takeovers_burst),
            )
        self._replace(client, hello.instance)
        client.connection, client.instance, client.expires = connection, hello.instance, expires
        client.software, client.watch = hello.software, Watch()
        connection.greeted(client.name, client.bucket)
        self.addresses.greeted(connection.address)
        return client.desk

    def release(self, connection: Connection, path: str) -> bytes:
        """A file of the releases, which any enrolled device may have."""
        self._admission().identify(connection.certificate)
        if self._releases is None:
            raise FetchError("this gateway has no releases", missing=True)
        return FolderSource(self._releases).fetch(path, MAX_MODEL_BYTES)

    def room(self, size: int) -> None:
        """Refuse an answer for which there is no memory now."""
        taken = sum(c.desk.answer.announced.size for c in self.clients.values() if c.desk.answer is not None)
        if taken + size > self.limits.memory:
            raise LinkError("too many answers are on their way", Reason.BUSY, 15)

    def happened(self, connection: Connection, event: Event) -> None:
        """Act on what a client says."""
        client = self.clients[connection.client or ""]
        match event:
            case Greeted():
                self._tasks.welcome(client)
            case AnswerWhole():
                self._tasks.answered(client, event)
            case Refusal():
                self._tasks.refused(client, event)
            case Delay():
                self._tasks.delayed(client, event)
            case TaskHeld():
                pass
            case Left(bye):
                _log.info("%s leaves: %s", client.name, bye.text)
                connection.hang_up()

    def refused(self, connection: Connection, error: LinkError, *, said: bool = False) -> None:
        """Count and log why a connection ends. A client that said what no rule allows answers for it."""
        self.refusals[error.reason.name.lower()] += 1
        who = connection.client or connection.peer
        _log.log(logging.INFO if error.seconds else logging.WARNING, "%s: hung up on: %s", who, error)
        if said and error.reason in _OFFENCES and connection.client is not None:
            self._tasks.accused(self.clients[connection.client], str(error))

    def lost(self, connection: Connection) -> None:
        """A connection has ended; its client may come back."""
        self._open.discard(connection)
        self.addresses.leave(connection.address, stranger=connection.client is None)
        self.received += connection.received
        self.sent += connection.sent
        client = self.clients.get(connection.client or "")
        if client is not None and client.connection is connection:
            client.connection = None
            wait = self.limits.linger
            client.leaving = asyncio.get_running_loop().call_later(wait, self._tasks.gone, client)

    def _replace(self, client: Client, instance: bytes) -> None:
        """The newer connection wins. Two processes that push each other out are slowed down."""
        old = client.connection
        if old is not None:
            if client.instance != instance and not client.takeovers.allows(time.monotonic()):
                text = f"two processes use the enrolment of {client.name}"
                raise LinkError(text, Reason.REPLACED, REFUSED_FOR)
            client.connection = None
            seconds = 0 if client.instance == instance else 60
            old.part(LinkError(f"another connection of {client.name} took over", Reason.REPLACED, seconds))
        if client.leaving is not None:
            client.leaving.cancel()
            client.leaving = None

    async def _accept(self, door: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                peer, address = await loop.sock_accept(door)
            except OSError as error:
                if door.fileno() < 0:
                    return
                _log.error("cannot accept connections: %s", error)
                await asyncio.sleep(0.2)
                continue
            known = self.addresses.arrive(address[0], time.monotonic())
            if known is None:
                self.refusals["crowded"] += 1
                peer.close()
                continue
            await self._seat(peer, known, address[0])

    async def _seat(self, peer: socket.socket, known: Address, address: str) -> None:
        make = partial(Connection, self, self._context, known, address)
        try:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _, connection = await asyncio.get_running_loop().connect_accepted_socket(make, peer)
        except OSError:  # it has gone again
            self.addresses.leave(known, stranger=True)
            peer.close()
            return
        if not connection.closing:
            self._open.add(connection)

    def _admission(self) -> Admission:
        return Admission(self._members, self._federation)

    async def _look_at_answers(self) -> None:
        """Often: whether an answer is kept back."""
        while True:
            await asyncio.sleep(self.limits.stalled)
            self._tasks.look(self.clients.values())

    async def _look(self) -> None:
        """Every few seconds: who was revoked, whose certificate has expired, who is silent."""
        while True:
            await asyncio.sleep(_LOOK)
            try:
                self.look()
            except FedgeError as error:
                _log.error("who is enrolled cannot be read: %s", error)

    def look(self) -> None:
        """The same, once."""
        self._members = self._registry()
        now = time.monotonic()
        self.addresses.forget(now)
        for client in list(self.clients.values()):
            if (connection := client.connection) is None:
                continue
            member = self._members.members.get(client.name)
            if member is None or member.revoked:
                text = f"{client.name} has been revoked by the operator"
                connection.part(LinkError(text, Reason.REVOKED, REFUSED_FOR))
            elif client.expires <= time.time():
                connection.part(LinkError("the certificate has expired", Reason.EXPIRED, REFUSED_FOR))
            elif now - connection.heard > self.limits.silence:
                connection.part(LinkError("nothing was heard for too long", Reason.SILENT))

    def _spawn(self, work: Delivery) -> None:
        task = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: "asyncio.Task[None]") -> None:
        self._work.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("an error that nobody expected", exc_info=error)
