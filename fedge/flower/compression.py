"""The server's half of compression: a strategy around any of Flower's message-API strategies.

    strategy = Compressed(FedAvg(...))             # the server app
    app = ClientApp(mods=[compression_mod()])      # the client app

Down: what changed since the version that a node holds, or everything for a node that we do not know. Up: the
coded change, added to the strategy's own weights. So the strategy sees its weights plus what each node
changed, as it would have without compression, and what the codecs leave out comes later (error feedback).
"""

import logging
import secrets
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedge.errors import ConfigError, FedgeError, PayloadError, UpdateError
from fedge.flower.compress_frames import (
    NO_TICKET,
    TICKET_BYTES,
    Change,
    Down,
    as_record,
    decode_up,
    encode_down,
    find_frame,
    replaced,
)
from fedge.flower.compress_replies import alike, check_metrics, weight_key
from fedge.flower.compress_scheme import Coding, Named, decode, inflate, scheme_of
from fedge.flower.compress_traffic import Count, Traffic
from fedge.flower.compress_versions import History, advance, begin, way_from
from fedge.flower.messages import CANNOT_FOLLOW
from fedge.update import weights_hash

_log = logging.getLogger("flwr.fedge")

STATISTICS = ("*running_mean", "*running_var")
"""BatchNorm's statistics, by the names that PyTorch gives them."""

_DOWN: Mapping[str, Mapping[str, Any]] = {"ternary": {"share": 0.03}}

_STEPS = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate")


@dataclass
class _Node:
    """What is known of a node: the version that it confirmed, the ticket of its last update that counted."""

    version: int | None = None
    counted: bytes = NO_TICKET


@dataclass(frozen=True)
class _Asked:
    """A message that may still be answered."""

    node: int
    version: int


class Compressed(Strategy):
    """Any message-API strategy of Flower, with few bytes both ways.

    Put it outermost, around wrappers like those of differential privacy. Answers that are malformed, too
    large or unlike the others are logged and left out; the run goes on. Arrays keep their names and shapes
    for the whole run, and reach the nodes in the dtypes that they have in the first round.
    """

    def __init__(
        self,
        strategy: Strategy,
        uplink: str = "ternary",
        downlink: str = "ternary",
        *,
        uplink_settings: Mapping[str, Any] | None = None,
        downlink_settings: Mapping[str, Any] | None = None,
        snapshot_bits: int | None = 8,
        exact: tuple[str, ...] = STATISTICS,
        max_change: float = 1e3,
        max_weight: float = 1e6,
    ) -> None:
        """Wrap ``strategy``.

        Args:
            strategy: decides who trains and how answers are put together.
            uplink: codec of the nodes' changes, a module of ``fedge.codec``.
            downlink: codec of the global weights' changes.
            uplink_settings: of that codec, such as ``{"share": 0.02}``; its defaults where none are given.
            downlink_settings: likewise; for ``ternary``, 3 % of the entries where none are given: the mean of
                several nodes' changes is less sparse than each of them.
            snapshot_bits: bits of a value in the first download, 2 to 8; ``None``: float32.
            exact: patterns of names of float arrays that must travel as they are.
            max_change: largest change of one value that a node may send.
            max_weight: largest weight (``num-examples``) that a node may claim.

        Raises:
            ConfigError: no such codec, or a setting that it does not have or that is out of range.
        """
        self.strategy = strategy
        down = _DOWN.get(downlink, {}) if downlink_settings is None else downlink_settings
        self._codings = Coding(uplink, uplink_settings or {}), Coding(downlink, down)
        for coding in (
            *self._codings,
            Coding("quantized", {"bits": 8 if snapshot_bits is None else snapshot_bits}),
        ):
            coding.build()
        self._bits, self._patterns = snapshot_bits, exact
        self._max_change, self._max_weight = max_change, max_weight
        # Bound now: while ``start`` runs, these names of the strategy lead here.
        self._inner = {name: getattr(strategy, name) for name in _STEPS}
        self._history: History | None = None
        self._record: ArrayRecord | None = None
        self._arrays: Named = {}
        self._nodes: dict[int, _Node] = {}
        self._hash, self._exact = b"", b""
        self._asked: dict[bytes, _Asked] = {}
        self._count = Count()

    def summary(self) -> None:
        """Log what the ways are coded with, and the strategy's own summary."""
        for way, coding in zip(("up", "down"), self._codings, strict=True):
            _log.info("\t├──> Compression %s: %s %s", way, coding.codec, dict(coding.settings) or "")
        self.strategy.summary()

    def start(self, *args: Any, **kwargs: Any) -> Result:
        """The strategy's own ``start``, same arguments, with its four steps going through here."""
        for name in _STEPS:
            setattr(self.strategy, name, getattr(self, name))
        try:
            return self.strategy.start(*args, **kwargs)
        finally:
            for name in _STEPS:
                delattr(self.strategy, name)

    def traffic(self) -> Traffic:
        """Bytes so far."""
        return self._count.so_far()

    def held(self) -> ArrayRecord:
        """The global weights as the nodes of the current version hold them.

        They differ from the strategy's by what the downlink's codec has not sent yet.

        Raises:
            UpdateError: nothing has been sent.
        """
        if self._history is None:
            raise UpdateError("no node holds anything before the first round")
        scheme = self._history.scheme
        return _record(scheme.join(self._history.held, inflate(self._exact, scheme.exact_bytes)))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The strategy's messages, their arrays compressed."""
        return self._compress(self._inner["configure_train"](server_round, arrays, config, grid))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The strategy's messages, their arrays compressed."""
        return self._compress(self._inner["configure_evaluate"](server_round, arrays, config, grid))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """What the strategy makes of the answers, their arrays rebuilt."""
        good, counted = self._sound(replies, train=True)
        arrays, metrics = self._inner["aggregate_train"](server_round, good)
        if arrays is not None:
            for node, ticket in counted.items():
                self._nodes[node].counted = ticket
        return arrays, metrics

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """What the strategy makes of the answers."""
        metrics: MetricRecord | None = self._inner["aggregate_evaluate"](
            server_round, self._sound(replies, train=False)[0]
        )
        return metrics

    def _compress(self, messages: Iterable[Message]) -> list[Message]:
        """The strategy's messages of one round, with a frame in the place of their arrays.

        Raises:
            ConfigError: a message carries no or several ArrayRecords, or others than the first.
        """
        self._asked.clear()
        packed, shared = [], None
        for message in messages:
            records = list(message.content.array_records.items())
            shared = shared or records
            if len(records) != 1 or not _same(records[0][1], shared[0][1]):
                raise ConfigError("compression needs one ArrayRecord in a message, the same for all nodes")
            packed.append(self._pack(message, *records[0]))
        return packed

    def _pack(self, message: Message, key: str, record: ArrayRecord) -> Message:
        history, node = self._current(record), message.metadata.dst_node_id
        known, ticket = self._nodes.setdefault(node, _Node()), secrets.token_bytes(TICKET_BYTES)
        base, steps = way_from(history, known.version)
        down = Down(ticket, known.counted, self._hash, history.version, base, steps, self._exact)
        frame = encode_down(down)
        self._asked[ticket] = _Asked(node, history.version)
        self._count.down[node] += len(frame)
        self._count.plain_down[node] += history.scheme.plain_bytes
        message.content = replaced(message.content, key, as_record(frame))
        return message

    def _current(self, record: ArrayRecord) -> History:
        """The history up to ``record``: the same arrays again are no new version."""
        if self._history is not None and _same(record, self._record):
            return self._history
        arrays = {name: array.numpy() for name, array in record.items()}
        scheme = self._history.scheme if self._history else scheme_of(arrays, self._patterns, *self._codings)
        coded, exact = scheme.split(arrays)
        history = advance(self._history, coded) if self._history else begin(scheme, coded, self._bits)
        self._history, self._record, self._arrays = history, record, arrays
        self._hash, self._exact = weights_hash(history.held), zlib.compress(exact, 9)
        return history

    def _sound(self, replies: Iterable[Message], *, train: bool) -> tuple[list[Message], dict[int, bytes]]:
        """Answers for the strategy (errors are passed on), and the ticket of each node that counts."""
        good, errors, tickets = [], [], {}
        for reply in replies:
            node = reply.metadata.src_node_id
            if reply.has_error():
                if reply.error.code == CANNOT_FOLLOW:
                    self._nodes[node] = _Node()  # it holds nothing, and no residual either
                errors.append(reply)
                continue
            try:
                tickets[node] = self._unpack(reply, train)
                good.append(reply)
            except FedgeError as error:
                _log.warning("refused the answer of node %d: %s", node, error)
        good, odd = alike(good)
        for reply in odd:
            node = reply.metadata.src_node_id
            _log.warning("refused the answer of node %d: its records are unlike the others'", node)
            del tickets[node]
        return good + errors, tickets

    def _unpack(self, reply: Message, train: bool) -> bytes:
        """Check a reply, and rebuild its arrays in place. Returns its ticket.

        Raises:
            RefusedError: something in it is not as it must be.
        """
        node = reply.metadata.src_node_id
        found = find_frame(reply.content)
        if found is None:
            raise PayloadError("no compressed answer; has its ClientApp the compression_mod?")
        key, frame = found
        self._count.up[node] += len(frame)
        up = decode_up(frame)
        asked = self._asked.get(up.ticket)
        if asked is None or asked.node != node:
            raise UpdateError("it answers nothing that this node was asked in this round")
        del self._asked[up.ticket]
        self._nodes[node].version = asked.version
        check_metrics(reply, weight_key(self.strategy), self._max_weight)
        if train != (up.change is not None):
            raise UpdateError("an update came where none was asked, or none where one was")
        if up.change is None:
            reply.content = RecordDict({k: r for k, r in reply.content.items() if k != key})
        else:
            reply.content = replaced(reply.content, key, self._rebuild(up.change))
            self._count.plain_up[node] += self._history.scheme.plain_bytes if self._history else 0
        return up.ticket

    def _rebuild(self, change: Change) -> ArrayRecord:
        """The strategy's weights plus a node's change.

        Not the weights that the node held: what the downlink has not sent yet would be lost from a mean, and
        would look like an update to strategies that take the difference to their own weights (FedAdam).
        """
        if self._history is None:
            raise UpdateError("an update came before the first round")
        scheme = self._history.scheme
        coded = decode(scheme.uplink.build(), change.payload, scheme.limits(self._max_change))
        arrays = scheme.read_exact(inflate(change.exact, scheme.exact_bytes))
        for name, own in ((name, self._arrays[name]) for name in coded):
            arrays[name] = (own + coded[name]).astype(own.dtype)
        return _record({e.name: arrays[e.name] for e in scheme.entries})


def _same(a: ArrayRecord, b: ArrayRecord | None) -> bool:
    return a is b or a == b


def _record(arrays: Named) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})
