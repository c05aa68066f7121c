"""The device's end of the link: frames in, events out. It knows no socket, no file and no clock."""

from collections import deque
from dataclasses import dataclass

from fedge.link.coding import decode, encode
from fedge.link.frames import (
    VERSION,
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
    shorten,
)
from fedge.link.transfer import Arriving, Leaving, announce
from fedge.signing import SigningKey

HELLO = "fedge link"
"""Purpose of the signature in a hello."""

CONTROL_LIMIT = 64
"""Most small frames that wait to be sent."""


@dataclass(frozen=True)
class Identity:
    """Who a device is.

    Attributes:
        federation: hex name of the federation.
        name: that the client is enrolled under.
        key: its signing key.
        certificate: SHA-256 of its certificate (DER), 32 bytes.
        instance: random bytes of this process.
        software: version of fedge.
    """

    federation: str
    name: str
    key: SigningKey
    certificate: bytes
    instance: bytes
    software: str


def hello_parts(
    federation: str, name: str, nonce: bytes, certificate: bytes, version: int
) -> tuple[bytes, ...]:
    """What a device signs: so a hello is good for one connection, federation, client and certificate."""
    return federation.encode(), name.encode(), nonce, certificate, bytes([version])


@dataclass
class DeviceDesk:
    """What a device has, whether there is a link or not.

    Attributes:
        arriving: the task that is on its way.
        held: the task that is whole and safe on the disk.
        answer: the answer that is not acknowledged yet.
        refusal: or why there is none.
    """

    arriving: Arriving | None = None
    held: Place | None = None
    answer: tuple[Announced, bytes] | None = None
    refusal: Refusal | None = None


@dataclass(frozen=True)
class Opened:
    """The link is open. ``time``: the gateway's Unix time at the challenge; ``silence``: see ``Welcome``."""

    time: int
    silence: int


@dataclass(frozen=True)
class Begun:
    """A new task begins to arrive; an unfinished one is void."""

    announced: Announced


@dataclass(frozen=True)
class Arrived:
    """The next bytes of it."""

    data: bytes


@dataclass(frozen=True)
class TaskWhole:
    """All of it is here and is what was announced. Call ``stored`` once it is safe."""

    id: bytes
    frame: bytes
    deadline: int


@dataclass(frozen=True)
class Withdrawn:
    """This task is no longer wanted."""

    id: bytes


@dataclass(frozen=True)
class Settled:
    """The answer to this task arrived; it can be forgotten."""

    id: bytes
    outcome: Outcome


@dataclass(frozen=True)
class Parted:
    """The gateway hangs up."""

    reason: Reason
    seconds: int
    text: str


Event = Opened | Begun | Arrived | TaskWhole | Withdrawn | Settled | Parted


class DeviceEnd:
    """One connection, seen from the device. Give it every message; send every ``next_message``."""

    def __init__(self, identity: Identity, desk: DeviceDesk, largest_task: int) -> None:
        """Start on a new connection, with what the device already has."""
        self._identity, self._desk, self._largest = identity, desk, largest_task
        self._control: deque[Frame] = deque()
        self._leaving: Leaving | None = None
        self._time: int | None = None  # of the gateway, once it has sent its challenge
        self.opened = False

    def receive(self, message: bytes) -> list[Event]:
        """What a message means.

        Raises:
            LinkError: it breaks the rules; hang up.
        """
        frame = decode(message)
        if isinstance(frame, Bye):
            return [Parted(frame.reason, frame.seconds, frame.text)]
        if self._time is None:
            return self._greet(frame)
        if not self.opened and isinstance(frame, TaskPart | More | At):
            raise LinkError(f"a {type(frame).__name__} is out of place")
        return self._act(frame)

    def next_message(self) -> bytes | None:
        """What to send next, if anything."""
        if self._control:
            return encode(self._control.popleft())
        if not self.opened or (leaving := self._outgoing()) is None or leaving.over:
            return None
        at, data = leaving.take()
        if leaving.begun:
            return encode(More(leaving.tag, at, data))
        leaving.begun = True
        return encode(AnswerPart(leaving.announced, at, data))

    def stored(self, id: bytes, size: int) -> None:  # noqa: A002
        """The task is safe on the disk: acknowledge it."""
        self._desk.held = Place(id, size)
        self._send(At(self._desk.held))

    def finish(self, id: bytes, content: bytes) -> bool:  # noqa: A002
        """The answer to the held task is safe on the disk: send it. False: it was withdrawn meanwhile."""
        if self._desk.held is None or self._desk.held.id != id:
            return False
        self._desk.answer = announce(id, content), content
        self._desk.refusal = None
        return True

    def refuse(self, id: bytes, kind: Refused, seconds: int, text: str) -> bool:  # noqa: A002
        """Say why there is no answer to the held task. False: it was withdrawn meanwhile."""
        if self._desk.held is None or self._desk.held.id != id:
            return False
        self._desk.refusal = Refusal(id, kind, seconds, shorten(text))
        self._send(self._desk.refusal)
        return True

    def delay(self, id: bytes, kind: Refused, seconds: int, text: str) -> None:  # noqa: A002
        """Say that the held task starts later, and why."""
        self._send(Delay(id, kind, seconds, shorten(text)))

    def part(self, reason: Reason, seconds: int, text: str) -> None:
        """Say goodbye before hanging up."""
        self._send(Bye(reason, seconds, shorten(text)))

    def nudge(self) -> None:
        """Nothing has come for a while: ask for what is missing."""
        if self.opened and (arriving := self._desk.arriving) is not None:
            self._send(At(Place(arriving.announced.id, arriving.at)))

    def _greet(self, frame: Frame) -> list[Event]:
        if not isinstance(frame, Challenge):
            raise LinkError(f"the gateway began with a {type(frame).__name__}")
        if not frame.lowest <= VERSION <= frame.highest:
            age = "older" if frame.lowest > VERSION else "newer"
            raise LinkError(
                f"this fedge speaks version {VERSION} of the link and is {age} than its server, which speaks "
                f"{frame.lowest} to {frame.highest}",
                Reason.VERSION,
            )
        self._time, me, desk = frame.time, self._identity, self._desk
        parts = hello_parts(me.federation, me.name, frame.nonce, me.certificate, VERSION)
        held = desk.held
        if held is None and (a := desk.arriving) is not None:
            held = Place(a.announced.id, a.at)
        answering = desk.answer[0] if desk.answer is not None else None
        signature = me.key.sign(HELLO, *parts)
        self._control.append(
            Hello(VERSION, me.instance, me.name, shorten(me.software, 32), signature, held, answering)
        )
        return []

    def _act(self, frame: Frame) -> list[Event]:
        match frame:
            case Welcome():
                return self._on_welcome(frame)
            case TaskPart():
                return self._on_task(frame)
            case More():
                return self._on_more(frame)
            case At():
                return self._on_at(frame)
            case Done():
                return self._on_done(frame)
            case Drop():
                return self._on_drop(frame)
            case _:
                raise LinkError(f"a {type(frame).__name__} is out of place")

    def _on_welcome(self, frame: Welcome) -> list[Event]:
        if self.opened or self._time is None:
            return []
        self.opened = True
        if (leaving := self._outgoing()) is not None:
            leaving.resume(frame.at)
        if self._desk.refusal is not None:
            self._control.append(self._desk.refusal)
        return [Opened(self._time, frame.silence)]

    def _on_task(self, frame: TaskPart) -> list[Event]:
        desk, told = self._desk, frame.announced
        if desk.held is not None and desk.held.id == told.id:
            self._send(At(desk.held))
            return []
        if told.size > self._largest:
            text = f"a task of {told.size} bytes; this device takes {self._largest}"
            self._send(Refusal(told.id, Refused.TOO_LARGE, 0, text))
            return []
        events: list[Event] = []
        if desk.arriving is None or desk.arriving.announced != told:
            desk.arriving = Arriving(told)
            events.append(Begun(told))
        desk.arriving.deadline = frame.deadline
        return events + self._take(desk.arriving, frame.at, frame.data)

    def _on_more(self, frame: More) -> list[Event]:
        arriving = self._desk.arriving
        if arriving is None or not arriving.announced.id.startswith(frame.tag):
            return []
        return self._take(arriving, frame.at, frame.data)

    def _take(self, arriving: Arriving, at: int, data: bytes) -> list[Event]:
        new = arriving.take(at, data)
        if arriving.missing(at):
            self.nudge()
        events: list[Event] = [Arrived(new)] if new else []
        if not arriving.whole:
            return events
        content = arriving.finish()
        if content is None:
            self.nudge()
            return [*events, Begun(arriving.announced)]
        self._desk.arriving = None
        return [*events, TaskWhole(arriving.announced.id, content, arriving.deadline)]

    def _on_at(self, frame: At) -> list[Event]:
        leaving = self._outgoing()
        if leaving is not None and leaving.announced.id == frame.place.id:
            leaving.rewind(frame.place.at)
        return []

    def _on_done(self, frame: Done) -> list[Event]:
        desk, known = self._desk, False
        if desk.answer is not None and desk.answer[0].id == frame.id:
            desk.answer, known = None, True
        if desk.refusal is not None and desk.refusal.id == frame.id:
            desk.refusal, known = None, True
        if known and desk.held is not None and desk.held.id == frame.id:
            desk.held = None
        return [Settled(frame.id, frame.outcome)] if known else []

    def _on_drop(self, frame: Drop) -> list[Event]:
        desk, known = self._desk, False
        if desk.held is not None and desk.held.id == frame.id:
            desk.held, known = None, True
        if desk.arriving is not None and desk.arriving.announced.id == frame.id:
            desk.arriving, known = None, True
        if desk.answer is not None and desk.answer[0].id == frame.id:
            desk.answer, known = None, True
        return [Withdrawn(frame.id)] if known else []

    def _outgoing(self) -> Leaving | None:
        """The answer that is being sent on this connection."""
        answer = self._desk.answer
        if answer is None:
            self._leaving = None
        elif self._leaving is None or self._leaving.announced != answer[0]:
            self._leaving = Leaving(*answer)
        return self._leaving

    def _send(self, frame: Frame) -> None:
        """Say something, once the link is open. A refusal is kept; all else is said again in a hello."""
        if len(self._control) >= CONTROL_LIMIT:
            raise LinkError("the gateway asks for answers faster than it takes them")
        if self.opened:
            self._control.append(frame)
