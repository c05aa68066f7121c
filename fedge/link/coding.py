"""Frames as bytes: one frame is one WebSocket message. The layout is in ``docs/wire-format.md``.

Integers are LEB128 varints in as few bytes as possible, texts have their length in front. Every length is
compared with its limit before a byte is taken, and what is left over is refused, so a frame that parses is
exactly one frame and re-encodes to the same bytes.
"""

from collections.abc import Callable
from enum import IntEnum
from typing import Any, TypeVar

from fedge.link.frames import (
    CHALLENGE_BYTES,
    CHUNK_BYTES,
    DIGEST_BYTES,
    FRAME_BYTES,
    ID_BYTES,
    INSTANCE_BYTES,
    NAME_BYTES,
    NUMBER_LIMIT,
    SIGNATURE_BYTES,
    SOFTWARE_BYTES,
    TAG_BYTES,
    TEXT_BYTES,
    Announced,
    AnswerPart,
    At,
    Bye,
    Challenge,
    Delay,
    Done,
    Drop,
    Frame,
    Hello,
    LinkError,
    More,
    Outcome,
    Place,
    Reason,
    Refusal,
    Refused,
    TaskPart,
    Welcome,
)

_VARINT_BYTES = 7
_E = TypeVar("_E", bound=IntEnum)


def encode(frame: Frame) -> bytes:
    """A frame as bytes, at most ``FRAME_BYTES``.

    Raises:
        LinkError: a part of it is too long, or a number out of range.
    """
    number = _NUMBERS[type(frame)]
    return bytes([number]) + _WRITERS[number](frame)


def decode(message: bytes) -> Frame:
    """The frame in a message.

    Raises:
        LinkError: not exactly one frame, or a part of it exceeds its limit.
    """
    if not 0 < len(message) <= FRAME_BYTES:
        raise LinkError(f"a frame has 1 to {FRAME_BYTES} bytes, not {len(message)}")
    read = _READERS.get(message[0])
    if read is None:
        raise LinkError(f"unknown kind of frame {message[0]}")
    reader = _Reader(message)
    frame = read(reader)
    reader.end()
    return frame


def _number(value: int) -> bytes:
    if not 0 <= value < NUMBER_LIMIT:
        raise LinkError(f"{value} is out of range for a frame")
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _exactly(content: bytes, size: int) -> bytes:
    if len(content) != size:
        raise LinkError(f"a part of a frame has {size} bytes, not {len(content)}")
    return content


def _text(text: str, most: int) -> bytes:
    raw = text.encode("utf-8", "replace")
    if len(raw) > most:
        raise LinkError(f"a text of a frame has {len(raw)} bytes, more than {most}")
    return _number(len(raw)) + raw


def _data(data: bytes) -> bytes:
    if len(data) > CHUNK_BYTES:
        raise LinkError(f"a chunk has {len(data)} bytes, more than {CHUNK_BYTES}")
    return data


def _write_challenge(f: Challenge) -> bytes:
    return bytes([f.lowest, f.highest]) + _exactly(f.nonce, CHALLENGE_BYTES) + _number(f.time)


def _write_hello(f: Hello) -> bytes:
    head = bytes([f.version]) + _exactly(f.instance, INSTANCE_BYTES) + _text(f.name, NAME_BYTES)
    head += _text(f.software, SOFTWARE_BYTES) + _exactly(f.signature, SIGNATURE_BYTES)
    held = b"\0" if f.held is None else b"\1" + _write_place(f.held)
    return head + held + (b"\0" if f.answering is None else b"\1" + _write_announced(f.answering))


def _write_place(place: Place) -> bytes:
    return _exactly(place.id, ID_BYTES) + _number(place.at)


def _write_announced(a: Announced) -> bytes:
    return _exactly(a.id, ID_BYTES) + _number(a.size) + _exactly(a.digest, DIGEST_BYTES)


def _write_bye(f: Bye) -> bytes:
    return bytes([f.reason]) + _number(f.seconds) + _text(f.text, TEXT_BYTES)


def _write_task(f: TaskPart) -> bytes:
    return _write_announced(f.announced) + _number(f.deadline) + _number(f.at) + _data(f.data)


def _write_answer(f: AnswerPart) -> bytes:
    return _write_announced(f.announced) + _number(f.at) + _data(f.data)


def _write_refusal(f: Refusal | Delay) -> bytes:
    return _exactly(f.id, ID_BYTES) + bytes([f.kind]) + _number(f.seconds) + _text(f.text, TEXT_BYTES)


_WRITERS: dict[int, Callable[[Any], bytes]] = {
    1: _write_challenge,
    2: _write_hello,
    3: lambda f: _number(f.silence) + _number(f.at),
    4: _write_bye,
    5: _write_task,
    6: _write_answer,
    7: lambda f: _exactly(f.tag, TAG_BYTES) + _number(f.at) + _data(f.data),
    8: lambda f: _write_place(f.place),
    9: lambda f: _exactly(f.id, ID_BYTES) + bytes([f.outcome]),
    10: lambda f: _exactly(f.id, ID_BYTES),
    11: _write_refusal,
    12: _write_refusal,
}
_KINDS = (Challenge, Hello, Welcome, Bye, TaskPart, AnswerPart, More, At, Done, Drop, Refusal, Delay)
_NUMBERS: dict[type, int] = {kind: number for number, kind in enumerate(_KINDS, 1)}


class _Reader:
    """Reads a frame from behind its first byte to its end."""

    def __init__(self, frame: bytes) -> None:
        self._frame, self._at = frame, 1

    def take(self, count: int) -> bytes:
        if count > len(self._frame) - self._at:
            raise LinkError("a frame is truncated")
        self._at += count
        return self._frame[self._at - count : self._at]

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self) -> int:
        value = 0
        for index in range(_VARINT_BYTES):
            byte = self.byte()
            value |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                if (index and not byte) or value >= NUMBER_LIMIT:
                    break
                return value
        raise LinkError("a number in a frame is too long or too large")

    def text(self, most: int) -> str:
        size = self.number()
        if size > most:
            raise LinkError(f"a text of a frame has {size} bytes, more than {most}")
        try:
            return self.take(size).decode()
        except UnicodeDecodeError:
            raise LinkError("a text of a frame is not UTF-8") from None

    def flag(self) -> bool:
        value = self.byte()
        if value > 1:
            raise LinkError(f"a flag of a frame is {value}, not 0 or 1")
        return value == 1

    def one_of(self, kind: type[_E]) -> _E:
        value = self.byte()
        try:
            return kind(value)
        except ValueError:
            raise LinkError(f"unknown {kind.__name__.lower()} {value} in a frame") from None

    def place(self) -> Place:
        return Place(self.take(ID_BYTES), self.number())

    def announced(self) -> Announced:
        found = Announced(self.take(ID_BYTES), self.number(), self.take(DIGEST_BYTES))
        if not found.size:
            raise LinkError("a transfer of no bytes")
        return found

    def data(self) -> bytes:
        data = self._frame[self._at :]
        if len(data) > CHUNK_BYTES:
            raise LinkError(f"a chunk has {len(data)} bytes, more than {CHUNK_BYTES}")
        self._at = len(self._frame)
        return data

    def end(self) -> None:
        if self._at != len(self._frame):
            raise LinkError(f"{len(self._frame) - self._at} bytes are left over behind a frame")


def _read_hello(r: _Reader) -> Hello:
    version, instance, name = r.byte(), r.take(INSTANCE_BYTES), r.text(NAME_BYTES)
    software, signature = r.text(SOFTWARE_BYTES), r.take(SIGNATURE_BYTES)
    held = r.place() if r.flag() else None
    answering = r.announced() if r.flag() else None
    return Hello(version, instance, name, software, signature, held, answering)


_READERS: dict[int, Callable[[_Reader], Frame]] = {
    1: lambda r: Challenge(r.byte(), r.byte(), r.take(CHALLENGE_BYTES), r.number()),
    2: _read_hello,
    3: lambda r: Welcome(r.number(), r.number()),
    4: lambda r: Bye(r.one_of(Reason), r.number(), r.text(TEXT_BYTES)),
    5: lambda r: TaskPart(r.announced(), r.number(), r.number(), r.data()),
    6: lambda r: AnswerPart(r.announced(), r.number(), r.data()),
    7: lambda r: More(r.take(TAG_BYTES), r.number(), r.data()),
    8: lambda r: At(r.place()),
    9: lambda r: Done(r.take(ID_BYTES), r.one_of(Outcome)),
    10: lambda r: Drop(r.take(ID_BYTES)),
    11: lambda r: Refusal(r.take(ID_BYTES), r.one_of(Refused), r.number(), r.text(TEXT_BYTES)),
    12: lambda r: Delay(r.take(ID_BYTES), r.one_of(Refused), r.number(), r.text(TEXT_BYTES)),
}
