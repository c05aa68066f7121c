"""Everything that the simulation takes from inside Flower, in one place (tested with Flower 1.40 to 1.42).

A ``Message`` needs to know in which run and for which node this process works, and only Flower's own
runtimes set that; and only they give a message its id. A runtime of our own has to do both.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from flwr.app import Message
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

SERVER_NODE = 1
"""Flower's node id of the server."""


def enter_run(run_id: int) -> Run:
    """Let this process make messages as the server of run ``run_id``."""
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SERVER_NODE
    return Run.create_empty(run_id)


@contextmanager
def own_run(run_id: int) -> Iterator[None]:
    """``enter_run`` for a while: afterwards this process belongs to the run that it belonged to before."""
    before = TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id
    enter_run(run_id)
    try:
        yield
    finally:
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = before


def give_id(message: Message, message_id: str) -> None:
    """Name a message, as a runtime does when it accepts it."""
    message.metadata.__dict__["_message_id"] = message_id
