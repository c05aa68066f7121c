"""Makes client processes quickly: reads everything once, then forks one for each ``start``.

Lines on standard input, each answered by a number: ``start NODE FOLDER`` (its process id), ``over PID``
(1 once it has ended), ``kill PID`` (how it ended: -9 if by this or any other SIGKILL). At the end of the
input whoever is left is killed.

A client's process kills itself at the operations on files that are named in its folder ``armed``: just before
it opens a task (``task``), opens the file for a new state (``save``), renames it (``rename``), flushes the
folder that it is in now (``flush``), opens the file for an answer (``answer``) and renames that (``send``).
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from federated.build import config_for

from fedge.durable import unfinished
from fedge.federated.file_store import FileStore
from fedge.flower.client_app import make_client_app
from fedge.simulation.directory import serve_directory
from fedge.simulation.world import World, build_world

POINTS = ("task", "save", "rename", "flush", "answer", "send")
FIRST_NODE = 2


@dataclass(frozen=True)
class Places:
    """Where a client's files lie below a run's folder."""

    folder: Path
    node: int

    @property
    def grid(self) -> Path:
        return self.folder / "grid"

    @property
    def tasks(self) -> Path:
        return self.grid / f"node-{self.node}" / "tasks"

    @property
    def answers(self) -> Path:
        return self.grid / f"node-{self.node}" / "answers"

    @property
    def state(self) -> Path:
        return self.folder / "states" / str(self.node) / "state"

    @property
    def armed(self) -> Path:
        return self.folder / "armed" / str(self.node)

    def point(self, event: str, args: tuple[Any, ...]) -> str | None:
        """Which of ``POINTS`` an audit event of Python is."""
        if event not in ("open", "os.rename") or not isinstance(args[0], str | os.PathLike):
            return None
        first, state = Path(args[0]), self.state
        if event == "os.rename":
            target = Path(args[1])
            return "rename" if target == state else "send" if target.parent == self.answers else None
        names = {unfinished(state): "save", state.parent: "flush"}
        folders = {self.tasks: "task", self.answers: "answer"}
        return names.get(first) or folders.get(first.parent)


def die_where_armed(places: Places) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook: Python calls it before each operation on a file."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        point = places.point(event, args)
        if point is not None and (places.armed / point).exists():
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


def start(world: World, places: Places) -> int:
    """Fork a client's process; gives its id."""
    parent = os.getpid()
    if pid := os.fork():
        return pid
    try:
        sys.addaudithook(die_where_armed(places))
        device = world.device(places.node - FIRST_NODE, FileStore(places.state))
        app = make_client_app(lambda _context: device)
        serve_directory(places.grid, places.node, app, stop=lambda: os.getppid() != parent)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def is_over(pid: int) -> bool:
    """Whether a process has ended; its id stays its own until ``kill``."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def kill(pid: int) -> int:
    """End a process, if it has not ended yet, and say how it ended."""
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(data: str) -> None:
    """Obey the lines on standard input."""
    torch.set_num_threads(1)
    world, alive = build_world(config_for(Path(data))), set[int]()
    for line in sys.stdin:
        word, number, *rest = line.rstrip("\n").split(" ", 2)
        if word == "start":
            answer = start(world, Places(Path(rest[0]), int(number)))
            alive.add(answer)
        elif word == "kill":
            alive.remove(int(number))
            answer = kill(int(number))
        else:
            answer = is_over(int(number))
        sys.stdout.write(f"{int(answer)}\n")
        sys.stdout.flush()
    for pid in alive:
        kill(pid)


if __name__ == "__main__":
    main(sys.argv[1])
