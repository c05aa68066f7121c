"""Protobuf messages as fields, and back: as little of it as cutting a model takes."""

from collections.abc import Iterator

_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}
Field = tuple[int, int | bytes, bytes]
"""Number, value, and the whole field as it stands in the message."""


def fields(message: bytes) -> Iterator[Field]:
    """The fields of a message, in order.

    Raises:
        ValueError: it is none.
    """
    at = 0
    while at < len(message):
        start = at
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        value: int | bytes
        if wire == _VARINT:
            value, at = _varint(message, at)
        else:
            size = _FIXED.get(wire, 0)
            if wire == _BYTES:
                size, at = _varint(message, at)
            elif not size:
                raise ValueError("no such wire type")
            if size > len(message) - at:
                raise ValueError("cut off")
            value = message[at : at + size]
            at += size
        yield number, value, message[start:at]


def inside(message: bytes, number: int) -> list[bytes]:
    """The messages or texts in field ``number``."""
    return [value for n, value, _ in fields(message) if n == number and isinstance(value, bytes)]


def texts(message: bytes, number: int) -> tuple[str, ...]:
    """The texts in field ``number``."""
    return tuple(value.decode("utf-8") for value in inside(message, number))


def numbers(message: bytes, number: int) -> tuple[int, ...]:
    """The whole numbers in field ``number``, packed or not."""
    found: list[int] = []
    for n, value, _ in fields(message):
        if n != number:
            continue
        if isinstance(value, int):
            found.append(value)
        else:
            at = 0
            while at < len(value):
                one, at = _varint(value, at)
                found.append(one)
    return tuple(found)


def message(number: int, content: bytes) -> bytes:
    """A field that holds a message or a text."""
    return _encoded(number << 3 | _BYTES) + _encoded(len(content)) + content


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise ValueError("cut off")
