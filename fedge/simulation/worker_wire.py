"""What the simulation, the host of its workers and the workers say to each other, over sockets.

    simulation -> host     a start (its length in 4 bytes, then JSON), then tasks, 36 bytes each
    host -> worker         a task
    worker -> host -> simulation   a head of 13 bytes, then as many bytes as it says

What a task carries lies in a file in memory that all of them share, where it is written once for all clients
that get the same. Everything here is said between processes of one run; nothing else can reach them.
"""

import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any, NamedTuple

TASK = struct.Struct("<QIQIQI")
HEAD = struct.Struct("<BQI")
_LENGTH = struct.Struct("<I")


class Place(NamedTuple):
    """Where something lies in the shared file."""

    offset: int
    length: int


@dataclass(frozen=True)
class Task:
    """One message for one client.

    Attributes:
        number: names it; the answer has the same.
        client: number of the participant.
        states: path of the folder with the clients' states.
        content: the message (``directory_files.task_bytes``).
    """

    number: int
    client: int
    states: Place
    content: Place

    def pack(self) -> bytes:
        """The 36 bytes."""
        return TASK.pack(self.number, self.client, *self.states, *self.content)

    @staticmethod
    def unpack(packed: bytes) -> "Task":
        """The inverse of ``pack``."""
        number, client, *places = TASK.unpack(packed)
        return Task(number, client, Place(*places[:2]), Place(*places[2:]))


class Kind(IntEnum):
    """What follows a head."""

    ANSWER = 1  # to the task with that number (``directory_files.answer_bytes``)
    NOTE = 2  # for the person who waits: text
    FAILED = 3  # nothing more will come: text that says why; the number is an exit code


@dataclass(frozen=True)
class Start:
    """What a host needs to know.

    Attributes:
        app: the ClientApp, ``module:attribute``.
        run_config: Flower's.
        clients: how many there are.
        workers: how many processes run them.
    """

    app: str
    run_config: Mapping[str, Any]
    clients: int
    workers: int

    def pack(self) -> bytes:
        """Length and JSON."""
        text = json.dumps(asdict(self)).encode()
        return _LENGTH.pack(len(text)) + text

    @staticmethod
    def receive(box: socket.socket) -> "Start | None":
        """What ``pack`` made, from a socket; ``None`` at its end."""
        length = take(box, _LENGTH.size)
        text = None if length is None else take(box, _LENGTH.unpack(length)[0])
        return None if text is None else Start(**json.loads(text))


def said(kind: Kind, number: int, content: bytes) -> bytes:
    """A head and what follows it."""
    return HEAD.pack(kind, number, len(content)) + content


def take(box: socket.socket, count: int) -> bytes | None:
    """The next ``count`` bytes; ``None`` where the other side ends before they have come."""
    found = bytearray()
    while len(found) < count:
        try:
            more = box.recv(count - len(found))
        except ConnectionResetError:
            return None
        if not more:
            return None
        found += more
    return bytes(found)
