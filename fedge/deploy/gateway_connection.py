"""One device's connection to the gateway: WebSocket and link frames over a TLS transport of asyncio."""

import asyncio
import logging
import os
import ssl
import time
from typing import Protocol

from websockets.datastructures import Headers
from websockets.exceptions import PayloadTooBig
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from fedge.deploy.gateway_limits import Address, Bucket, Limits
from fedge.deploy.link_tls import Tls
from fedge.edge.sources import FetchError
from fedge.errors import PayloadError
from fedge.link.frames import FRAME_BYTES, Hello, LinkError, Reason
from fedge.link.gateway_end import Door, Event, GatewayDesk, GatewayEnd

PATH, RELEASES = "/link", "/releases/"
_SLICE = 4096  # bytes that are deciphered and parsed before limits are looked at again
_WRITE_AHEAD = 65_536  # bytes that wait for a slow reader before the gateway stops writing to it
_DOWNLOAD = 600.0  # seconds for a file of the releases
_ASKED = b"?"
_LAST_WORDS = 5.0  # seconds for a goodbye to get through

_silent = logging.getLogger("fedge.websockets")
_silent.addHandler(logging.NullHandler())
_silent.propagate = False
_silent.setLevel(logging.CRITICAL + 1)


class House(Protocol):
    """What a connection asks of the gateway."""

    limits: Limits

    def admit(self, connection: "Connection", hello: Hello, nonce: bytes) -> GatewayDesk:
        """The desk of the client that says hello; raises ``LinkError``."""

    def release(self, connection: "Connection", path: str) -> bytes:
        """A file of the releases, for an enrolled device.

        Raises:
            LinkError: the device is not enrolled.
            FetchError, PayloadError: there is no such file.
        """

    def room(self, size: int) -> None:
        """Raise ``LinkError`` if so many bytes cannot be taken now."""

    def happened(self, connection: "Connection", event: Event) -> None:
        """Something was said."""

    def refused(self, connection: "Connection", error: LinkError, *, said: bool = False) -> None:
        """The connection ends, and why; ``said``: for what came over it, whole and under its certificate."""

    def lost(self, connection: "Connection") -> None:
        """The connection has ended."""


class Connection(asyncio.Protocol):
    """Reads no faster than it may and writes no faster than the other end reads."""

    def __init__(self, house: House, context: ssl.SSLContext, address: Address, peer: str) -> None:
        """Of a peer that was let in from ``address``."""
        self._house, self.address, self.peer = house, address, peer
        self._tls = Tls(context)
        self.end: GatewayEnd | None = None
        self.client: str | None = None  # once it was let in
        self.bucket: Bucket | None = None
        self.heard = time.monotonic()
        self.closing = False
        self.received = self.sent = 0
        self.signs = 0  # of life, that ``ask`` asked for
        self._socket = ServerProtocol(max_size=FRAME_BYTES, logger=_silent)
        self._transport: asyncio.Transport | None = None
        self._full = False  # the other end does not read
        self._resting = False  # it says too much
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open; TLS begins."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  what asyncio gives a stream protocol
        self._transport = transport
        transport.set_write_buffer_limits(high=_WRITE_AHEAD)
        self._timer = asyncio.get_running_loop().call_later(self._house.limits.greeting, self._late)

    @property
    def certificate(self) -> bytes | None:
        """The device's certificate (DER), which TLS has checked."""
        return self._tls.certificate

    def data_received(self, data: bytes) -> None:
        """Bytes from the device."""
        self.heard = time.monotonic()
        self.received += len(data)
        self._tls.receive(data)
        self._work()

    def eof_received(self) -> bool:
        """The device has closed its side."""
        return False

    def pause_writing(self) -> None:
        """The device reads too slowly."""
        self._full = True
        self._hold()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._full = False
        self._hold()
        self.flush()
        self._work()

    def connection_lost(self, _: Exception | None) -> None:
        """It is over."""
        self.closing = True
        if self._timer is not None:
            self._timer.cancel()
        self._house.lost(self)
        self._transport = None

    def flush(self) -> None:
        """Send what there is to send, as far as the device reads."""
        transport, end = self._transport, self.end
        if transport is None:
            return
        while not self._full:
            size = 0  # small frames share a TLS record
            while end is not None and not self.closing and size < _SLICE:
                if (message := end.next_message()) is None:
                    break
                self._socket.send_binary(message)
                size += len(message)
            if self._tls.up:
                self._tls.write(b"".join(self._socket.data_to_send()))
            data = self._tls.outgoing()
            if not data:
                return
            self.sent += len(data)
            transport.write(data)

    def part(self, error: LinkError, *, said: bool = False) -> None:
        """Say goodbye, and why, and hang up; ``said``: for what the device has said."""
        if self.closing or self._transport is None:
            return
        self._house.refused(self, error, said=said)
        self._full = False  # a goodbye always fits
        if self.end is not None and self._socket.state is OPEN:
            self.end.part(error.reason, error.seconds, str(error))
            self.flush()
            self._socket.send_close(CloseCode.NORMAL_CLOSURE)
        self.hang_up()

    def ask(self) -> None:
        """Ask for a sign of life."""
        if self._socket.state is OPEN and not self.closing:
            self._socket.send_ping(_ASKED)
            self.flush()

    def greeted(self, client: str, bucket: Bucket) -> None:
        """The client was let in: the greeting is over."""
        self.client, self.bucket = client, bucket
        if self._timer is not None:
            self._timer.cancel()

    def hang_up(self) -> None:
        """Send what is left and close."""
        if self._transport is None:
            return
        self.flush()
        self.closing, self._full = True, False
        self._tls.close()
        self.flush()
        self._transport.close()
        asyncio.get_running_loop().call_later(_LAST_WORDS, self.abort)

    def abort(self) -> None:
        """Close without a word."""
        if self._transport is not None:
            self._transport.abort()

    def _late(self) -> None:
        if self._transport is not None and self.client is None:
            self._house.refused(self, LinkError("no hello in time", Reason.SILENT))
            self.abort()

    def _hold(self) -> None:
        """Read, or do not read, as things stand."""
        if self._transport is None or self.closing:
            return
        if self._full or self._resting:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _work(self) -> None:
        """Read what has come, a little at a time."""
        try:
            while not (self._full or self._resting or self.closing) and self._some():
                self.flush()
                if self._socket.close_expected() or self._socket.handshake_exc is not None:
                    self.hang_up()
        except LinkError as error:
            self.part(error, said=True)
        except ssl.SSLError as error:  # anyone on the way can have done that
            self._house.refused(self, LinkError(f"TLS: {error.reason or error}"))
            self.hang_up()  # with the alert that says why
        if self._tls.ended:
            self.hang_up()

    def _some(self) -> bool:
        """Whether anything came."""
        if not self._tls.up:
            up = self._tls.shake()
            self.flush()
            if not up:
                return False
        data = self._tls.read(_SLICE)
        self._socket.receive_data(data)
        self._events()
        if self.end is not None and (broken := self._socket.parser_exc) is not None:
            large = isinstance(broken, PayloadTooBig)
            raise LinkError(f"WebSocket: {broken}", Reason.TOO_LARGE if large else Reason.PROTOCOL)
        return bool(data)

    def _events(self) -> None:
        for event in self._socket.events_received():
            if self.closing:
                return
            self._charge()
            if isinstance(event, Request):
                self._open(event)
            elif isinstance(event, Frame) and event.opcode is Opcode.PONG:
                self.signs += event.data == _ASKED
            elif isinstance(event, Frame) and event.opcode not in (Opcode.PING, Opcode.CLOSE):
                self._message(event)

    def _open(self, request: Request) -> None:
        if request.path.startswith(RELEASES):
            self._socket.send_response(self._release(request.path.removeprefix(RELEASES)))
            return
        if request.path != PATH:
            self._socket.send_response(self._socket.reject(404, ""))
            return
        self._socket.send_response(self._socket.accept(request))
        if self._socket.state is OPEN:
            house, limits = self._house, self._house.limits
            door = Door(lambda h, n: house.admit(self, h, n), house.room, limits.silence, limits.answer)
            self.end = GatewayEnd(door, os.urandom(32), int(time.time()))

    def _release(self, path: str) -> Response:
        """The answer to a request for a file of the releases; the connection ends with it."""
        try:
            content = self._house.release(self, path)
        except (FetchError, PayloadError):
            return self._socket.reject(404, "")
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(_DOWNLOAD, self.abort)
        headers = Headers({"Content-Length": str(len(content)), "Content-Type": "application/octet-stream"})
        headers["Connection"] = "close"
        return Response(200, "OK", headers, content)

    def _message(self, frame: Frame) -> None:
        if frame.opcode is not Opcode.BINARY or not frame.fin or self.end is None:
            raise LinkError("a message of the link is one binary frame")
        for event in self.end.receive(bytes(frame.data)):
            self._house.happened(self, event)

    def _charge(self) -> None:
        """Count a message; whoever says too much is not listened to for a while."""
        now = time.monotonic()
        wait = self.address.messages.wait(now)
        if self.bucket is not None:
            wait = max(wait, self.bucket.wait(now))
        if wait > 0 and not self._resting:
            self._resting = True
            self._hold()
            asyncio.get_running_loop().call_later(wait, self._rested)

    def _rested(self) -> None:
        self._resting = False
        self._hold()
        self._work()
