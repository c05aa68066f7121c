"""TLS as bytes in and bytes out, for both ends of the device link.

The standard library's asyncio throws away the alert that says why a handshake failed, and cannot resume a
session; this does neither.
"""

import contextlib
import ssl


class Tls:
    """One connection. ``receive`` what a socket gives, send what ``outgoing`` gives."""

    def __init__(
        self, context: ssl.SSLContext, host: str | None = None, session: ssl.SSLSession | None = None
    ) -> None:
        """The server's end; with ``host`` the device's, which may resume a ``session``."""
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._in, self._out, host is None, host, session)
        self.up = self.ended = False

    @property
    def session(self) -> ssl.SSLSession | None:
        """What a later connection can resume; a TLS 1.3 server sends it after the handshake."""
        return self._object.session

    @property
    def resumed(self) -> bool:
        """Whether this connection resumed an earlier session."""
        return bool(self._object.session_reused)

    @property
    def certificate(self) -> bytes | None:
        """The other end's certificate (DER), if it showed one."""
        return self._object.getpeercert(binary_form=True)

    def receive(self, data: bytes) -> None:
        """Bytes from the socket; ``b""`` is its end."""
        if data:
            self._in.write(data)
        else:
            self._in.write_eof()

    def shake(self) -> bool:
        """Go on with the handshake; whether it is done.

        Raises:
            ssl.SSLError: it failed; ``outgoing`` has the alert that tells the other end why.
        """
        if not self.up:
            with contextlib.suppress(ssl.SSLWantReadError):
                self._object.do_handshake()
                self.up = True
        return self.up

    def read(self, most: int) -> bytes:
        """Up to ``most`` bytes of content; ``b""`` if there are none now, or none any more (``ended``).

        Raises:
            ssl.SSLError: the other end breaks off, with an alert perhaps.
        """
        try:
            data = self._object.read(most)
        except ssl.SSLWantReadError:
            return b""
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            data = b""
        self.ended = self.ended or not data
        return data

    def write(self, content: bytes) -> None:
        """Content to be sent: one record for each 16 KiB."""
        for start in range(0, len(content), 16_384):
            self._object.write(content[start : start + 16_384])

    def outgoing(self) -> bytes:
        """What the socket has to send."""
        return self._out.read()

    def close(self) -> None:
        """Say that nothing else comes."""
        if self.up:
            with contextlib.suppress(ssl.SSLError):
                self._object.unwrap()
