"""TLS and WebSocket of the device's end, as bytes in and bytes out: no socket, no thread.

Every byte that a socket carries passes through here, so what a link costs can be counted exactly.
"""

import logging
import ssl

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import OPEN
from websockets.uri import parse_uri

from fedge.deploy.link_tls import Tls
from fedge.link.frames import FRAME_BYTES, LinkError

PATH = "/link"
_READ = 65_536

_silent = logging.getLogger("fedge.websockets")
_silent.addHandler(logging.NullHandler())
_silent.propagate = False
_silent.setLevel(logging.CRITICAL + 1)


class Wire:
    """One connection. Feed ``receive``, send what ``outgoing`` gives."""

    def __init__(
        self, context: ssl.SSLContext, host: str, port: int, session: ssl.SSLSession | None = None
    ) -> None:
        """Start a handshake, with the session of an earlier connection where there is one."""
        self._tls = Tls(context, host, session)
        name = f"[{host}]" if ":" in host else host
        self._socket = ClientProtocol(
            parse_uri(f"wss://{name}:{port}{PATH}"), max_size=FRAME_BYTES, logger=_silent
        )
        self.closed = False

    @property
    def session(self) -> ssl.SSLSession | None:
        """What a later connection can resume; TLS 1.3 servers send it after the handshake."""
        return self._tls.session

    @property
    def resumed(self) -> bool:
        """Whether this connection resumed an earlier session."""
        return self._tls.resumed

    @property
    def open(self) -> bool:
        """Whether frames can be sent."""
        return self._tls.up and self._socket.state is OPEN

    def start(self) -> None:
        """Make the first bytes."""
        self._shake()

    def receive(self, data: bytes) -> list[bytes]:
        """The messages in what came from the socket; ``b""`` stands for its end.

        Raises:
            ssl.SSLError: TLS failed: the other end is not the server, or refuses this device.
            LinkError: what came is no WebSocket of a gateway.
        """
        self._tls.receive(data)
        if not self._shake():
            return []
        while plain := self._tls.read(_READ):
            self._socket.receive_data(plain)
        messages = [self._message(event) for event in self._socket.events_received()]
        if self._socket.handshake_exc is not None:
            raise LinkError(f"the server does not speak the device link: {_why(self._socket.handshake_exc)}")
        if self._tls.ended or self._socket.close_expected() or self._socket.parser_exc is not None:
            self.closed = True
        return [m for m in messages if m is not None]

    def send(self, message: bytes) -> None:
        """A message; ``outgoing`` has it."""
        self._socket.send_binary(message)

    def ping(self) -> None:
        """Ask for a sign of life."""
        if self.open:
            self._socket.send_ping(b"")

    def outgoing(self) -> bytes:
        """What the socket has to send now."""
        if self._tls.up:
            self._tls.write(b"".join(self._socket.data_to_send()))
        return self._tls.outgoing()

    def close(self) -> None:
        """Say goodbye at the level of WebSocket."""
        if self.open:
            self._socket.send_close(1000)

    def _shake(self) -> bool:
        """Go on with the handshake; whether it is done."""
        if not self._tls.up and self._tls.shake():
            self._socket.send_request(self._socket.connect())
        return self._tls.up

    def _message(self, event: object) -> bytes | None:
        if not isinstance(event, Frame):
            return None
        if event.opcode in (Opcode.PING, Opcode.PONG, Opcode.CLOSE):
            return None
        if event.opcode is not Opcode.BINARY or not event.fin:
            raise LinkError("a message of the link is one binary frame")
        return bytes(event.data)


def _why(error: Exception) -> str:
    if isinstance(error, InvalidStatus) and isinstance(error.response, Response):
        return f"it answers with HTTP status {error.response.status_code}"
    return str(error) or type(error).__name__
