"""The local engine: Flower's ``Grid`` in this process, around the very same ClientApp. No server, no Ray."""

import sqlite3
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedge.errors import SetupError
from fedge.flower.client_app import ContextStore
from fedge.simulation.flower_internals import enter_run, give_id

_RUN = 1
_RAISED = 2  # Flower's code for "the ClientApp raised an exception"


class LocalGrid(Grid):
    """Runs a ClientApp for ``nodes`` simulated clients, one message at a time, when its reply is pulled.

    So at most one reply exists at a time, however many clients there are. What a client keeps in its Flower
    context is written to ``path`` after every message, and is there again when the grid is opened again.
    """

    def __init__(self, app: ClientApp, nodes: int, run_config: UserConfig, path: Path) -> None:
        """Simulate ``nodes`` clients; node ``i`` has ``partition-id`` ``i``.

        Raises:
            SetupError: the clients' states cannot be read or written at ``path``.
        """
        self._app, self._run = app, enter_run(_RUN)
        self._states = _States(path)
        self._contexts = {i + 2: self._context(i, nodes, run_config) for i in range(nodes)}
        self._waiting: dict[str, Message] = {}
        self._sent = 0

    def _context(self, partition: int, partitions: int, run_config: UserConfig) -> Context:
        content = self._states.load(partition)
        node_config: UserConfig = {"partition-id": partition, "num-partitions": partitions}
        context = Context(_RUN, partition + 2, node_config, RecordDict(), run_config)
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
        return list(self._contexts)

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
        """Run the first of these messages that has not run yet, and give its reply."""
        for message_id in message_ids:
            if (message := self._waiting.pop(message_id, None)) is not None:
                return [self._answer(message)]
        return []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Run all of them; there is nothing to wait for, so ``timeout`` has no meaning here."""
        del timeout
        return [reply for i in self.push_messages(messages) for reply in self.pull_messages([i])]

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        context = self._contexts.get(node)
        if context is None:
            return Message(Error(_RAISED, f"there is no node {node}"), reply_to=message)
        try:
            reply = self._app(message, context)
        except Exception:  # as on a SuperNode: whatever an app raises becomes an error reply
            reply = Message(Error(_RAISED, traceback.format_exc()), reply_to=message)
        if (content := ContextStore(context).load()) is not None:
            self._states.save(int(context.node_config["partition-id"]), content)
        return reply

    def close(self) -> None:
        """Close the file of states."""
        self._states.close()

    def __enter__(self) -> Self:
        """The grid itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()


class _States:
    """The clients' states in one SQLite file. It survives the death of this process, not a power cut."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA synchronous=OFF")
            self._db.execute("CREATE TABLE IF NOT EXISTS states (client INTEGER PRIMARY KEY, content BLOB)")
        except sqlite3.Error as error:
            raise SetupError(f"cannot open {path}: {error}") from None

    def load(self, client: int) -> bytes | None:
        try:
            row = self._db.execute("SELECT content FROM states WHERE client = ?", (client,)).fetchone()
        except sqlite3.Error as error:
            raise SetupError(f"{self._path} is damaged: {error}; start the run anew") from None
        return None if row is None else bytes(row[0])

    def save(self, client: int, content: bytes) -> None:
        try:
            self._db.execute("INSERT OR REPLACE INTO states VALUES (?, ?)", (client, content))
        except sqlite3.Error as error:
            raise SetupError(f"cannot write {self._path}: {error}") from None

    def close(self) -> None:
        self._db.close()
