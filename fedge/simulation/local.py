"""The local engine: Flower's ``Grid`` around the very same ClientApp. No server, no Ray.

The clients run in this process, or in worker processes (``workers.py``). The bytes are the same, and so is
the result.
"""

import traceback
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Self

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedge.flower.client_app import ContextStore
from fedge.simulation.client_files import ClientFiles
from fedge.simulation.directory_files import reply_message, task_bytes
from fedge.simulation.flower_internals import enter_run, give_id
from fedge.simulation.worker import FIRST_NODE, RAISED, RUN
from fedge.simulation.workers import Workers

_AHEAD = 256
"""Messages that are given out to workers before the first of them has been answered, at most."""


class LocalGrid(Grid):
    """Runs a ClientApp for ``nodes`` simulated clients, when replies are pulled.

    What a client keeps in its Flower context (fedge's record of it) is in a file of its own in the folder
    ``path`` after every message, and is there again when the grid is opened again.

    In this process one message runs at a time, so that at most one reply exists, and contexts stay in memory.
    With workers, messages run side by side, replies are handed over in the order in which the messages are
    pulled, whichever is ready first, and the clients are on disk only. Workers carry fedge's own messages;
    any other app runs in this process.
    """

    def __init__(self, app: ClientApp | Workers, nodes: int, run_config: UserConfig, path: Path) -> None:
        """Simulate ``nodes`` clients; node ``i + 2`` has ``partition-id`` ``i``.

        Args:
            app: runs in this process; or workers, which have one (and a run config) of their own.
            nodes: how many clients there are.
            run_config: Flower's, for contexts in this process.
            path: folder of the clients' states.

        Raises:
            SetupError: the clients' states cannot be read or written at ``path``.
        """
        self._run = enter_run(RUN)
        self._nodes = range(FIRST_NODE, FIRST_NODE + nodes)
        self._app, self._path, self._files = app, path, ClientFiles(path)
        self._contexts = dict[int, Context]()
        if not isinstance(app, Workers):
            self._contexts = {i + FIRST_NODE: self._context(i, nodes, run_config) for i in range(nodes)}
        self._waiting: dict[str, Message] = {}
        self._tasks: dict[str, int] = {}
        self._sent = 0

    def _context(self, partition: int, partitions: int, run_config: UserConfig) -> Context:
        content = self._files.load(partition)
        node_config: UserConfig = {"partition-id": partition, "num-partitions": partitions}
        context = Context(RUN, partition + FIRST_NODE, node_config, RecordDict(), run_config)
        if content is not None:
            ContextStore(context).save(content)
        return context

    def set_run(self, run: Run) -> None:
        """There is only one run here."""

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """As Flower's own grids do."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """The simulated nodes."""
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept messages; nothing runs yet."""
        ids = []
        for message in messages:
            self._sent += 1
            ids.append(f"local-{self._sent}")
            give_id(message, ids[-1])
            self._waiting[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies to the first of these messages that have none yet: one, or with workers one or more.

        Raises:
            SetupError: a client's state cannot be read or written.
            PayloadError: a message for workers is not one of fedge's own.
            FedgeError: workers died over the same message again and again.
        """
        waiting = (i for i in message_ids if i in self._waiting)
        if isinstance(self._app, Workers):
            return self._from_workers(list(islice(waiting, _AHEAD)), self._app)
        return [self._answer(self._waiting.pop(i), self._app) for i in islice(waiting, 1)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Run all of them; there is nothing to wait for, so ``timeout`` has no meaning here."""
        del timeout
        ids, replies = list(self.push_messages(messages)), list[Message]()
        while found := list(self.pull_messages(ids)):
            replies += found
        return replies

    def _from_workers(self, message_ids: list[str], workers: Workers) -> list[Message]:
        """Give these out, wait for the first, and take those behind it that are ready."""
        for message_id in message_ids:
            message = self._waiting[message_id]
            client = message.metadata.dst_node_id - FIRST_NODE
            if message_id not in self._tasks and 0 <= client < len(self._nodes):
                self._tasks[message_id] = workers.submit(client, self._path, task_bytes(message))
        replies = list[Message]()
        for message_id in message_ids:
            reply = self._answered(message_id, workers, wait=not replies)
            if reply is None:
                break
            del self._waiting[message_id]
            replies.append(reply)
        return replies

    def _answered(self, message_id: str, workers: Workers, *, wait: bool) -> Message | None:
        message = self._waiting[message_id]
        number = self._tasks.pop(message_id, None)
        if number is None:
            return self._nobody(message)
        content = workers.answer(number, wait=wait)
        if content is None:
            self._tasks[message_id] = number
            return None
        return reply_message(content, message)

    def _answer(self, message: Message, app: ClientApp) -> Message:
        context = self._contexts.get(message.metadata.dst_node_id)
        if context is None:
            return self._nobody(message)
        before = ContextStore(context).load()
        try:
            reply = app(message, context)
        except Exception:  # as on a SuperNode: whatever an app raises becomes an error reply
            reply = Message(Error(RAISED, traceback.format_exc()), reply_to=message)
        after = ContextStore(context).load()
        if after is not None and after is not before:
            self._files.save(int(context.node_config["partition-id"]), after)
        return reply

    def _nobody(self, message: Message) -> Message:
        return Message(Error(RAISED, f"there is no node {message.metadata.dst_node_id}"), reply_to=message)

    def close(self) -> None:
        """Nothing is kept open, and workers belong to whoever started them."""

    def __enter__(self) -> Self:
        """The grid itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()
