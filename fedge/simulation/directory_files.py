"""The files of the directory engine: where they lie, and what is in them.

The first byte of a file is its kind. Tasks: ``W`` who are you, ``F`` a frame. Answers: ``I`` a client's id,
``F`` a frame, ``E`` an error (u32 code, little-endian, and a reason in UTF-8).
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ConfigRecord, Error, Message, RecordDict

from fedge.durable import replace_file
from fedge.errors import PayloadError, SetupError
from fedge.flower.client_app import IDENTITY
from fedge.flower.messages import frame_of, with_frame

MAX_BYTES = 1 << 30
"""Largest file that is read."""

_MAX_REASON = 1 << 16
_MAX_ID = 256


@dataclass(frozen=True)
class Box:
    """A node's two folders."""

    node: int
    tasks: Path
    answers: Path

    @staticmethod
    def of(folder: Path, node: int) -> "Box":
        """That of ``node`` in a grid's ``folder``."""
        return Box(node, folder / f"node-{node}" / "tasks", folder / f"node-{node}" / "answers")

    def make(self) -> None:
        """Make both, if they are missing.

        Raises:
            SetupError: they cannot be made.
        """
        try:
            self.tasks.mkdir(parents=True, exist_ok=True)
            self.answers.mkdir(exist_ok=True)
        except OSError as error:
            raise SetupError(f"cannot make {self.tasks}: {error.strerror}") from None

    def clear(self) -> None:
        """Remove every task and every answer."""
        for name in names(self.tasks) + names(self.tasks, hidden=True):
            (self.tasks / name).unlink(missing_ok=True)
        self.clear_answers(keep=())

    def clear_answers(self, keep: Iterable[str]) -> None:
        """Remove answers that nobody waits for: those that came after their task was withdrawn."""
        for name in set(names(self.answers)).difference(keep):
            (self.answers / name).unlink(missing_ok=True)


def names(folder: Path, *, hidden: bool = False) -> list[str]:
    """Names in ``folder``, sorted; hidden ones are files that are not finished.

    Raises:
        SetupError: it cannot be read.
    """
    try:
        return sorted(n for n in os.listdir(folder) if n.startswith(".") == hidden)
    except OSError as error:
        raise SetupError(f"cannot read {folder}: {error.strerror}") from None


def read(path: Path) -> bytes | None:
    """A file's content; ``None`` if there is no such file.

    Raises:
        PayloadError: it is larger than ``MAX_BYTES``.
        SetupError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            if (size := os.fstat(file.fileno()).st_size) > MAX_BYTES:
                raise PayloadError(f"a message of {size} bytes; at most {MAX_BYTES} are read")
            return file.read(size)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from None


def store(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
        SetupError: it cannot be written.
    """
    try:
        replace_file(path, content)
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror}") from None


def task_bytes(message: Message) -> bytes:
    """A message as a task's file.

    Raises:
        PayloadError: it is not one of fedge's own.
    """
    kind = message.metadata.message_type
    if kind == "query.who":
        return b"W"
    if kind != "train":
        raise PayloadError(f"a folder carries 'query.who' and 'train', not {kind!r}")
    return b"F" + frame_of(message)


def task_message(content: bytes, node: int) -> Message:
    """The message in a task's file.

    Raises:
        PayloadError: it is of an unknown kind.
    """
    if content == b"W":
        return Message(RecordDict(), node, "query.who")
    if content[:1] != b"F":
        raise PayloadError("a task in the folder is of an unknown kind")
    return Message(with_frame(content[1:]), node, "train")


def answer_bytes(reply: Message) -> bytes:
    """A reply as an answer's file.

    Raises:
        PayloadError: it is not one of fedge's own.
    """
    if reply.has_error():
        reason = (reply.error.reason or "").encode()[:_MAX_REASON]
        return b"E" + reply.error.code.to_bytes(4, "little") + reason
    record = reply.content.get("fedge")
    identity = record.get(IDENTITY) if isinstance(record, ConfigRecord) else None
    return b"I" + identity.encode() if isinstance(identity, str) else b"F" + frame_of(reply)


def reply_message(content: bytes, to: Message) -> Message:
    """The reply in an answer's file.

    Raises:
        PayloadError: it is of an unknown kind, or too long.
    """
    kind, rest = content[:1], content[1:]
    if kind == b"F":
        return Message(with_frame(rest), reply_to=to)
    if kind == b"I" and len(rest) <= _MAX_ID:
        return Message(RecordDict({"fedge": ConfigRecord({IDENTITY: _text(rest)})}), reply_to=to)
    if kind == b"E" and 4 <= len(rest) <= 4 + _MAX_REASON:
        return Message(Error(int.from_bytes(rest[:4], "little"), _text(rest[4:])), reply_to=to)
    raise PayloadError("an answer in the folder is of an unknown kind, or too long")


def _text(content: bytes) -> str:
    return content.decode("utf-8", errors="replace")
