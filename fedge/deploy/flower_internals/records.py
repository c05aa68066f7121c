"""The one form that a message may have here: a record dictionary with one record, and in it one frame."""

from flwr.app import ConfigRecord
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_object_type_from_object_content
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no types

from fedge.errors import PayloadError


def record_frame(content: bytes, largest: int) -> bytes:
    """The frame in a deflated record, whose size and kind are checked before it is inflated.

    Raises:
        PayloadError: it is too large, or no record with a frame.
    """
    if len(content) > largest:
        raise PayloadError(f"a frame of {len(content)} bytes; at most {largest} are taken")
    try:
        if get_object_type_from_object_content(content) != "ConfigRecord":
            raise PayloadError("a message carries something else than a frame")
        frame = ConfigRecord.inflate(content).get("frame")
    except (ValueError, TypeError, KeyError, AttributeError, DecodeError) as error:
        raise PayloadError(f"a message that cannot be read: {error}") from None
    if not isinstance(frame, bytes):
        raise PayloadError("a message carries no frame of fedge")
    return frame


def only_child(tree: ObjectTree) -> ObjectTree:
    """The one part of a message, or of a part of it.

    Raises:
        PayloadError: it has none, or several.
    """
    if len(tree.children) != 1:
        raise PayloadError(f"a message with {len(tree.children)} parts where one is expected")
    child: ObjectTree = tree.children[0]
    return child
