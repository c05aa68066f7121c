"""One frame in one Flower message: a single bytes value, which costs some 30 bytes of framing."""

from flwr.app import ConfigRecord, Error, Message, RecordDict

from fedge.errors import FedgeError, PayloadError, RefusedError, UpdateError
from fedge.federated.unsound import UnsoundError

_RECORD, _FRAME = "fedge", "frame"

REFUSED, CANNOT_FOLLOW, UNSOUND = 1001, 1002, 1003
"""Error codes of our own: a client refused a task; a client cannot follow and must be welcomed again; what a
client claimed of its answer, under its own certificate, is not so. The last is the gateway's word only."""


def with_frame(frame: bytes) -> RecordDict:
    """Content that carries ``frame``."""
    return RecordDict({_RECORD: ConfigRecord({_FRAME: frame})})


def frame_of(message: Message) -> bytes:
    """The frame in a message.

    Raises:
        UnsoundError: the gateway says that the client answers for there being none.
        UpdateError: the client says that it cannot follow.
        FedgeError: the message carries another error.
        PayloadError: there is no frame in it.
    """
    if message.has_error():
        reason = message.error.reason or f"error {message.error.code} without a reason"
        kinds: dict[int, type[FedgeError]] = {
            CANNOT_FOLLOW: UpdateError,
            REFUSED: RefusedError,
            UNSOUND: UnsoundError,
        }
        raise kinds.get(message.error.code, FedgeError)(reason)
    record = message.content.get(_RECORD)
    frame = record.get(_FRAME) if isinstance(record, ConfigRecord) else None
    if not isinstance(frame, bytes):
        raise PayloadError("a message carries no frame of fedge")
    return frame


def error_reply(error: FedgeError, to: Message) -> Message:
    """A reply that says why there is no answer."""
    code = CANNOT_FOLLOW if isinstance(error, UpdateError) else REFUSED
    return Message(Error(code, str(error)), reply_to=to)
