"""The server's clients, reached through a Flower ``Grid``: one message each, collected as they come."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedge.errors import FedgeError
from fedge.flower.client_app import IDENTITY
from fedge.flower.messages import frame_of, with_frame

_Key = TypeVar("_Key")

_PAUSE = 0.02
"""Seconds between two looks for replies when the last look found none."""


class GridClients:
    """``Clients`` of ``fedge.federated.server``, over any ``Grid``.

    Replies are pulled as they come and handed on one by one, so that no more than one is held at a time.
    """

    def __init__(self, grid: Grid, sleep: Callable[[float], None] = time.sleep) -> None:
        """Find out which client each node of ``grid`` stands for."""
        self._grid, self._sleep = grid, sleep
        self._nodes = self._identify()

    def ids(self) -> list[str]:
        """The clients that are there."""
        return sorted(self._nodes)

    def ask(self, tasks: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | FedgeError]]:
        """Send each client its task; yield answers, or why there is none, as they come in."""
        there = {c: self._nodes[c] for c in tasks if c in self._nodes}
        messages = [Message(with_frame(tasks[c]), node, "train") for c, node in there.items()]
        for client in tasks.keys() - there.keys():
            yield client, FedgeError("no node stands for this client")
        for client, reply in self._exchange(list(there), messages):
            try:
                yield client, frame_of(reply)
            except FedgeError as error:
                yield client, error

    def _identify(self) -> dict[str, int]:
        nodes = list(self._grid.get_node_ids())
        messages = [Message(RecordDict(), node, "query.who") for node in nodes]
        found: dict[str, int] = {}
        for node, reply in self._exchange(nodes, messages):
            record = reply.content.get("fedge") if reply.has_content() else None
            identity = record.get(IDENTITY) if isinstance(record, ConfigRecord) else None
            if isinstance(identity, str):
                found[identity] = node
        return found

    def _exchange(self, keys: list[_Key], messages: Iterable[Message]) -> Iterator[tuple[_Key, Message]]:
        sent = self._grid.push_messages(messages)
        waiting = {i: key for i, key in zip(sent, keys, strict=True) if i}
        while waiting:
            replies = list(self._grid.pull_messages(list(waiting)))
            for reply in replies:
                key = waiting.pop(reply.metadata.reply_to_message_id, None)
                if key is not None:
                    yield key, reply
            if waiting and not replies:
                self._sleep(_PAUSE)
