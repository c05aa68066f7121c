"""What the two ends of the device link say to each other. Their bytes are in ``coding.py``."""

from dataclasses import dataclass
from enum import IntEnum

from fedge.errors import PayloadError

VERSION = 1
"""The version of the link that this code speaks."""

CHUNK_BYTES = 16_000
"""Most bytes of a task or answer in one frame."""

FRAME_BYTES = 16_384
"""Largest frame: a receiver refuses a longer WebSocket message when it sees its header."""

ID_BYTES, TAG_BYTES, DIGEST_BYTES, CHALLENGE_BYTES, INSTANCE_BYTES = 16, 4, 8, 32, 8
NAME_BYTES, SOFTWARE_BYTES, TEXT_BYTES, SIGNATURE_BYTES = 64, 32, 500, 64
NUMBER_LIMIT = 1 << 48
"""Above every number in a frame: sizes, places in a transfer, seconds."""


class Reason(IntEnum):
    """Why an end says goodbye."""

    LATER = 1  # the server restarts, or the device has used up its bytes of the day
    BUSY = 2
    VERSION = 3
    UNKNOWN = 4
    REVOKED = 5
    EXPIRED = 6
    FOREIGN = 7  # another federation, or a certificate that is not this client's
    SIGNATURE = 8
    REPLACED = 9  # another process connected with the same key
    PROTOCOL = 10
    TOO_LARGE = 11
    SILENT = 12


class Outcome(IntEnum):
    """What became of an answer."""

    TAKEN = 0
    UNWANTED = 1  # the server has given up this task, or does not know it


class Refused(IntEnum):
    """Why a device does not answer a task."""

    TASK = 1  # the task is not what it claims to be
    FOLLOW = 2  # the device cannot follow: it must be welcomed again
    DATA = 3
    SETUP = 4  # a package, disk space
    MEMORY = 5
    TOO_LARGE = 6
    HOURS = 7
    POWER = 8
    METERED = 9
    BYTES = 10
    BROKEN = 11  # the round failed in a way that nobody expected


class LinkError(PayloadError):
    """The other end broke a rule of the link, or is refused; ``reason`` is what to tell it."""

    def __init__(self, text: str, reason: Reason = Reason.PROTOCOL, seconds: int = 0) -> None:
        super().__init__(text)
        self.reason, self.seconds = reason, seconds


@dataclass(frozen=True)
class Challenge:
    """First frame, from the gateway: versions it speaks, random bytes to sign, its Unix time in seconds."""

    lowest: int
    highest: int
    nonce: bytes
    time: int


@dataclass(frozen=True)
class Place:
    """How much of a transfer an end has: bytes ``[0, at)`` of the task ``id``."""

    id: bytes
    at: int


@dataclass(frozen=True)
class Announced:
    """A transfer before its content: its task, length, and the BLAKE2b of all of it."""

    id: bytes
    size: int
    digest: bytes


@dataclass(frozen=True)
class Hello:
    """Who the device is, what it has of a task, and the answer that it still has to send.

    Attributes:
        version: of the link.
        instance: random bytes of this process; another process with the same key has others.
        name: that the client is enrolled under.
        software: version of fedge, for the operator.
        signature: see ``session.hello_parts``.
        held: the task that it has, whole or in part.
        answering: the answer that was not acknowledged yet.
    """

    version: int
    instance: bytes
    name: str
    software: str
    signature: bytes
    held: Place | None = None
    answering: Announced | None = None


@dataclass(frozen=True)
class Welcome:
    """The link is open. A device that says nothing for ``silence`` seconds is hung up on.

    ``at``: how much of the answer that the hello announced is here already.
    """

    silence: int
    at: int


@dataclass(frozen=True)
class Bye:
    """The sender hangs up; the device should come back in ``seconds`` (0: as it likes)."""

    reason: Reason
    seconds: int
    text: str


@dataclass(frozen=True)
class TaskPart:
    """A task begins, or goes on at byte ``at`` after a break. ``deadline``: seconds left, 0 for none."""

    announced: Announced
    deadline: int
    at: int
    data: bytes


@dataclass(frozen=True)
class AnswerPart:
    """An answer begins, or goes on at byte ``at`` after a break."""

    announced: Announced
    at: int
    data: bytes


@dataclass(frozen=True)
class More:
    """Further bytes of the transfer whose id starts with ``tag``."""

    tag: bytes
    at: int
    data: bytes


@dataclass(frozen=True)
class At:
    """The receiver has bytes ``[0, at)``: all of them, safe on its disk, or it asks to go on from there."""

    place: Place


@dataclass(frozen=True)
class Done:
    """An answer has arrived and is settled; the device may forget it."""

    id: bytes
    outcome: Outcome


@dataclass(frozen=True)
class Drop:
    """The server no longer wants this task done."""

    id: bytes


@dataclass(frozen=True)
class Refusal:
    """The device will not answer this task; it may be asked again in ``seconds`` (0: nothing is known)."""

    id: bytes
    kind: Refused
    seconds: int
    text: str


@dataclass(frozen=True)
class Delay:
    """The device has the task and will start it in about ``seconds``."""

    id: bytes
    kind: Refused
    seconds: int
    text: str


Frame = Challenge | Hello | Welcome | Bye | TaskPart | AnswerPart | More | At | Done | Drop | Refusal | Delay


def shorten(text: str, most: int = TEXT_BYTES) -> str:
    """``text`` in one line and at most ``most`` bytes of UTF-8."""
    return " ".join(text.split()).encode("utf-8", "replace")[:most].decode("utf-8", "ignore")
