"""The binary container of every payload: one byte of kind, the codec's body, four bytes of checksum.

    offset 0    version << 5 | codec number                              1 byte
    offset 1    body: the codec's own fields (varints) and its data      any
    last 4      CRC-32 (zlib) of all before, little-endian, started from the CRC-32 of the
                expected names and shapes (``Layout.digest``)

The checksum finds damage, and for no extra byte it finds a payload that was made for another model. It is
no protection against an attacker, who can compute it too: signatures are another layer.
"""

import zlib

from fedge.errors import PayloadError

VERSION = 1
OVERHEAD = 5
"""Bytes of a payload that are not the codec's body."""

_CRC = 4


def seal(number: int, body: bytes, digest: int) -> bytes:
    """Wrap a codec's ``body``: ``number`` (0..31) names the codec, ``digest`` the expected shapes."""
    inside = bytes([VERSION << 5 | number]) + body
    return inside + zlib.crc32(inside, digest).to_bytes(_CRC, "little")


def unseal(payload: bytes, number: int, digest: int, max_bytes: int) -> "Reader":
    """A reader of the body of ``payload``, once length, version, codec and checksum are right.

    Raises:
        PayloadError: one of them is not.
    """
    if not OVERHEAD <= len(payload) <= max_bytes:
        raise PayloadError(f"payload has {len(payload)} bytes; expected {OVERHEAD} to {max_bytes}")
    version, codec = payload[0] >> 5, payload[0] & 31
    if version != VERSION:
        raise PayloadError(f"payload has format version {version}; this fedge reads {VERSION}")
    if codec != number:
        raise PayloadError(f"payload was made by codec number {codec}; expected {number}")
    if zlib.crc32(payload[:-_CRC], digest) != int.from_bytes(payload[-_CRC:], "little"):
        raise PayloadError("payload is damaged, or was made for arrays of other names or shapes")
    return Reader(payload[1:-_CRC])


def varint(value: int) -> bytes:
    """``value`` (>= 0) in groups of seven bits, lowest first, high bit set on all but the last (LEB128)."""
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    groups.append(value)
    return bytes(groups)


class Reader:
    """A cursor over the body of a payload; every read says how much it will accept."""

    def __init__(self, body: bytes) -> None:
        """Start at the first byte of ``body``."""
        self._body = body
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self._body) - self._at

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes.

        Raises:
            PayloadError: there are fewer.
        """
        if count > self.left:
            raise PayloadError(f"payload ends early: {count} bytes expected, {self.left} left")
        self._at += count
        return self._body[self._at - count : self._at]

    def rest(self) -> bytes:
        """All bytes not read yet."""
        return self.take(self.left)

    def varint(self, most: int) -> int:
        """The next integer, in its shortest form and at most ``most``.

        Raises:
            PayloadError: it is larger, longer than it must be, or cut off.
        """
        value = shift = 0
        while True:
            group = self.take(1)[0]
            value |= (group & 127) << shift
            if value > most or (group == 0 and shift):
                raise PayloadError(f"payload has a number above {most}, or one longer than it must be")
            if group < 128:
                return value
            shift += 7
            if shift > 63:
                raise PayloadError("payload has a number of more than 64 bits")

    def end(self) -> None:
        """Check that nothing is left.

        Raises:
            PayloadError: trailing bytes.
        """
        if self.left:
            raise PayloadError(f"payload has {self.left} trailing bytes")
