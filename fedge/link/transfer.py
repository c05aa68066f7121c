"""A task or an answer on its way in pieces: the end that receives it, and the end that sends it."""

import hashlib
from dataclasses import dataclass, field

from fedge.link.frames import (
    CHUNK_BYTES,
    DIGEST_BYTES,
    TAG_BYTES,
    Announced,
    LinkError,
)

MAX_REWINDS = 16
"""How often one connection may ask for bytes again that were already sent on it."""


def announce(id: bytes, content: bytes) -> Announced:  # noqa: A002
    """What is said of a transfer before its content."""
    digest = hashlib.blake2b(content, digest_size=DIGEST_BYTES, person=b"fedge link").digest()
    return Announced(id, len(content), digest)


@dataclass
class Arriving:
    """The receiving end. It grows as bytes arrive, never ahead of them, and to the announced size at most."""

    announced: Announced
    content: bytearray = field(default_factory=bytearray)
    deadline: int = 0
    _asked: int = -1

    @property
    def at(self) -> int:
        """How many bytes are here, from the first on."""
        return len(self.content)

    @property
    def whole(self) -> bool:
        """Whether all bytes are here."""
        return self.at == self.announced.size

    def take(self, at: int, data: bytes) -> bytes:
        """Append what is new of ``data``, which stands at ``at``; gives that. Repeats and gaps give nothing.

        Raises:
            LinkError: it reaches beyond the announced size.
        """
        if at + len(data) > self.announced.size:
            raise LinkError(f"bytes beyond the {self.announced.size} that were announced")
        if at > self.at:
            return b""
        new = data[self.at - at :]
        self.content += new
        return new

    def missing(self, at: int) -> bool:
        """Whether bytes before ``at`` have to be asked for; once for each place."""
        if at <= self.at or self._asked == self.at:
            return False
        self._asked = self.at
        return True

    def finish(self) -> bytes | None:
        """The whole content; ``None`` if it is not what was announced: then it starts from nothing."""
        content = bytes(self.content)
        if announce(self.announced.id, content) == self.announced:
            return content
        self.content.clear()
        self._asked = -1
        return None


@dataclass
class Leaving:
    """The sending end, on one connection."""

    announced: Announced
    content: bytes
    at: int = 0
    begun: bool = False
    _sent: int = 0
    _rewinds: int = 0

    @property
    def tag(self) -> bytes:
        """What stands for the transfer in further frames."""
        return self.announced.id[:TAG_BYTES]

    @property
    def over(self) -> bool:
        """Whether everything was sent on this connection."""
        return self.at >= self.announced.size

    def take(self) -> tuple[int, bytes]:
        """The next place and its bytes."""
        at, data = self.at, self.content[self.at : self.at + CHUNK_BYTES]
        self.at += len(data)
        self._sent = max(self._sent, self.at)
        return at, data

    def resume(self, at: int) -> None:
        """Begin at ``at`` on a new connection: the other end has what is before it.

        Raises:
            LinkError: there are not so many bytes.
        """
        if at > self.announced.size:
            raise LinkError("the other end claims more of a transfer than there is")
        self.at = self._sent = at

    def rewind(self, at: int) -> None:
        """Go on from ``at``.

        Raises:
            LinkError: ``at`` is beyond what was sent, or this was asked for too often.
        """
        if at > self._sent:
            raise LinkError("the other end claims bytes that were never sent")
        if at < self.at:
            self._rewinds += 1
            if self._rewinds > MAX_REWINDS:
                raise LinkError("the other end asks for the same bytes again and again")
        self.at, self.begun = at, False
