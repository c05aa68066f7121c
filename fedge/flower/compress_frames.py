"""What ``Compressed`` and ``compression_mod`` say to each other: one byte string each way.

Integers are little-endian; a blob is its length in 4 bytes and its content.

    down    1 flags: 1 starts anew, 2 its base is float32    8 ticket    8 counted    8 hash of the weights
            4 version    4 number of steps    if it starts anew: blobs scheme, base    blobs: the steps
            blob: exact arrays, deflated
    up      1 flags: 1 carries an update    8 ticket    if it does: blobs payload, exact arrays, deflated

A *ticket* is eight random bytes that only the message and its answer carry: an answer belongs to one message
and one node. ``counted`` is the ticket of the node's last update that became part of the weights;
zeros where the server knows of none: such a node starts with a residual of zero.
"""

import struct
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedge.errors import PayloadError

KEY = "fedge-frame"
"""Key of the bytes value in its ``ConfigRecord``."""

TICKET_BYTES = 8
NO_TICKET = bytes(TICKET_BYTES)

_DOWN, _UP = struct.Struct("<B8s8s8sII"), struct.Struct("<B8s")
_FULL, _FLOAT = 1, 2
_MOST_STEPS = 1 << 20


@dataclass(frozen=True)
class Base:
    """Weights to start from: the scheme, the payload, and whether that is float32 (else quantized)."""

    scheme: bytes
    payload: bytes
    float32: bool


@dataclass(frozen=True)
class Down:
    """Leads a node to the weights of ``version``.

    Attributes:
        ticket: to be repeated in the answer.
        counted: ticket of this node's last update that counted.
        hash: names the weights of ``version`` (the coded arrays).
        version: the version that the steps end with.
        base: what the steps start from; without it they start from the weights that the node holds.
        steps: payloads of the downlink codec, one a version; a node skips those that it has.
        exact: the exact arrays of ``version``, deflated.
    """

    ticket: bytes
    counted: bytes
    hash: bytes
    version: int
    base: Base | None
    steps: tuple[bytes, ...]
    exact: bytes


@dataclass(frozen=True)
class Change:
    """A node's update: payload of the uplink codec, and its exact arrays, deflated."""

    payload: bytes
    exact: bytes


@dataclass(frozen=True)
class Up:
    """A node's answer; ``change`` is ``None`` where nothing was trained."""

    ticket: bytes
    change: Change | None


def encode_down(down: Down) -> bytes:
    """The frame."""
    base = down.base
    flags = 0 if base is None else _FULL | _FLOAT * base.float32
    head = _DOWN.pack(flags, down.ticket, down.counted, down.hash, down.version, len(down.steps))
    blobs = () if base is None else (base.scheme, base.payload)
    return head + b"".join(_blob(b) for b in (*blobs, *down.steps, down.exact))


def decode_down(frame: bytes) -> Down:
    """The inverse of ``encode_down``.

    Raises:
        PayloadError: not exactly one such frame.
    """
    flags, ticket, counted, digest, version, count = _head(_DOWN, frame)
    if flags not in (0, _FULL, _FULL | _FLOAT) or count > min(version, _MOST_STEPS):
        raise PayloadError(f"a frame has flags {flags} and {count} steps to version {version}")
    blobs = _blobs(frame, _DOWN.size, count + 1 + 2 * bool(flags))
    base = Base(blobs[0], blobs[1], bool(flags & _FLOAT)) if flags else None
    return Down(ticket, counted, digest, version, base, tuple(blobs[2 * bool(flags) : -1]), blobs[-1])


def encode_up(up: Up) -> bytes:
    """The frame."""
    head = _UP.pack(up.change is not None, up.ticket)
    return head if up.change is None else head + _blob(up.change.payload) + _blob(up.change.exact)


def decode_up(frame: bytes) -> Up:
    """The inverse of ``encode_up``.

    Raises:
        PayloadError: not exactly one such frame.
    """
    flags, ticket = _head(_UP, frame)
    if flags > 1:
        raise PayloadError(f"a frame has flags {flags}; expected 0 or 1")
    blobs = _blobs(frame, _UP.size, 2 * flags)
    return Up(ticket, Change(blobs[0], blobs[1]) if flags else None)


def find_frame(content: RecordDict) -> tuple[str, bytes] | None:
    """Where the frame in a message's content stands, and the frame; ``None`` if there is none.

    Raises:
        PayloadError: there are several, or one that is not bytes.
    """
    found = [(name, record[KEY]) for name, record in content.config_records.items() if KEY in record]
    if not found:
        return None
    name, frame = found[0]
    if len(found) > 1 or not isinstance(frame, bytes):
        raise PayloadError("a message has several frames, or one that is not bytes")
    return name, frame


def as_record(frame: bytes) -> ConfigRecord:
    """A frame as a record of a message."""
    return ConfigRecord({KEY: frame})


def replaced(content: RecordDict, key: str, record: ArrayRecord | ConfigRecord) -> RecordDict:
    """A copy of ``content`` in the same order, with the record at ``key`` replaced (or added)."""
    return RecordDict({**content, key: record})


def _blob(content: bytes) -> bytes:
    return len(content).to_bytes(4, "little") + content


def _head(head: struct.Struct, frame: bytes) -> tuple[Any, ...]:
    if len(frame) < head.size:
        raise PayloadError("a frame is truncated")
    return head.unpack_from(frame)


def _blobs(frame: bytes, at: int, count: int) -> list[bytes]:
    """``count`` blobs from offset ``at`` to the very end."""
    blobs = []
    for _ in range(count):
        start = at + 4
        at = start + int.from_bytes(frame[at:start], "little")
        if start > len(frame) or at > len(frame):
            raise PayloadError("a frame is truncated")
        blobs.append(frame[start:at])
    if at != len(frame):
        raise PayloadError(f"{len(frame) - at} bytes are left over behind a frame")
    return blobs
