"""The gateway: the only thing of a server that devices reach. TLS, WebSocket and the device link in front,
an ``Upstream`` behind it.

A client is known by its certificate (TLS has checked who signed it) and by a hello that its signing key has
signed. What it has of a task, and what has come of its answer, stays here when its connection breaks.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol

from cryptography import x509

from fedge.deploy import pki
from fedge.deploy.gateway_connection import Connection
from fedge.deploy.gateway_limits import Address, Addresses, Bucket, Limits
from fedge.deploy.registry import Registry
from fedge.edge.sources import FetchError, FolderSource
from fedge.errors import FedgeError, PayloadError, SetupError, SignatureError
from fedge.link.device_end import HELLO, hello_parts
from fedge.link.frames import VERSION, Delay, Hello, LinkError, Outcome, Reason, Refusal, Refused
from fedge.link.gateway_end import AnswerWhole, Event, GatewayDesk, Greeted, Left, TaskHeld
from fedge.release.manifest import MAX_MODEL_BYTES
from fedge.signing import verify

Delivery = Coroutine[object, object, None]

_log = logging.getLogger("fedge.gateway")

_LOOK = 5.0  # seconds between two looks at the registry, at silent and at expired clients
_BACKLOG = 1024
_REFUSED_FOR = 300  # seconds after which a refused device may ask again


@dataclass(frozen=True)
class Task:
    """Something for a client to do.

    Attributes:
        id: 16 bytes, this task's alone.
        frame: for ``fedge.federated.client.client_round``.
        deadline: Unix time after which nobody wants the answer.
    """

    id: bytes
    frame: bytes
    deadline: float | None = None


class Upstream(Protocol):
    """Where tasks come from and answers go."""

    async def join(self, client: str) -> None:
        """A device of this name is there."""

    async def leave(self, client: str) -> None:
        """It has gone."""

    async def next_task(self, client: str) -> Task:
        """Its next task, waited for."""

    async def answer(self, client: str, task: bytes, frame: bytes) -> None:
        """Its answer; raises ``FedgeError`` if nobody wants it any more, ``OSError`` to be asked again."""

    async def refuse(self, client: str, task: bytes, text: str, *, lost: bool = False) -> None:
        """It will not do this task, and why; ``lost``: it must be welcomed again. Raises likewise."""


@dataclass
class RegistryFile:
    """``registry.json``, read again when it changes; while it cannot be read, what was in it last holds."""

    path: Path
    _known: Registry | None = None

    def __call__(self) -> Registry:
        """Who is enrolled now.

        Raises:
            SetupError: it was never readable.
        """
        try:
            self._known = Registry.load(self.path, self._known)
        except SetupError as error:
            if self._known is None:
                raise
            _log.error("%s; going on with what was in it before", error)
        return self._known


@dataclass(eq=False)
class Client:
    """One client that was here since the gateway started."""

    name: str
    bucket: Bucket
    takeovers: Bucket
    desk: GatewayDesk = field(default_factory=GatewayDesk)
    connection: Connection | None = None
    instance: bytes = b""
    expires: float = 0.0
    software: str = ""
    deadline: float | None = None
    pump: "asyncio.Task[None] | None" = None
    leaving: asyncio.TimerHandle | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    handing: bytes | None = None
    delayed: str = ""

    def seconds_left(self) -> int:
        """For its task, 0 where there is no end."""
        return 0 if self.deadline is None else max(1, int(self.deadline - time.time()))


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
        self._upstream, self._registry, self._context = upstream, registry, context
        self._releases = releases
        self._federation, self._members = federation, registry()
        self.addresses = Addresses(self.limits)
        self.clients: dict[str, Client] = {}
        self.refusals: Counter[str] = Counter()
        self.received = self.sent = 0
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
        expires = self._check(connection.certificate, hello, nonce)
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
        client.software = hello.software
        connection.greeted(client.name, client.bucket)
        self.addresses.greeted(connection.address)
        return client.desk

    def release(self, connection: Connection, path: str) -> bytes:
        """A file of the releases, which any enrolled device may have."""
        if connection.certificate is None:
            raise LinkError("no client certificate was shown", Reason.FOREIGN, _REFUSED_FOR)
        try:
            self._enrolled(pki.identity(connection.certificate))
        except PayloadError as error:
            text = f"the certificate is no device's: {error}"
            raise LinkError(text, Reason.FOREIGN, _REFUSED_FOR) from None
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
        client = self._client(connection)
        match event:
            case Greeted():
                self._welcome(client)
            case AnswerWhole(task, content):
                if client.handing != task:
                    client.handing = task
                    self._spawn(
                        self._hand_over(client, task, self._upstream.answer(client.name, task, content))
                    )
            case Refusal(task, kind, seconds, text):
                if client.handing != task:
                    client.handing = task
                    why = f"{kind.name.lower()}: {text}" + (f" (again in {seconds} s)" if seconds else "")
                    lost = kind is Refused.FOLLOW
                    refusal = self._upstream.refuse(client.name, task, why, lost=lost)
                    self._spawn(self._hand_over(client, task, refusal))
                    _log.info("%s does not do a task: %s", client.name, why)
            case Delay(_, kind, seconds, text):
                client.delayed = f"{kind.name.lower()}: {text} ({seconds} s)"
                _log.info("%s delays a task: %s", client.name, client.delayed)
            case TaskHeld():
                pass
            case Left(bye):
                _log.info("%s leaves: %s", client.name, bye.text)
                connection.hang_up()

    def refused(self, connection: Connection, error: LinkError) -> None:
        """Count and log why a connection ends."""
        self.refusals[error.reason.name.lower()] += 1
        who = connection.client or connection.peer
        _log.log(logging.INFO if error.seconds else logging.WARNING, "%s: hung up on: %s", who, error)

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
            client.leaving = asyncio.get_running_loop().call_later(wait, self._gone, client)

    def _client(self, connection: Connection) -> Client:
        return self.clients[connection.client or ""]

    def _check(self, certificate: bytes | None, hello: Hello, nonce: bytes) -> float:
        """Whether this client may come in; gives when its certificate expires."""
        if hello.version != VERSION:
            raise LinkError(f"this server speaks version {VERSION} of the link", Reason.VERSION, _REFUSED_FOR)
        if certificate is None:
            raise LinkError("no client certificate was shown", Reason.FOREIGN, _REFUSED_FOR)
        try:
            identity = pki.identity(certificate)
        except PayloadError as error:
            raise LinkError(
                f"the certificate is no device's: {error}", Reason.FOREIGN, _REFUSED_FOR
            ) from None
        if identity.name != hello.name:
            raise LinkError("the certificate is another device's", Reason.FOREIGN, _REFUSED_FOR)
        key = self._enrolled(identity)
        expires = x509.load_der_x509_certificate(certificate).not_valid_after_utc
        if expires <= datetime.now(UTC):  # a resumed TLS session does not look at it again
            text = f"the certificate of {hello.name} expired on {expires:%Y-%m-%d}"
            raise LinkError(text, Reason.EXPIRED, _REFUSED_FOR)
        try:
            parts = hello_parts(self._federation, hello.name, nonce, identity.fingerprint, hello.version)
            verify(key, hello.signature, HELLO, *parts)
        except SignatureError as error:
            raise LinkError(str(error), Reason.SIGNATURE, _REFUSED_FOR) from None
        return expires.timestamp()

    def _enrolled(self, identity: pki.Identity) -> bytes:
        """The signing key of a device that may take part."""
        member = self._members.members.get(identity.name)
        try:
            return self._members.admit(identity, self._federation).signing
        except FedgeError as error:
            reason = Reason.FOREIGN
            if member is None and identity.federation == self._federation:
                reason = Reason.UNKNOWN
            elif member is not None and member.revoked:
                reason = Reason.REVOKED
            raise LinkError(str(error), reason, _REFUSED_FOR) from None

    def _replace(self, client: Client, instance: bytes) -> None:
        """The newer connection wins. Two processes that push each other out are slowed down."""
        old = client.connection
        if old is not None:
            if client.instance != instance and not client.takeovers.allows(time.monotonic()):
                text = f"two processes use the enrolment of {client.name}"
                raise LinkError(text, Reason.REPLACED, _REFUSED_FOR)
            client.connection = None
            seconds = 0 if client.instance == instance else 60
            old.part(LinkError(f"another connection of {client.name} took over", Reason.REPLACED, seconds))
        if client.leaving is not None:
            client.leaving.cancel()
            client.leaving = None

    def _welcome(self, client: Client) -> None:
        if client.pump is None or client.pump.done():
            client.pump = asyncio.ensure_future(self._pump(client))
        if client.connection is not None and client.connection.end is not None:
            client.connection.end.deadline = client.seconds_left()

    async def _pump(self, client: Client) -> None:
        """Fetch one task after the other and see each through."""
        while True:
            try:
                await self._upstream.join(client.name)
                while True:
                    await self._see_through(client, await self._upstream.next_task(client.name))
            except (OSError, FedgeError) as error:
                _log.warning("no tasks for %s for now: %s", client.name, error)
                await asyncio.sleep(2.0)

    async def _see_through(self, client: Client, task: Task) -> None:
        if len(task.frame) > self.limits.task or not task.frame:
            _log.error("a task of %d bytes for %s is not sent", len(task.frame), client.name)
            await self._upstream.refuse(client.name, task.id, "the task is too large for the link")
            return
        client.deadline, client.delayed = task.deadline, ""
        if not client.desk.wants(task.id):
            client.desk.give(task.id, task.frame)
        self._flush(client)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if task.deadline is None else task.deadline - time.time()):
                while client.desk.wants(task.id):
                    client.settled.clear()
                    await client.settled.wait()
        if client.desk.wants(task.id) and client.handing != task.id:
            self._withdraw(client, task.id)

    def _withdraw(self, client: Client, task: bytes) -> None:
        if client.connection is not None and client.connection.end is not None:
            client.connection.end.withdraw(task)
            self._flush(client)
        else:
            client.desk.settle(task, Outcome.UNWANTED)

    async def _hand_over(self, client: Client, task: bytes, delivery: Delivery) -> None:
        try:
            await delivery
            outcome = Outcome.TAKEN
        except FedgeError as error:
            _log.info("an answer of %s is not wanted: %s", client.name, error)
            outcome = Outcome.UNWANTED
        except OSError as error:
            _log.warning("an answer of %s cannot be handed over now: %s", client.name, error)
            if client.connection is not None:
                client.connection.part(LinkError("the server cannot take answers now", Reason.BUSY, 5))
            return
        finally:
            client.handing = None
        if client.connection is not None and client.connection.end is not None:
            client.connection.end.settled(task, outcome)
            self._flush(client)
        else:
            client.desk.settle(task, outcome)
        client.settled.set()

    def _flush(self, client: Client) -> None:
        if client.connection is not None and client.connection.end is not None:
            client.connection.end.deadline = client.seconds_left()
            client.connection.flush()

    def _gone(self, client: Client) -> None:
        client.leaving = None
        if client.pump is not None:
            client.pump.cancel()
            client.pump = None
        if not client.desk.held:  # the upstream gives it again
            client.desk.task = client.desk.answer = None
        self._spawn(self._leave(client))

    async def _leave(self, client: Client) -> None:
        try:
            await self._upstream.leave(client.name)
        except (OSError, FedgeError) as error:
            _log.warning("%s left, and that could not be passed on: %s", client.name, error)

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
                connection.part(LinkError(text, Reason.REVOKED, _REFUSED_FOR))
            elif client.expires <= time.time():
                connection.part(LinkError("the certificate has expired", Reason.EXPIRED, _REFUSED_FOR))
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
