"""A worker process of the local engine: one task after the other, each for any client.

It was forked from a host (``worker_host.py``) that has loaded everything, so that data and code are in memory
once for all workers. Between two tasks it keeps nothing: what a client remembers is in a file of its own.
"""

import os
import socket
import traceback
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp

from fedge.errors import FedgeError, PayloadError
from fedge.flower.client_app import ContextStore
from fedge.flower.messages import error_reply
from fedge.simulation.client_files import ClientFiles
from fedge.simulation.directory_files import answer_bytes, task_message
from fedge.simulation.worker_wire import TASK, Kind, Place, Task, said, take

RUN = 1
FIRST_NODE = 2
RAISED = 2
"""Flower's code for "the ClientApp raised an exception"."""


@dataclass(frozen=True)
class Crew:
    """What all workers of a run have in common.

    Attributes:
        app: answers the messages.
        run_config: Flower's.
        clients: how many there are.
    """

    app: ClientApp
    run_config: UserConfig
    clients: int

    def context(self, client: int) -> Context:
        """An empty context of participant number ``client``."""
        node_config: UserConfig = {"partition-id": client, "num-partitions": self.clients}
        return Context(RUN, client + FIRST_NODE, node_config, RecordDict(), self.run_config)

    def answer(self, client: int, files: ClientFiles, content: bytes) -> bytes:
        """Run the app on one message; what the client then keeps is on disk when this returns.

        Raises:
            SetupError: the client's state cannot be read or written.
        """
        context = self.context(client)
        store, before = ContextStore(context), files.load(client)
        if before is not None:
            store.save(before)
        answer = self._reply(content, context)
        after = store.load()
        if after is not None and after is not before:
            files.save(client, after)
        return answer

    def _reply(self, content: bytes, context: Context) -> bytes:
        message = task_message(content, context.node_id)
        try:
            return answer_bytes(self.app(message, context))
        except PayloadError as error:  # no answer of fedge's own
            return answer_bytes(error_reply(error, message))
        except Exception:  # as on a SuperNode: whatever an app raises becomes an error reply
            return answer_bytes(Message(Error(RAISED, traceback.format_exc()), reply_to=message))


def work(crew: Crew, box: socket.socket, memory: int) -> None:
    """Answer tasks until the host ends. ``memory`` is the descriptor of the shared file."""
    files = lru_cache(maxsize=2)(lambda folder: ClientFiles(Path(os.fsdecode(folder))))
    while (packed := take(box, TASK.size)) is not None:
        task = Task.unpack(packed)
        try:
            content = crew.answer(task.client, files(_read(memory, task.states)), _read(memory, task.content))
            answer = said(Kind.ANSWER, task.number, content)
        except FedgeError as error:
            answer = said(Kind.FAILED, error.exit_code, str(error).encode())
        box.sendall(answer)


def _read(memory: int, place: Place) -> bytes:
    return os.pread(memory, place.length, place.offset)
