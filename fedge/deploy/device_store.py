"""What a device knows of its link, on its disk: the task under way, the task it has, the answer it owes.

    part      a task as far as it has arrived; bytes are appended as they come
    task      a task, whole
    answer    the answer to it, or why there is none, until the server has it

``task`` and ``answer`` are replaced as wholes (``file_store``). Every file starts with what was announced; a
file that is damaged is as good as none, because the other side still has what was in it.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from fedge.durable import flush_folder, replace_file, unfinished
from fedge.errors import SetupError
from fedge.link.device_end import DeviceDesk
from fedge.link.frames import DIGEST_BYTES, ID_BYTES, Announced, Place, Refusal, Refused
from fedge.link.transfer import Arriving, announce

_HEAD = struct.Struct(f"<4s{ID_BYTES}sQ{DIGEST_BYTES}s")
_MAGIC = b"FLK1"
_REFUSAL = struct.Struct("<BQ")  # kind (0: an answer), seconds


@dataclass(frozen=True)
class Held:
    """A whole task from the disk."""

    id: bytes
    frame: bytes


class LinkStore:
    """The three files in one folder. Its owner holds the lock of the client's state."""

    def __init__(self, folder: Path, largest: int) -> None:
        """Make the folder; files above ``largest`` bytes are not read.

        Raises:
            SetupError: it cannot be made or written.
        """
        self._folder, self._largest = folder, largest
        self._part, self._task, self._answer = folder / "part", folder / "task", folder / "answer"
        self._writing: int | None = None
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in (self._task, self._answer):
                unfinished(path).unlink(missing_ok=True)
        except OSError as error:
            raise SetupError(f"cannot use {folder} for the state of the link: {error.strerror}") from None

    def load(self) -> tuple[DeviceDesk, Held | None]:
        """What there is: a desk for the link, and the task that still has to be done.

        Raises:
            SetupError: the disk cannot be read.
        """
        desk = DeviceDesk(arriving=self._load_part())
        if desk.arriving is not None and desk.arriving.whole:
            self._promote(desk.arriving)
            desk.arriving = None
        task, answer = self._load(self._task), self._load(self._answer)
        if task is not None:
            desk.held = Place(task[0].id, task[0].size)
        if answer is not None and len(answer[1]) > _REFUSAL.size:
            told, content = answer
            kind, seconds = _REFUSAL.unpack_from(content)
            content = content[_REFUSAL.size :]
            if not kind:
                desk.answer = announce(told.id, content), content
            else:
                desk.refusal = Refusal(told.id, Refused(kind), seconds, content.decode())
            if desk.held is None:
                desk.held = Place(told.id, 0)
            if desk.held.id == told.id:
                return desk, None
        return desk, None if task is None else Held(task[0].id, task[1])

    def begin(self, told: Announced) -> None:
        """A new task begins to arrive. Raises ``OSError``, as do the others below."""
        self._stop()
        self._writing = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        os.write(self._writing, _HEAD.pack(_MAGIC, told.id, told.size, told.digest))

    def append(self, data: bytes) -> None:
        """The next bytes of it."""
        if self._writing is None:
            self._writing = os.open(self._part, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        while data:
            data = data[os.write(self._writing, data) :]

    def keep_task(self, id: bytes, frame: bytes) -> None:  # noqa: A002
        """The task is here; it survives a power cut once this returns."""
        self._write(self._task, id, frame)
        self._stop()
        self._part.unlink(missing_ok=True)

    def keep_answer(self, id: bytes, content: bytes) -> None:  # noqa: A002
        """So does its answer."""
        self._write(self._answer, id, _REFUSAL.pack(0, 0) + content)

    def keep_refusal(self, refusal: Refusal) -> None:
        """Or why there is none."""
        head = _REFUSAL.pack(refusal.kind, refusal.seconds)
        self._write(self._answer, refusal.id, head + (refusal.text or "-").encode())

    def forget(self, id: bytes) -> None:  # noqa: A002
        """This task is over."""
        self._stop()
        for path in (self._part, self._task, self._answer):
            head = self._head(path)
            if head is not None and head.id == id:
                path.unlink(missing_ok=True)
        flush_folder(self._folder)

    def close(self) -> None:
        """Close what is open."""
        self._stop()

    def _stop(self) -> None:
        if self._writing is not None:
            os.close(self._writing)
            self._writing = None

    def _write(self, path: Path, id: bytes, content: bytes) -> None:  # noqa: A002
        told = announce(id, content)
        replace_file(path, _HEAD.pack(_MAGIC, told.id, told.size, told.digest) + content)

    def _read(self, path: Path) -> tuple[Announced, bytes] | None:
        """Head and content; ``None`` where there is no such file of ours."""
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size > self._largest + _HEAD.size:
                    return None
                raw = file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SetupError(f"cannot read {path}: {error.strerror}") from None
        if len(raw) < _HEAD.size or raw[:4] != _MAGIC:
            return None
        _, name, size, digest = _HEAD.unpack_from(raw)
        return Announced(name, size, digest), raw[_HEAD.size :]

    def _head(self, path: Path) -> Announced | None:
        try:
            with path.open("rb") as file:
                raw = file.read(_HEAD.size)
        except FileNotFoundError:
            return None
        if len(raw) < _HEAD.size or raw[:4] != _MAGIC:
            return None
        _, name, size, digest = _HEAD.unpack(raw)
        return Announced(name, size, digest)

    def _load(self, path: Path) -> tuple[Announced, bytes] | None:
        found = self._read(path)
        return found if found is not None and announce(found[0].id, found[1]) == found[0] else None

    def _promote(self, arriving: Arriving) -> None:
        """All of it had arrived when the process was killed."""
        if (frame := arriving.finish()) is None:
            return
        try:
            self.keep_task(arriving.announced.id, frame)
        except OSError as error:
            raise SetupError(f"cannot write to {self._folder}: {error.strerror}") from None

    def _load_part(self) -> Arriving | None:
        found = self._read(self._part)
        if found is None or not 0 < found[0].size <= self._largest or len(found[1]) > found[0].size:
            return None
        return Arriving(found[0], bytearray(found[1]))
