"""What a stock node hands in at the door, checked before anything of it is inflated anywhere."""

from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.supercore.inflatable.inflatable_object import get_object_type_from_object_content
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no types

from fedge.errors import PayloadError
from fedge.flower.messages import UNSOUND

PUSH_MESSAGES, PUSH_OBJECT = "/v1/fleet/push-messages", "/v1/fleet/push-object"

_KINDS = ("Message", "RecordDict", "ConfigRecord", "MetricRecord")
_PARTS, _DEPTH = 16, 3


def check_upload(path: str, body: bytes) -> None:
    """Check what a stock node hands in, before anything of it is inflated anywhere.

    One message per call, in the node's own name, of few parts; and parts that hold records of plain values.
    An array's chunk list may name one chunk many times and grow a thousandfold; none of ours is an array.

    Raises:
        PayloadError: it is something else.
    """
    try:
        if path == PUSH_MESSAGES:
            _check_messages(PushMessagesRequest.FromString(body))
        elif path == PUSH_OBJECT:
            kind = get_object_type_from_object_content(PushObjectRequest.FromString(body).object_content)
            if kind not in _KINDS:
                raise PayloadError(f"an object of the kind {kind!r:.40}")
    except (DecodeError, ValueError, TypeError, AttributeError) as error:
        raise PayloadError(f"a call that cannot be read: {error}") from None


def _check_messages(request: PushMessagesRequest) -> None:
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        raise PayloadError("one message in a call is expected")
    if request.messages_list[0].metadata.src_node_id != request.node.node_id:
        raise PayloadError("a message in another node's name")
    if request.messages_list[0].error.code == UNSOUND:
        raise PayloadError("an accusation, which is the gateway's word")
    level, parts = [request.message_object_trees[0]], 0
    for _ in range(_DEPTH):
        parts += len(level)
        level = [child for tree in level for child in tree.children]
        if parts + len(level) > _PARTS:
            raise PayloadError(f"a message of more than {_PARTS} parts")
    if level:
        raise PayloadError(f"a message of more than {_DEPTH} levels")
