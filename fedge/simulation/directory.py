"""An engine whose clients are processes of their own: Flower's ``Grid`` over a folder.

    FOLDER/node-N/tasks/ID      a message to node N; the server writes and removes it
    FOLDER/node-N/answers/ID    the answer to it; the node's process writes it, the server removes it

A file appears whole or not at all. A task stays until the server has its answer, or gives the node up; it
goes before its answer does. So a node's process answers what has no answer yet, and may be killed and started
again at any moment. It is meant for one machine, or for a folder that two containers share.
"""

import math
import secrets
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from fedge.errors import PayloadError
from fedge.flower.messages import error_reply
from fedge.simulation.directory_files import (
    Box,
    answer_bytes,
    names,
    read,
    reply_message,
    store,
    task_bytes,
    task_message,
)
from fedge.simulation.flower_internals import enter_run, give_id

_RUN = 1
_FIRST_NODE = 2
_RAISED, _UNAVAILABLE = 2, 4  # Flower's codes: the ClientApp raised an exception; there is no reply
_PAUSE = 0.005
"""Seconds between two looks into a folder in which nothing was found."""


@dataclass
class _Sent:
    """A message on its way.

    Attributes:
        message: as it was pushed.
        deadline: when its node is given up, on the grid's clock.
        lost: why there will be no answer; empty while there may be one.
    """

    message: Message
    deadline: float
    lost: str = ""


class DirectoryGrid(Grid):
    """Carries the messages of fedge's own apps to processes that run ``serve_directory``."""

    def __init__(
        self,
        folder: Path,
        nodes: int,
        patience: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Make the folders of ``nodes`` nodes, and clear what an earlier grid left in them.

        Args:
            folder: where to make them.
            nodes: how many; their ids are 2, 3, ...
            patience: seconds after which a node that has not answered is given up.
            clock: seconds, for ``patience`` and timeouts.
            sleep: waits, in ``send_and_receive``.

        Raises:
            SetupError: the folders cannot be made.
        """
        self._run, self._patience, self._clock, self._sleep = enter_run(_RUN), patience, clock, sleep
        self._boxes = {i: Box.of(folder, i) for i in range(_FIRST_NODE, _FIRST_NODE + nodes)}
        self._waiting: dict[str, _Sent] = {}
        self._session, self._sent = secrets.token_hex(8), 0
        for box in self._boxes.values():
            box.make()
            box.clear()

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
        """The nodes, whether a process serves them or not."""
        return list(self._boxes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Write each message as a file for its node.

        Raises:
            PayloadError: a message is not one of fedge's own (``query.who``, or ``train`` with a frame).
            SetupError: the file cannot be written.
        """
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        content, node = task_bytes(message), message.metadata.dst_node_id
        self._sent += 1
        message_id = f"{self._sent:08d}-{self._session}"
        give_id(message, message_id)
        sent = self._waiting[message_id] = _Sent(message, self._clock() + self._patience)
        if (box := self._boxes.get(node)) is None:
            sent.lost = f"there is no node {node}"
            return message_id
        box.clear_answers(keep=self._waiting)
        store(box.tasks / message_id, content)
        return message_id

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The first reply that is there to one of these messages; for a node that was given up, an error."""
        for message_id in message_ids:
            sent = self._waiting.get(message_id)
            if sent is not None and (reply := self._reply(message_id, sent)) is not None:
                self._withdraw(message_id)
                del self._waiting[message_id]
                return [reply]
        return []

    def _reply(self, message_id: str, sent: _Sent) -> Message | None:
        if sent.lost:
            return Message(Error(_UNAVAILABLE, sent.lost), reply_to=sent.message)
        try:
            content = read(self._box(sent).answers / message_id)
            if content is not None:
                return reply_message(content, sent.message)
        except PayloadError as error:
            return error_reply(error, sent.message)
        if self._clock() < sent.deadline:
            return None
        return Message(Error(_UNAVAILABLE, f"no answer in {self._patience:g} s"), reply_to=sent.message)

    def give_up(self, node: int) -> None:
        """Wait no longer for ``node``: its tasks are withdrawn, and answers to them no longer count."""
        for message_id, sent in self._waiting.items():
            if sent.message.metadata.dst_node_id == node and not sent.lost:
                sent.lost = f"node {node} was given up"
                self._withdraw(message_id)

    def _withdraw(self, message_id: str) -> None:
        """Remove the task, then its answer: a node must never find a task without the answer it gave."""
        box = self._boxes.get(self._waiting[message_id].message.metadata.dst_node_id)
        if box is not None:
            (box.tasks / message_id).unlink(missing_ok=True)
            (box.answers / message_id).unlink(missing_ok=True)

    def _box(self, sent: _Sent) -> "Box":
        return self._boxes[sent.message.metadata.dst_node_id]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push all of them and wait for the replies; what has none after ``timeout`` seconds is left out."""
        waiting, replies = list(self.push_messages(messages)), list[Message]()
        end = math.inf if timeout is None else self._clock() + timeout
        while waiting and self._clock() < end:
            found = list(self.pull_messages(waiting))
            for reply in found:
                waiting.remove(reply.metadata.reply_to_message_id)
            replies += found
            if waiting and not found:
                self._sleep(_PAUSE)
        for message_id in waiting:
            self._withdraw(message_id)
            del self._waiting[message_id]
        return replies


def serve_directory(
    folder: Path,
    node: int,
    app: ClientApp,
    stop: Callable[[], bool] = lambda: False,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """A client's process: answer whatever a ``DirectoryGrid`` over ``folder`` sends to ``node``.

    ``app`` is ``make_client_app(lambda _context: device)``, where the device's store is a ``FileStore``: its
    lock keeps a second process from serving the same client, and nothing is kept in Flower's context.

    Args:
        folder: the grid's.
        node: the node's id.
        app: answers the messages.
        stop: asked before each look whether to end.
        sleep: waits when there is nothing to do.

    Raises:
        SetupError: the folder cannot be read or written.
    """
    enter_run(_RUN)
    box = Box.of(folder, node)
    box.make()
    for name in names(box.answers, hidden=True):
        (box.answers / name).unlink(missing_ok=True)
    context = Context(_RUN, node, {}, RecordDict(), {})
    while not stop():
        if not _answer_waiting(box, app, context):
            sleep(_PAUSE)


def _answer_waiting(box: Box, app: ClientApp, context: Context) -> int:
    """Answer every task that has no answer yet, in the order in which they were sent."""
    count = 0
    for name in names(box.tasks):
        if (box.answers / name).exists():  # asked before the task is read: a task goes before its answer
            continue
        try:
            content = read(box.tasks / name)
            if content is None:
                continue  # withdrawn
            answer = answer_bytes(_run(content, name, app, context))
        except PayloadError as error:
            answer = answer_bytes(error_reply(error, _named(Message(RecordDict(), box.node, "train"), name)))
        store(box.answers / name, answer)
        count += 1
    return count


def _run(content: bytes, name: str, app: ClientApp, context: Context) -> Message:
    message = _named(task_message(content, context.node_id), name)
    try:
        return app(message, context)
    except Exception:  # as on a SuperNode: whatever an app raises becomes an error reply
        return Message(Error(_RAISED, traceback.format_exc()), reply_to=message)


def _named(message: Message, message_id: str) -> Message:
    give_id(message, message_id)
    return message
