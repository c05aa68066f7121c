"""The ServerApp's side: replies pulled one by one, and who is there."""

import time
from collections.abc import Callable, Iterable, Iterator

import httpx
from flwr.app import Error, Message, Metadata
from flwr.app.message.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.superlink.grid import HttpGrid

from fedge.deploy.flower_internals.records import only_child, record_frame
from fedge.errors import PayloadError
from fedge.flower.messages import REFUSED, with_frame


class BoundedPull:
    """Pulls replies for the ServerApp, one by one, so that a bad one harms no other.

    ``Grid.pull_messages`` fails as a whole when one reply is bad, inflates whatever it is given, and waits
    for content that a node promised and never sends. Here a reply has one record with one frame or is
    refused, its size is checked first, and content that is not there yet is sought again with the next call.
    """

    def __init__(
        self, grid: Grid, largest: int, whole: Callable[[str], bool] = lambda _message: False
    ) -> None:
        """Nothing is pulled yet.

        Args:
            grid: of a deployed run.
            largest: nothing with more bytes is taken for a frame.
            whole: whether all parts of the reply to a message are known to be there. Otherwise each is
                looked for: of a reply that is taken too early, Flower refuses the node the rest.
        """
        self._grid, self._largest, self._whole = _deployed(grid), largest, whole
        self._promised: dict[str, tuple[Metadata, tuple[str, ...]]] = {}

    def __call__(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """The replies to these messages that are there, whole or as an error."""
        for message_id in message_ids:
            try:
                reply = self._one(message_id)
            except PayloadError as error:
                reply = _refusal(message_id, str(error))
            except httpx.HTTPStatusError:
                reply = _refusal(message_id, "Flower has given up waiting for the answer")
            if reply is not None:
                self._promised.pop(message_id, None)
                yield reply

    def forget(self, message_id: str) -> None:
        """Nobody waits for the reply to this message any more."""
        self._promised.pop(message_id, None)

    def _one(self, message_id: str) -> Message | None:
        if message_id not in self._promised:
            request = PullAppMessagesRequest(message_ids=[message_id])
            response = self._grid._runtime_client.PullMessages(request)
            if not response.messages_list:
                return None
            message = message_from_proto(response.messages_list[0])
            if message.has_error():
                return message
            record = only_child(tree := response.message_object_trees[0])
            leaf = only_child(record).object_id
            self._promised[message_id] = message.metadata, (tree.object_id, record.object_id, leaf)
        metadata, parts = self._promised[message_id]
        run, node = metadata.run_id, self._grid.node
        for part in parts[-1:] if self._whole(message_id) else parts:
            content = self._grid._runtime_client.PullObject(
                PullObjectRequest(node=node, run_id=run, object_id=part)
            )
            if not content.object_available:
                return None
        self._grid._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=node, run_id=run, message_object_id=metadata.message_id)
        )
        frame = record_frame(content.object_content, self._largest)
        return make_message(metadata, content=with_frame(frame))


def _refusal(message_id: str, why: str) -> Message:
    """A reply of our own that says why there is none."""
    about = Metadata(0, "", SUPERLINK_NODE_ID, SUPERLINK_NODE_ID, message_id, "", time.time(), 1.0, "train")
    return make_message(about, error=Error(REFUSED, why))


def _deployed(grid: Grid) -> HttpGrid:
    if not isinstance(grid, HttpGrid):
        raise TypeError(f"a deployed federation runs on Flower's HttpGrid, this is {type(grid).__name__}")
    return grid


def run_id_of(grid: Grid) -> int:
    """Which run this process works for."""
    return int(grid.run.run_id)


def stock_nodes(grid: Grid) -> dict[bytes, int]:
    """The nodes that are there, by public key (PEM)."""
    return {bytes(node.public_key): int(node.node_id) for node in _deployed(grid).get_nodes()}
