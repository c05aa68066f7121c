"""Worker processes that run the simulated clients: the simulation's side of them.

    workers = Workers("fedge.simulation.life:client_app", run_config, clients=300, count=2)
    number = workers.submit(client=7, states=folder, content=task)
    answer = workers.answer(number)

Messages are given out in the order in which they were submitted, each to whichever worker is free; an answer
depends on nothing but the client, its file and the message, so it does not matter which worker that was, how
many there are, or whether one died over it.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from fedge.errors import FedgeError, SetupError
from fedge.observe import Observer
from fedge.simulation.worker_wire import HEAD, Kind, Place, Start, Task

WORKER_BYTES = 128 << 20
"""Memory that a worker may take by itself; training a small student it takes 40 MB."""

HOST_BYTES = 512 << 20
"""Memory for what all workers share: code, and a data set of ordinary size; measured: 350 MB."""

_GROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_LIMITS = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Files of a control group's memory, and the line of its statistics that is not counted; versions 2 and 1."""

_SHARED_BYTES = 64 << 20
"""The shared file is begun anew when it is longer than this."""


class Workers:
    """Processes for the whole of a run. Use it as a context manager: they end with it."""

    def __init__(
        self,
        app: str,
        run_config: Mapping[str, Any],
        clients: int,
        count: int,
        told: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """Start them; nothing is waited for.

        Args:
            app: the ClientApp, ``module:attribute``. It answers ``query.who`` and ``train``.
            run_config: Flower's, for the clients.
            clients: number of participants.
            count: processes, 1 or more.
            told: is told what a person should know, such as that a worker was killed.
        """
        self._told, self._next, self._inbox = told, 0, bytearray()
        self._outgoing = bytearray()
        self._pending, self._answers = set[int](), dict[int, bytes]()
        self._places: dict[bytes, Place] = {}
        self._end = 0
        self._memory = os.memfd_create("fedge-workers")
        self._box, its = socket.socketpair()
        try:
            self._process = _start_host(its.fileno(), self._memory)
            self._box.sendall(Start(app, run_config, clients, count).pack())
        finally:
            its.close()

    def submit(self, client: int, states: Path, content: bytes) -> int:
        """Let ``client`` (its number) answer a message; returns the number of the task.

        Args:
            client: number of the participant.
            states: the folder in which it keeps its state.
            content: the message, as ``directory_files.task_bytes`` gives it. What was submitted before is not
                copied again.

        Raises:
            FedgeError: as ``answer``.
        """
        if self._end > _SHARED_BYTES:
            self._begin_anew()
        self._next += 1
        task = Task(self._next, client, self._share(os.fsencode(states.absolute())), self._share(content))
        self._outgoing += task.pack()
        self._pending.add(task.number)
        return task.number

    def _share(self, content: bytes) -> Place:
        """Where ``content`` lies in the shared file."""
        if (place := self._places.get(content)) is None:
            place = self._places[content] = Place(self._end, len(content))
            while place.offset + place.length > self._end:
                rest = content[self._end - place.offset :]
                self._end += os.pwrite(self._memory, rest, self._end)
        return place

    def _begin_anew(self) -> None:
        """Wait until nobody needs the shared file any more, and empty it."""
        while self._pending:
            self._receive(wait=True)
        os.ftruncate(self._memory, 0)
        self._places.clear()
        self._end = 0

    def answer(self, number: int, *, wait: bool = True) -> bytes | None:
        """The answer to a task (``directory_files.answer_bytes``); with ``wait`` it is never ``None``.

        Raises:
            SetupError: a client's state cannot be read or written, or the clients' data cannot be used.
            FedgeError: the processes ended, or died over the same task again and again.
        """
        self._flush()
        while number in self._pending and self._receive(wait=wait):
            pass
        return self._answers.pop(number, None)

    def _flush(self) -> None:
        if self._outgoing:
            with suppress(BrokenPipeError, ConnectionResetError):  # the host has said why, or is not there
                self._box.sendall(self._outgoing)
            self._outgoing.clear()

    def _receive(self, *, wait: bool) -> bool:
        """Take in what has come; whether there was anything."""
        self._flush()
        try:
            content = self._box.recv(1 << 16, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            content = b""
        if not content:
            raise FedgeError("the worker processes ended; the run can be resumed")
        self._inbox += content
        start = 0
        while (taken := self._message(start)) is not None:
            start = taken
        del self._inbox[:start]
        return True

    def _message(self, start: int) -> int | None:
        """Take in the message at ``start`` of the inbox, and say where it ends; ``None``: it is not whole."""
        if start + HEAD.size > len(self._inbox):
            return None
        kind, number, length = HEAD.unpack_from(self._inbox, start)
        end: int = start + HEAD.size + length
        if end > len(self._inbox):
            return None
        content = bytes(self._inbox[start + HEAD.size : end])
        if kind == Kind.FAILED:
            raise (SetupError if number == SetupError.exit_code else FedgeError)(content.decode())
        if kind == Kind.NOTE:
            self._told(content.decode())
        else:
            self._pending.discard(number)
            self._answers[number] = content
        return end

    def close(self) -> None:
        """End all of the processes."""
        self._box.close()
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        os.close(self._memory)

    def __enter__(self) -> Self:
        """The workers themselves."""
        return self

    def __exit__(self, *_: object) -> None:
        """End them."""
        self.close()


def _start_host(box: int, memory: int) -> "subprocess.Popen[bytes]":
    """A fresh interpreter: this process has threads and locks that a copy of it could not use."""
    line = [sys.executable, "-m", "fedge.simulation.worker_host", str(os.getpid()), str(box), str(memory)]
    places = os.pathsep.join(str(Path(p).absolute()) for p in sys.path)
    return subprocess.Popen(  # noqa: S603  (our own command line)
        line,
        pass_fds=(box, memory),
        env={**os.environ, "PYTHONPATH": places},
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the simulation
    )


@contextmanager
def some_workers(
    app: str, run_config: Mapping[str, Any], clients: int, wanted: int, observer: Observer
) -> Iterator[Workers | None]:
    """As many workers as are wanted and fit into memory; ``None`` where none is wanted.

    Args:
        app: the ClientApp, ``module:attribute``.
        run_config: Flower's, for the clients.
        clients: number of participants.
        wanted: processes.
        observer: is told if there are fewer, and what happens to them.
    """
    if not wanted:
        yield None
        return

    def told(text: str) -> None:
        observer.event("warning", text=text)

    free = free_memory()
    count = fitting(wanted, clients, free)
    if count < min(wanted, clients):
        told(
            f"{count} worker process(es) instead of {min(wanted, clients)}: {free >> 20} MB of memory are "
            f"free; each takes about {WORKER_BYTES >> 20} MB, and what they share {HOST_BYTES >> 20} MB"
        )
    with Workers(app, run_config, clients, count, told) as workers:
        yield workers


def fitting(wanted: int, clients: int, free: int) -> int:
    """How many workers there will be: no more than clients, and than ``free`` bytes have room for.

    At least one, unless none is wanted.
    """
    room = max(1, (free - HOST_BYTES) // WORKER_BYTES)
    return min(wanted, clients, room)


def free_memory() -> int:
    """Bytes that processes of ours may still take: what the kernel has, and what our control groups allow."""
    free = [sys.maxsize]
    with suppress(OSError, ValueError):
        rows = Path("/proc/meminfo").read_text().splitlines()
        free += [int(row.split()[1]) * 1024 for row in rows if row.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):
        for row in _OWN.read_text().splitlines():
            _, controllers, path = row.split(":", 2)
            if controllers in _LIMITS:
                base = _GROUPS / controllers
                for group in (base / path.strip("/"), *(base / path.strip("/")).parents):
                    free += _left_in(group, *_LIMITS[controllers])
    return min(free)


def _left_in(group: Path, limit: str, usage: str, cache: str) -> list[int]:
    """Bytes below the limit of a control group, if it has one; files that it only caches do not count."""
    try:
        most, used = (int((group / name).read_text()) for name in (limit, usage))
        rows = (group / "memory.stat").read_text().splitlines()
        return [most - used + sum(int(row.split()[1]) for row in rows if row.split()[0] == cache)]
    except (OSError, ValueError, IndexError):
        return []
