"""The gateway's end of the link: frames in, events out. It knows no socket, no registry and no clock."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fedge.link.coding import decode, encode
from fedge.link.device_end import CONTROL_LIMIT
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
    TaskPart,
    Welcome,
    shorten,
)
from fedge.link.transfer import Arriving, Leaving, announce


@dataclass
class GatewayDesk:
    """What a gateway has of one client, whether there is a link or not.

    Attributes:
        task: what the client has to do, and the frame that says so.
        held: whether the client has it whole and safe.
        answer: the answer that is on its way.
        last: the task that was settled last, and how.
    """

    task: tuple[Announced, bytes] | None = None
    held: bool = False
    answer: Arriving | None = None
    last: Done | None = None

    def give(self, id: bytes, frame: bytes) -> None:  # noqa: A002
        """A new task; an older one is void."""
        self.task, self.held, self.answer = (announce(id, frame), frame), False, None

    def settle(self, id: bytes, outcome: Outcome) -> None:  # noqa: A002
        """The task is over."""
        self.last = Done(id, outcome)
        if self.task is not None and self.task[0].id == id:
            self.task, self.held, self.answer = None, False, None

    @property
    def size(self) -> int:
        """Bytes that are kept for this client, or promised to it."""
        kept = len(self.task[1]) if self.task is not None else 0
        return kept + (self.answer.announced.size if self.answer is not None else 0)

    def wants(self, id: bytes) -> bool:  # noqa: A002
        """Whether this is the task that is waited for."""
        return self.task is not None and self.task[0].id == id


@dataclass(frozen=True)
class Greeted:
    """The client is who it says, and the link is open."""

    hello: Hello


@dataclass(frozen=True)
class TaskHeld:
    """The client has the task, whole and safe on its disk."""

    id: bytes


@dataclass(frozen=True)
class AnswerWhole:
    """The answer is here and is what was announced. Call ``settled`` once it is handed over."""

    id: bytes
    content: bytes


@dataclass(frozen=True)
class Left:
    """The device hangs up, and says why."""

    bye: Bye


Event = Greeted | TaskHeld | AnswerWhole | Refusal | Delay | Left


@dataclass(frozen=True)
class Door:
    """What the gateway's end asks of whoever runs it.

    Attributes:
        admit: the desk of the client that says hello (the bytes of the challenge are given too); raises
            ``LinkError`` with the reason if it is not let in.
        room: raises ``LinkError`` if so many bytes of an answer cannot be taken now.
        silence: seconds after which a silent device is hung up on.
        largest_answer: in bytes.
    """

    admit: Callable[[Hello, bytes], GatewayDesk]
    room: Callable[[int], None]
    silence: int
    largest_answer: int


class GatewayEnd:
    """One connection, seen from the gateway. Give it every message; send every ``next_message``."""

    def __init__(self, door: Door, nonce: bytes, now: int) -> None:
        """Start on a new connection with 32 random bytes and the Unix time in seconds."""
        self._door, self._nonce = door, nonce
        self._control: deque[Frame] = deque([Challenge(VERSION, VERSION, nonce, now)])
        self._leaving: Leaving | None = None
        self._desk: GatewayDesk | None = None

    @property
    def opened(self) -> bool:
        """Whether the client was let in."""
        return self._desk is not None

    def receive(self, message: bytes) -> list[Event]:
        """What a message means.

        Raises:
            LinkError: it breaks the rules, or the client is not let in; say goodbye and hang up.
        """
        frame = decode(message)
        if isinstance(frame, Bye):
            return [Left(frame)]
        if isinstance(frame, Hello):
            return self._greet(frame)
        if self._desk is None:
            raise LinkError(f"a {type(frame).__name__} before the hello")
        return self._act(frame, self._desk)

    def next_message(self) -> bytes | None:
        """What to send next, if anything."""
        if self._control:
            return encode(self._control.popleft())
        if self._desk is None or (leaving := self._outgoing(self._desk)) is None or leaving.over:
            return None
        at, data = leaving.take()
        if leaving.begun:
            return encode(More(leaving.tag, at, data))
        leaving.begun = True
        return encode(TaskPart(leaving.announced, self.deadline, at, data))

    deadline = 0
    """Seconds that are left for the task, for its next first frame; 0 for no end."""

    def settled(self, id: bytes, outcome: Outcome) -> None:  # noqa: A002
        """Acknowledge an answer or a refusal: it was handed over, or nobody wants it."""
        if self._desk is not None:
            self._desk.settle(id, outcome)
            self._send(Done(id, outcome))

    def withdraw(self, id: bytes) -> None:  # noqa: A002
        """The server has given up this task."""
        if self._desk is not None:
            self._desk.settle(id, Outcome.UNWANTED)
            self._send(Drop(id))

    def part(self, reason: Reason, seconds: int, text: str) -> None:
        """Say goodbye before hanging up; nothing else is sent any more."""
        self._control.clear()
        self._control.append(Bye(reason, seconds, shorten(text)))
        self._leaving, self._desk = None, None

    def nudge(self) -> None:
        """Nothing has come for a while: ask for what is missing."""
        if self._desk is not None and (answer := self._desk.answer) is not None and not answer.whole:
            self._send(At(Place(answer.announced.id, answer.at)))

    def _greet(self, hello: Hello) -> list[Event]:
        if self._desk is not None:
            return []
        desk = self._door.admit(hello, self._nonce)
        events: list[Event] = [Greeted(hello)]
        desk.held, at = False, 0
        if (told := hello.answering) is not None:
            if desk.wants(told.id):
                at, more = self._go_on(told, desk)
                events += more
            else:
                known = desk.last is not None and desk.last.id == told.id
                self._control.append(desk.last if known and desk.last else Done(told.id, Outcome.UNWANTED))
        self._desk = desk
        if hello.held is not None:
            events += self._resume(hello.held, desk, hello.answering)
        self._control.append(Welcome(self._door.silence, at))
        return events

    def _go_on(self, told: Announced, desk: GatewayDesk) -> tuple[int, list[Event]]:
        """An answer that was on its way goes on where it stopped; its task is not sent again."""
        if (leaving := self._outgoing(desk)) is not None:
            leaving.resume(leaving.announced.size)
        if desk.answer is None or desk.answer.announced != told:
            desk.answer = self._begin(told)
        if desk.answer.whole:  # it was not handed over: try again
            return desk.answer.at, [AnswerWhole(told.id, bytes(desk.answer.content))]
        return desk.answer.at, []

    def _begin(self, told: Announced) -> Arriving:
        if told.size > self._door.largest_answer:
            text = f"an answer of {told.size} bytes; at most {self._door.largest_answer} are taken"
            raise LinkError(text, Reason.TOO_LARGE)
        self._door.room(told.size)
        return Arriving(told)

    def _resume(self, held: Place, desk: GatewayDesk, answering: Announced | None) -> list[Event]:
        """A task that was on its way goes on where it stopped; one that is not wanted is dropped."""
        if not desk.wants(held.id):
            if answering is None or answering.id != held.id:
                self._control.append(Drop(held.id))
            return []
        if (leaving := self._outgoing(desk)) is not None:
            leaving.resume(held.at)
        return self._acknowledged(held, desk)

    def _acknowledged(self, place: Place, desk: GatewayDesk) -> list[Event]:
        if desk.task is None or desk.held or place.at != desk.task[0].size:
            return []
        desk.held = True
        return [TaskHeld(place.id)]

    def _act(self, frame: Frame, desk: GatewayDesk) -> list[Event]:
        match frame:
            case AnswerPart():
                return self._on_answer(frame, desk)
            case More():
                return self._on_more(frame, desk)
            case At():
                return self._on_at(frame, desk)
            case Refusal():
                return self._on_refusal(frame, desk)
            case Delay():
                return [frame] if desk.wants(frame.id) else []
            case _:
                raise LinkError(f"a {type(frame).__name__} is out of place")

    def _on_answer(self, frame: AnswerPart, desk: GatewayDesk) -> list[Event]:
        told = frame.announced
        if not desk.wants(told.id):
            known = desk.last is not None and desk.last.id == told.id
            self._send(desk.last if known and desk.last else Done(told.id, Outcome.UNWANTED))
            return []
        if desk.answer is None or desk.answer.announced != told:
            desk.answer = None  # before there is room for another
            desk.answer = self._begin(told)
        return self._take(desk.answer, frame.at, frame.data, desk)

    def _on_more(self, frame: More, desk: GatewayDesk) -> list[Event]:
        answer = desk.answer
        if answer is None or not answer.announced.id.startswith(frame.tag):
            return []
        return self._take(answer, frame.at, frame.data, desk)

    def _take(self, answer: Arriving, at: int, data: bytes, desk: GatewayDesk) -> list[Event]:
        new = answer.take(at, data)
        if answer.missing(at):
            self.nudge()
        if not new or not answer.whole:
            return []
        if (content := answer.finish()) is None:
            self.nudge()
            return []
        desk.held = True
        return [AnswerWhole(answer.announced.id, content)]

    def _on_at(self, frame: At, desk: GatewayDesk) -> list[Event]:
        leaving = self._outgoing(desk)
        if leaving is None or leaving.announced.id != frame.place.id:
            return []
        leaving.rewind(frame.place.at)
        return self._acknowledged(frame.place, desk)

    def _on_refusal(self, frame: Refusal, desk: GatewayDesk) -> list[Event]:
        if desk.wants(frame.id):
            return [frame]
        known = desk.last is not None and desk.last.id == frame.id
        self._send(desk.last if known and desk.last else Done(frame.id, Outcome.UNWANTED))
        return []

    def _outgoing(self, desk: GatewayDesk) -> Leaving | None:
        """The task that is being sent on this connection."""
        if desk.task is None:
            self._leaving = None
        elif self._leaving is None or self._leaving.announced != desk.task[0]:
            self._leaving = Leaving(*desk.task)
        return self._leaving

    def _send(self, frame: Frame) -> None:
        if len(self._control) >= CONTROL_LIMIT:
            raise LinkError("the device asks for answers faster than it takes them")
        self._control.append(frame)
