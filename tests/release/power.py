"""What a disk may hold after a power cut; a disk that is full, a process that dies, at a chosen operation.

``watched`` stands between the code under test and the operating system, and writes down every operation that
changes files below a folder. ``states`` gives, for every point of that record, several folders that a power
cut may leave there: an entry of a folder that was not flushed may be missing (any of them, in any order), and
so may the content of a file, or half of it.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_REAL = {name: getattr(os, name) for name in ("open", "fsync", "rename", "mkdir", "unlink", "rmdir")}


@dataclass(frozen=True)
class Operation:
    """Something that was done: its name, the path, and the second path or the content, if it has one."""

    name: str
    path: Path
    other: Path | None = None
    content: bytes = b""


@dataclass
class _System:
    """Stands in for the operating system; see ``watched``."""

    folder: Path
    stop_at: int
    error: BaseException | None
    done: list[Operation] = field(default_factory=list)
    stopped: bool = False

    def step(self, name: str, path: Path, other: Path | None = None, content: bytes = b"") -> None:
        """Write an operation down, or stop in its place; a dead process does none of the later ones."""
        if path != self.folder and self.folder not in path.parents:
            return
        if self.error is not None and (len(self.done) == self.stop_at or self._is_dead()):
            stop = self._is_dead() or not self.stopped
            self.stopped = True
            if stop:
                raise self.error
        self.done.append(Operation(name, path, other, content))

    def _is_dead(self) -> bool:
        return self.stopped and not isinstance(self.error, Exception)

    def open(self, path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        if flags & os.O_CREAT:
            self.step("create", Path(path))
        return int(_REAL["open"](path, flags, mode, **more))

    def fsync(self, handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if path.is_dir():
            self.step("flush", path)
        else:
            self.step("sync", path, content=path.read_bytes())

    def rename(self, old: Any, new: Any) -> None:
        self.step("rename", Path(old), Path(new))
        _REAL["rename"](old, new)

    def mkdir(self, path: Any, mode: int = 0o777, **more: Any) -> None:
        self.step("mkdir", Path(path))
        _REAL["mkdir"](path, mode, **more)

    def unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._remove("unlink", path, dir_fd)

    def rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._remove("rmdir", path, dir_fd)

    def _remove(self, name: str, path: Any, dir_fd: int | None) -> None:
        where = Path(path) if dir_fd is None else Path(os.readlink(f"/proc/self/fd/{dir_fd}")) / path
        if where.exists():
            self.step(name, where)
        _REAL[name](path, dir_fd=dir_fd)


@contextmanager
def watched(
    folder: Path, stop_at: int = 1 << 30, error: BaseException | None = None
) -> Iterator[list[Operation]]:
    """Record what changes below ``folder``; raise ``error`` in place of the operation number ``stop_at``.

    An ``OSError`` is raised once (the disk is full), anything else at every later operation, too (the process
    is dead).
    """
    system = _System(folder, stop_at, error)
    with pytest.MonkeyPatch.context() as patch:
        for name in _REAL:
            patch.setattr(os, name, getattr(system, name))
        yield system.done


@dataclass(eq=False)
class _Node:
    """A file or a folder on the simulated disk: what a program sees, and what has been flushed."""

    is_folder: bool
    content: bytes = b""
    synced: bool = False
    names: dict[str, "_Node"] = field(default_factory=dict)
    kept: dict[str, "_Node"] = field(default_factory=dict)
    pending: list[dict[str, "_Node | None"]] = field(default_factory=list)

    def enter(self, change: dict[str, "_Node | None"]) -> None:
        """Make, replace or (None) remove entries in one step."""
        _apply(self.names, change)
        self.pending.append(change)


def states(
    before: Path, done: list[Operation], root: Path, rng: random.Random
) -> Iterator[tuple[int, dict[str, bytes]]]:
    """After how many operations the power went, and what the folder ``root`` may hold then (path -> content).

    Args:
        before: a copy of ``root`` from before the record, flushed.
        done: the record, of operations below ``root``.
        root: the folder that was recorded.
        rng: chooses among the states after each operation.
    """
    disk = _load(before)
    for number, operation in enumerate([None, *done]):
        if operation is not None:
            _perform(disk, operation, root, done[number:])
        for share in (0.0, 0.5, 1.0):
            yield number, dict(_left(disk, "", rng, share))


def restore(folder: Path, files: dict[str, bytes]) -> None:
    """Make a new folder of ``files``; a path that ends with a slash is an empty folder."""
    folder.mkdir()
    for path, content in files.items():
        if path.endswith("/"):
            (folder / path).mkdir(parents=True, exist_ok=True)
        else:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(content)


def _load(path: Path) -> _Node:
    if path.is_dir():
        names = {p.name: _load(p) for p in path.iterdir()}
        return _Node(is_folder=True, names=dict(names), kept=names)
    return _Node(is_folder=False, content=path.read_bytes(), synced=True)


def _perform(disk: _Node, operation: Operation, root: Path, later: list[Operation]) -> None:
    if operation.path == root:
        if operation.name == "flush":
            disk.kept, disk.pending = dict(disk.names), []
        return
    parent, name = _find(disk, operation.path.parent, root), operation.path.name
    match operation.name:
        case "create":
            meant = [o.content for o in later if o.name == "sync" and o.path == operation.path]
            parent.enter({name: _Node(is_folder=False, content=meant[0] if meant else b"")})
        case "mkdir":
            parent.enter({name: _Node(is_folder=True)})
        case "sync":
            parent.names[name].content, parent.names[name].synced = operation.content, True
        case "flush":
            node = parent.names[name]
            node.kept, node.pending = dict(node.names), []
        case "rename":
            assert operation.other is not None
            assert operation.other.parent == operation.path.parent
            parent.enter({name: None, operation.other.name: parent.names[name]})
        case "unlink" | "rmdir":
            parent.enter({name: None})


def _find(disk: _Node, path: Path, root: Path) -> _Node:
    for name in path.relative_to(root).parts:
        disk = disk.names[name]
    return disk


def _left(node: _Node, path: str, rng: random.Random, share: float) -> Iterator[tuple[str, bytes]]:
    """What is there of ``node`` if each pending entry survives with probability ``share``."""
    if not node.is_folder:
        whole = node.content
        yield (
            path,
            whole if node.synced else rng.choice([b"", whole[: len(whole) // 2], whole, bytes(len(whole))]),
        )
        return
    names = dict(node.kept)
    for change in node.pending:
        if rng.random() < share:
            _apply(names, change)
    if path:
        yield f"{path}/", b""
    for name, inner in names.items():
        yield from _left(inner, f"{path}/{name}" if path else name, rng, share)


def _apply(names: dict[str, _Node], change: dict[str, _Node | None]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node
