"""The process that worker processes are forked from, and that hands them their tasks.

``python -m fedge.simulation.worker_host PARENT SOCKET MEMORY``, started by ``workers.py``: imports
everything, lets the app load its data, and only then forks, so that all of it is in memory once. It computes
nothing and has no threads but those that libraries keep idle; a fork of the simulation itself, with its
threads, open files and locks, would be another matter. A worker that dies is forked anew and its task is
given out again.

Linux kills this process when the simulation dies, and the workers when this process dies.
"""

import ctypes
import gc
import os
import selectors
import signal
import socket
import sys
import traceback
import warnings
from collections import deque
from dataclasses import dataclass, field
from importlib import import_module

from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from fedge.errors import ConfigError, FedgeError
from fedge.simulation.flower_internals import enter_run
from fedge.simulation.torch_settings import repeatable
from fedge.simulation.worker import FIRST_NODE, RUN, Crew, work
from fedge.simulation.worker_wire import HEAD, TASK, Kind, Start, Task, said, take

MOST_DEATHS = 3
"""Workers that may die over the same task: then it is the task that kills them."""

_PR_SET_PDEATHSIG = 1


class _OverError(Exception):
    """The simulation has ended."""


@dataclass
class _Worker:
    """A process, the host's end of its socket, and the task that it has."""

    pid: int
    box: socket.socket
    task: bytes | None = None


@dataclass
class _Host:
    """Hands out tasks in order, one to each worker at a time."""

    crew: Crew
    main: socket.socket
    memory: int
    tasks: deque[bytes] = field(default_factory=deque)
    workers: dict[int, _Worker] = field(default_factory=dict)
    deaths: dict[bytes, int] = field(default_factory=dict)
    selector: selectors.DefaultSelector = field(default_factory=selectors.DefaultSelector)

    def run(self, workers: int) -> None:
        """Until the simulation ends."""
        self.selector.register(self.main, selectors.EVENT_READ)
        for _ in range(workers):
            self._fork()
        while True:
            for key, _ in self.selector.select():
                if key.fileobj is self.main:
                    self._accept()
                else:
                    self._forward(key.data)
            self._hand_out()

    def _accept(self) -> None:
        """Take in the tasks that have come."""
        content = self.main.recv(1 << 16)
        rest = -len(content) % TASK.size
        more = take(self.main, rest) if content else None
        if more is None:
            raise _OverError
        content += more
        self.tasks.extend(content[i : i + TASK.size] for i in range(0, len(content), TASK.size))

    def _hand_out(self) -> None:
        for worker in [w for w in self.workers.values() if w.task is None][: len(self.tasks)]:
            worker.task = self.tasks.popleft()
            try:
                worker.box.sendall(worker.task)
            except OSError:  # it has just died
                self._mourn(worker)

    def _forward(self, worker: _Worker) -> None:
        """Pass on what a worker says; if it has died, give out its task again."""
        head = take(worker.box, HEAD.size)
        content = None if head is None else take(worker.box, HEAD.unpack(head)[2])
        if head is None or content is None:
            self._mourn(worker)
            return
        for task in (worker.task or b"", b""):
            self.deaths.pop(task, None)
        worker.task = None
        self.main.sendall(head + content)

    def _mourn(self, worker: _Worker) -> None:
        """Bury a worker, fork another one, and let that task be the next."""
        self.selector.unregister(worker.box)
        worker.box.close()
        del self.workers[worker.pid]
        how = os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
        ended = f"was killed by signal {-how}" if how < 0 else f"ended with code {how}"
        self._count(worker.task or b"", ended)
        if worker.task is not None:
            self.tasks.appendleft(worker.task)
        self._fork()

    def _count(self, task: bytes, ended: str) -> None:
        """Say that a worker has died over ``task``, or over none; raise if that happens again and again."""
        self.deaths[task] = self.deaths.get(task, 0) + 1
        over = f"the task of client number {Task.unpack(task).client}" if task else "nothing"
        if self.deaths[task] >= MOST_DEATHS:
            raise FedgeError(
                f"{MOST_DEATHS} worker processes in a row died over {over}; the last one {ended}. If memory "
                "is short, take fewer --workers"
            )
        text = f"a worker process {ended} over {over}: another one takes its place, and the task is run again"
        self.main.sendall(said(Kind.NOTE, 0, text.encode()))

    def _fork(self) -> None:
        mine, its = socket.socketpair()
        host, pid = os.getpid(), os.fork()
        if not pid:
            try:
                _tie(host)
                self.selector.close()
                for other in (self.main, mine, *(w.box for w in self.workers.values())):
                    other.close()
                work(self.crew, its, self.memory)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)  # a worker must never do what the host does
        its.close()
        self.workers[pid] = _Worker(pid, mine)
        self.selector.register(mine, selectors.EVENT_READ, self.workers[pid])

    def end(self) -> None:
        """Kill every worker."""
        for pid in self.workers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def find_app(name: str) -> ClientApp:
    """The ClientApp that ``module:attribute`` names.

    Raises:
        ConfigError: there is no such ClientApp.
    """
    module, _, attribute = name.partition(":")
    app = getattr(import_module(module), attribute, None)
    if not isinstance(app, ClientApp):
        raise ConfigError(f"{name} is no ClientApp")
    return app


def _load(start: Start) -> Crew:
    """Import the app and ask it something, so that its data are there before anything is forked."""
    repeatable()
    warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # idle ones
    enter_run(RUN)
    crew = Crew(find_app(start.app), dict(start.run_config), start.clients)
    crew.app(Message(RecordDict(), FIRST_NODE, "query.who"), crew.context(0))
    gc.collect()
    gc.freeze()  # or the collector would write to every object, and each worker would get a copy of its own
    return crew


def _tie(parent: int) -> None:
    """Let Linux kill this process when its parent dies; end now if that has happened already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def main(parent: int, box: int, memory: int) -> None:
    """Serve the simulation at the other end of the socket ``box``, until it ends."""
    _tie(parent)
    with socket.socket(fileno=box) as simulation:
        start = Start.receive(simulation)
        if start is None:
            return
        host: _Host | None = None
        try:
            host = _Host(_load(start), simulation, memory)
            host.run(start.workers)
        except (_OverError, BrokenPipeError, ConnectionResetError):
            pass
        except Exception as error:  # whatever it is, the simulation has to hear of it
            code, text = (
                (error.exit_code, "") if isinstance(error, FedgeError) else (1, f"{type(error).__name__}: ")
            )
            simulation.sendall(said(Kind.FAILED, code, f"{text}{error}".encode()))
        finally:
            if host is not None:
                host.end()


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:4]))
