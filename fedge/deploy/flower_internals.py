"""Everything that the deployment takes from inside Flower, in one place (tested with Flower 1.41).

The gateway stands for one Flower node per client, and the supervisor starts runs; Flower's own programs for
both are commands, so this speaks the same HTTP calls to the unmodified SuperLink on loopback. In which order
the calls come, and what of it is private, is written in ``docs/decisions/flower-below.md``.
"""

import hashlib
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Error, Message, Metadata
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.cli.build import build_fab_from_disk
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_from_proto, message_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import ListRunsRequest, RegisterNodeRequest, StartRunRequest, StopRunRequest
from flwr.proto.fab_pb2 import Fab
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
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    get_object_type_from_object_content,
    no_object_id_recompute,
)
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.superlink.grid import HttpGrid
from flwr.supernode.fleet_http_client import FleetHttpClient
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # ships no types

from fedge.errors import PayloadError, UpdateError
from fedge.flower.messages import REFUSED, UNSOUND, with_frame

HEARTBEAT = 1800.0
"""Seconds for which a node's sign of life is good, halved: Flower waits for twice this."""

PUSH_MESSAGES, PUSH_OBJECT = "/v1/fleet/push-messages", "/v1/fleet/push-object"

_KINDS = ("Message", "RecordDict", "ConfigRecord", "MetricRecord")
_PARTS, _DEPTH = 16, 3
_SIGNED_FOR = 60.0  # seconds for which one signature serves; Flower takes it for 300
_PATIENCE = 10  # looks for the content of a message, 10 s in all
_RUN_OVER = (403, 404)
_ACTIVE = ("pending", "starting", "running")


@dataclass
class NodeKey:
    """A node's key pair and its current signature; Flower signs the time and nothing else."""

    private: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    _headers: dict[str, str] = field(default_factory=dict)
    _until: float = 0.0

    @property
    def public(self) -> bytes:
        """The public key as Flower wants it: PEM."""
        kinds = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        return self.private.public_key().public_bytes(*kinds)

    def headers(self) -> dict[str, str]:
        """What proves to Flower that a call is this node's."""
        if time.monotonic() >= self._until:
            stamp = datetime.now(UTC).isoformat()
            signature = self.private.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
            self._headers = {
                "flwr-public-key": b64encode(self.public).decode(),
                "flwr-timestamp": stamp,
                "flwr-signature": b64encode(signature).decode(),
            }
            self._until = time.monotonic() + _SIGNED_FOR
        return self._headers


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


class _Sign:
    """Signs each call with the key of the node that the calling thread stands for just now."""

    def __init__(self) -> None:
        self._as = threading.local()

    @contextmanager
    def of(self, key: NodeKey) -> Iterator[None]:
        self._as.key = key
        try:
            yield
        finally:
            del self._as.key

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        context.request.headers.update(self._as.key.headers())
        return call_next(context)


class SuperLink:
    """The SuperLink at ``address``, as nodes and as the one who starts runs. Safe to share between threads.

    Every method raises ``ConnectionError`` when the SuperLink is away or does not know the node (it was
    started anew, say, and everything has to be registered again), and ``UpdateError`` when the run that a
    message belongs to is over.
    """

    def __init__(self, address: str, largest: int = 64 << 20) -> None:
        """Connect when first needed; nothing larger than ``largest`` bytes is taken for a frame."""
        self._sign, self._largest = _Sign(), largest
        self._fleet = FleetHttpClient(f"http://{address}", interceptors=[self._sign], verify=False)
        self._control = ControlHttpClient(f"http://{address}", verify=False)

    def close(self) -> None:
        """Drop the connections."""
        self._fleet.close()
        self._control.close()

    def start_run(self, app: Path, config: Mapping[str, str]) -> int:
        """Start a run of the Flower app in the folder ``app``, the only one; returns its id."""
        content = build_fab_from_disk(app)
        fab = Fab(hash_str=hashlib.sha256(content).hexdigest(), content=content)
        request = StartRunRequest(fab=fab, override_config=user_config_to_proto(dict(config)))
        with _reached():
            for run, older in self._control.ListRuns(ListRunsRequest()).run_dict.items():
                if older.status.status in _ACTIVE:
                    self._control.StopRun(StopRunRequest(run_id=run))
            return int(self._control.StartRun(request).run_id)

    def stop_run(self, run: int) -> None:
        """Make sure that a run has ended."""
        if self.run_ended(run) is not None:
            return
        with _reached():
            self._control.StopRun(StopRunRequest(run_id=run))

    def run_ended(self, run: int) -> str | None:
        """Why a run is over (``"completed"``, or what went wrong); ``None`` while it goes on."""
        with _reached():
            status = self._control.ListRuns(ListRunsRequest(run_id=run)).run_dict[run].status
        if status.status in _ACTIVE:
            return None
        done = status.sub_status == "completed"
        return "completed" if done else f"{status.sub_status or status.status}: {status.details}"

    def join(self, key: NodeKey) -> int:
        """Register and activate a node; returns its id."""
        with _reached():
            node = self._control.RegisterNode(RegisterNodeRequest(public_key=key.public)).node_id
        self.activate(key)
        return int(node)

    def register(self, public: bytes) -> None:
        """Make a stock node's public key known; a key that is known already is fine."""
        try:
            with _reached():
                self._control.RegisterNode(RegisterNodeRequest(public_key=public))
        except ConnectionError as error:
            if "already" not in str(error):
                raise

    def activate(self, key: NodeKey) -> None:
        """A registered node is there."""
        request = ActivateNodeRequest(public_key=key.public, heartbeat_interval=HEARTBEAT)
        with self._sign.of(key), _reached():
            self._fleet.ActivateNode(request)

    def deactivate(self, key: NodeKey, node: int) -> None:
        """A node leaves; it may be activated again at once."""
        with self._sign.of(key), _reached():
            self._fleet.DeactivateNode(DeactivateNodeRequest(node_id=node))

    def heartbeat(self, key: NodeKey, node: int) -> None:
        """A node is still there."""
        request = SendNodeHeartbeatRequest(node=Node(node_id=node), heartbeat_interval=HEARTBEAT)
        with self._sign.of(key), _reached():
            if not self._fleet.SendNodeHeartbeat(request).success:
                raise ConnectionError("the SuperLink does not know this node")

    def fetch(self, key: NodeKey, node: int) -> Fetched | None:
        """The oldest message that waits for a node, if there is one.

        Raises:
            PayloadError: it carries no frame; it is gone then, and was answered with an error.
        """
        with self._sign.of(key), _reached():
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
        with self._sign.of(key), _reached():
            self._fleet.ConfirmMessageReceived(request)

    def _frame(self, node: int, run: int, tree: ObjectTree) -> bytes:
        """The frame in a message of ours: message, record dictionary, one record, nothing else."""
        leaf = _only_child(_only_child(tree))
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
        with no_object_id_recompute(), self._sign.of(key), _reached():
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
            record = _only_child(tree := response.message_object_trees[0])
            leaf = _only_child(record).object_id
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


def _only_child(tree: ObjectTree) -> ObjectTree:
    if len(tree.children) != 1:
        raise PayloadError(f"a message with {len(tree.children)} parts where one is expected")
    child: ObjectTree = tree.children[0]
    return child


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


@contextmanager
def _reached() -> Iterator[None]:
    """Flower's ways of saying that the SuperLink is away, or another one than before, become one."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        said = f"Flower says {error.response.status_code}: {error.response.text[:200]}"
        if error.response.status_code in _RUN_OVER:
            raise UpdateError(said) from None
        raise ConnectionError(said) from None
    except (httpx.HTTPError, RuntimeError) as error:
        raise ConnectionError(f"the SuperLink cannot be reached: {error}") from None


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
