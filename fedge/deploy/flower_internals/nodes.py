"""The gateway's side: one Flower node per client, which fetches messages and answers them."""

import time
from dataclasses import dataclass

from flwr.app import Error, Message, Metadata
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.control_pb2 import RegisterNodeRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supernode.fleet_http_client import FleetHttpClient

from fedge.deploy.flower_internals.calls import reached
from fedge.deploy.flower_internals.keys import NodeKey, Sign
from fedge.deploy.flower_internals.records import only_child, record_frame
from fedge.errors import PayloadError, UpdateError
from fedge.flower.messages import REFUSED, with_frame

HEARTBEAT = 1800.0
"""Seconds for which a node's sign of life is good, halved: Flower waits for twice this."""

_PATIENCE = 10  # looks for the content of a message, 10 s in all


@dataclass(frozen=True)
class Fetched:
    """A message that a node was sent: its frame, and what the reply has to refer to."""

    metadata: Metadata
    frame: bytes

    @property
    def task(self) -> bytes:
        """Its name in 16 bytes."""
        return bytes.fromhex(self.metadata.message_id)[:16]

    @property
    def expires(self) -> float:
        """Unix time after which Flower takes no reply."""
        return self.metadata.created_at + self.metadata.ttl


class Nodes:
    """Nodes of the SuperLink at ``address``. Safe to share between threads.

    Every method raises ``ConnectionError`` when the SuperLink is away or does not know the node (it was
    started anew, say, and everything has to be registered again), and ``UpdateError`` when the run that a
    message belongs to is over.
    """

    def __init__(self, address: str, largest: int = 64 << 20) -> None:
        """Connect when first needed; nothing larger than ``largest`` bytes is taken for a frame."""
        self._sign, self._largest = Sign(), largest
        self._fleet = FleetHttpClient(f"http://{address}", interceptors=[self._sign], verify=False)
        self._control = ControlHttpClient(f"http://{address}", verify=False)

    def close(self) -> None:
        """Drop the connections."""
        self._fleet.close()
        self._control.close()

    def join(self, key: NodeKey) -> int:
        """Register and activate a node; returns its id."""
        with reached():
            node = self._control.RegisterNode(RegisterNodeRequest(public_key=key.public)).node_id
        self.activate(key)
        return int(node)

    def register(self, public: bytes) -> None:
        """Make a stock node's public key known; a key that is known already is fine."""
        try:
            with reached():
                self._control.RegisterNode(RegisterNodeRequest(public_key=public))
        except ConnectionError as error:
            if "already" not in str(error):
                raise

    def activate(self, key: NodeKey) -> None:
        """A registered node is there."""
        request = ActivateNodeRequest(public_key=key.public, heartbeat_interval=HEARTBEAT)
        with self._sign.of(key), reached():
            self._fleet.ActivateNode(request)

    def deactivate(self, key: NodeKey, node: int) -> None:
        """A node leaves; it may be activated again at once."""
        with self._sign.of(key), reached():
            self._fleet.DeactivateNode(DeactivateNodeRequest(node_id=node))

    def heartbeat(self, key: NodeKey, node: int) -> None:
        """A node is still there."""
        request = SendNodeHeartbeatRequest(node=Node(node_id=node), heartbeat_interval=HEARTBEAT)
        with self._sign.of(key), reached():
            if not self._fleet.SendNodeHeartbeat(request).success:
                raise ConnectionError("the SuperLink does not know this node")

    def fetch(self, key: NodeKey, node: int) -> Fetched | None:
        """The oldest message that waits for a node, if there is one.

        Raises:
            PayloadError: it carries no frame; it is gone then, and was answered with an error.
        """
        with self._sign.of(key), reached():
            response = self._fleet.PullMessages(PullMessagesRequest(node=Node(node_id=node)))
            if not response.messages_list:
                return None
            metadata = message_from_proto(response.messages_list[0]).metadata
            try:
                frame = self._frame(node, metadata.run_id, response.message_object_trees[0])
            except PayloadError as error:
                self.reply(key, node, Fetched(metadata, b""), Error(REFUSED, str(error)))
                raise
            return Fetched(metadata, frame)

    def confirm(self, key: NodeKey, node: int, fetched: Fetched) -> None:
        """A message has arrived: the SuperLink may forget its content."""
        request = ConfirmMessageReceivedRequest(
            node=Node(node_id=node),
            run_id=fetched.metadata.run_id,
            message_object_id=fetched.metadata.message_id,
        )
        with self._sign.of(key), reached():
            self._fleet.ConfirmMessageReceived(request)

    def _frame(self, node: int, run: int, tree: ObjectTree) -> bytes:
        """The frame in a message of ours: message, record dictionary, one record, nothing else."""
        leaf = only_child(only_child(tree))
        request = PullObjectRequest(node=Node(node_id=node), run_id=run, object_id=leaf.object_id)
        for attempt in range(_PATIENCE):  # the round loop pushes a message first and then its content
            response = self._fleet.PullObject(request)
            if response.object_available or not response.object_found:
                break
            time.sleep(0.01 * 2**attempt)
        if not response.object_available:
            raise PayloadError("a message without its content")
        return record_frame(response.object_content, self._largest)

    def reply(self, key: NodeKey, node: int, to: Fetched, answer: bytes | Error) -> None:
        """Answer a message with a frame, or with the reason why there is none.

        Raises:
            UpdateError: Flower no longer wants this answer.
        """
        message = _reply(node, to.metadata, answer)
        with no_object_id_recompute(), self._sign.of(key), reached():
            message.metadata.__dict__["_message_id"] = message.object_id
            objects = get_all_nested_objects(message)
            response = self._fleet.PushMessages(
                PushMessagesRequest(
                    node=Node(node_id=node),
                    messages_list=[message_to_proto(remove_content_from_message(message))],
                    message_object_trees=[get_object_tree(message)],
                    clientapp_runtime_list=[0.0],
                )
            )
            if not response.objects_to_push:
                raise UpdateError("the server no longer waits for this answer")
            for wanted in response.objects_to_push:
                self._fleet.PushObject(
                    PushObjectRequest(
                        node=Node(node_id=node),
                        run_id=to.metadata.run_id,
                        session_id=response.session_id,
                        object_id=wanted,
                        object_content=objects[wanted].deflate(),
                    )
                )


def _reply(node: int, to: Metadata, answer: bytes | Error) -> Message:
    now = time.time()
    metadata = Metadata(
        run_id=to.run_id,
        message_id="",
        src_node_id=node,
        dst_node_id=SUPERLINK_NODE_ID,
        reply_to_message_id=to.message_id,
        group_id=to.group_id,
        created_at=now,
        ttl=max(0.001, to.created_at + to.ttl - now),
        message_type=to.message_type,
    )
    if isinstance(answer, Error):
        return make_message(metadata, error=answer)
    return make_message(metadata, content=with_frame(answer))
