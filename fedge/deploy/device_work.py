"""Does a device's tasks, one after the other, in the main thread. Torch is loaded for the first of them.

Before a round the owner's limits are asked; a round that may not run now waits for its hour, or is declined
with the reason. The answer is on the disk before the link hears of it.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fedge.deploy.device_limits import DeviceLimits, Hold, hold_rounds, working
from fedge.deploy.device_store import LinkStore
from fedge.deploy.federation import Enrolment
from fedge.errors import DataError, FedgeError, InputError, RefusedError, UpdateError
from fedge.link.frames import Refusal, Refused, shorten
from fedge.signing import SigningKey

if TYPE_CHECKING:
    from fedge.data.types import ClientData, TargetKind
    from fedge.federated.client_state import StateStore

_log = logging.getLogger("fedge.client")

_LOOK = 60.0  # seconds between two looks at what holds a round up
_FILES = 10_000

HOME = "model"
"""In a device's state: the home of its releases, for ``fedge infer``, ``serve`` and ``release``."""


class Reports(Protocol):
    """Whom the worker tells; ``DeviceLink`` is one."""

    def answered(self, id: bytes, content: bytes) -> None:  # noqa: A002
        """A task has its answer."""

    def refused(self, refusal: Refusal) -> None:
        """A task has none."""

    def delayed(self, id: bytes, hold: Hold) -> None:  # noqa: A002
        """A task starts later."""


class StopWork(BaseException):
    """Raised by the signal that ends the process, between two steps. No handler of errors catches it."""


@dataclass(frozen=True)
class _Job:
    id: bytes
    frame: bytes
    deadline: float | None


@dataclass
class Worker:
    """Tasks in, answers out. ``begin`` and ``forget`` from the link's thread, ``run`` in the main thread.

    Attributes:
        round: a client's round, from bytes to bytes.
        store: where answers are kept until the server has them.
        limits: of the owner.
        hold: why no round may start now.
        sleep: waits so many seconds, or less if there is a reason to look again.
        idle: is called each second while there is nothing to do.
    """

    round: Callable[[bytes], bytes]
    store: LinkStore
    limits: DeviceLimits
    hold: Callable[[], Hold | None]
    reports: Reports | None = None
    sleep: Callable[[float], object] | None = None
    idle: Callable[[], object] | None = None
    _jobs: "queue.SimpleQueue[_Job | None]" = field(default_factory=queue.SimpleQueue)
    _wanted: bytes | None = None
    _news: threading.Event = field(default_factory=threading.Event)

    def begin(self, id: bytes, frame: bytes, deadline: float | None) -> None:  # noqa: A002
        """Do this task; one that waits is void."""
        self._wanted = id
        self._jobs.put(_Job(id, frame, deadline))
        self._news.set()

    def forget(self, id: bytes) -> None:  # noqa: A002
        """It is not wanted any more; a round that runs is finished for nothing."""
        if self._wanted == id:
            self._wanted = None
            self._news.set()

    def stop(self) -> None:
        """End ``run`` after what is going on."""
        self._jobs.put(None)
        self._news.set()

    def run(self) -> None:
        """Work until ``stop``, or until a signal raises ``StopWork``."""
        while (job := self._next()) is not None:
            if job.id == self._wanted:
                self._do(job)

    def _next(self) -> _Job | None:
        while self.idle is not None:
            try:
                return self._jobs.get(timeout=1.0)
            except queue.Empty:
                self.idle()
        return self._jobs.get()

    def _do(self, job: _Job) -> None:
        if (hold := self._wait(job)) is not None:
            self._refuse(job.id, hold.kind, hold.seconds, hold.text)
            return
        if job.id != self._wanted:
            return
        started = time.monotonic()
        try:
            with working(self.limits):
                answer = self.round(job.frame)
        except Exception as error:  # a round must not end the process: the server learns why
            kind, text = reason_of(error)
            self._refuse(job.id, kind, 0, text)
            _log.debug("where it happened", exc_info=error)
            return
        self._keep(job.id, lambda: self.store.keep_answer(job.id, answer))
        _log.info("a task of %d bytes was answered with %d after %.1f s",
                  len(job.frame), len(answer), time.monotonic() - started)  # fmt: skip
        if self.reports is not None:
            self.reports.answered(job.id, answer)

    def _wait(self, job: _Job) -> Hold | None:
        """Wait for the task's hour; gives why it is declined, if it is."""
        until = job.deadline if job.deadline is not None else time.monotonic() + self.limits.patience
        told = False
        while job.id == self._wanted and (hold := self.hold()) is not None:
            left = until - time.monotonic()
            if hold.seconds >= left:
                return hold
            if not told and self.reports is not None:
                self.reports.delayed(job.id, hold)
                _log.info("a task waits: %s", hold.text)
                told = True
            self._news.clear()
            (self.sleep or self._news.wait)(min(left, hold.seconds, _LOOK))
        return None

    def _refuse(self, id: bytes, kind: Refused, seconds: int, text: str) -> None:  # noqa: A002
        _log.warning("a task is not done: %s", text)
        refusal = Refusal(id, kind, seconds, shorten(text) or "-")
        self._keep(id, lambda: self.store.keep_refusal(refusal))
        if self.reports is not None:
            self.reports.refused(refusal)

    def _keep(self, id: bytes, save: Callable[[], None]) -> None:  # noqa: A002
        """On the disk, if it takes it. If not, it is sent all the same; after a kill it is made anew."""
        try:
            save()
        except OSError as error:
            _log.error("the answer to task %s cannot be stored: %s", id.hex()[:8], error.strerror or error)


def reason_of(error: Exception) -> tuple[Refused, str]:
    """What the server is told of an error in a round. Of one that nobody expected, only its kind."""
    if isinstance(error, MemoryError) or "allocate memory" in str(error):
        return Refused.MEMORY, "the round needs more memory than this device allows"
    if isinstance(error, ModuleNotFoundError):
        return (
            Refused.SETUP,
            f"the package {error.name} is not installed on this device: fedge[client] has it",
        )
    kinds: tuple[tuple[type[FedgeError], Refused], ...] = (
        (UpdateError, Refused.FOLLOW),
        (RefusedError, Refused.TASK),
        (DataError, Refused.DATA),
        (InputError, Refused.SETUP),
    )
    for kind, refused in kinds:
        if isinstance(error, kind):
            return refused, str(error)
    if isinstance(error, OSError):
        return Refused.SETUP, error.strerror or type(error).__name__
    return Refused.BROKEN, f"the round failed: {type(error).__name__}"


@dataclass(frozen=True)
class DataSource:
    """Where a device's windows are, and how they are read.

    Attributes:
        path: a file, ``.npz``, CSV or Parquet.
        classes: names of the model's classes, for a CSV or Parquet file.
        judge_share: of the windows, for judging candidates.
    """

    path: Path
    classes: tuple[str, ...] | None = None
    judge_share: float = 0.1


@dataclass
class Round:
    """A client's round on this device: ``client_round`` with the device's own things around it.

    The data are read before the first round, and again when their file changes. Releases go to ``home``.
    """

    enrolment: Enrolment
    key: SigningKey
    source: DataSource
    store: "StateStore"
    home: Path
    margin: float
    promoted_only: bool = False
    uplink_budget: int | None = None
    _stamp: object = None
    _data: "ClientData | None" = None

    def __call__(self, frame: bytes) -> bytes:
        """Answer a task; see ``client_round`` for what it raises."""
        import torch

        from fedge.data import kept
        from fedge.edge.disk import FolderDisk
        from fedge.federated import client
        from fedge.federated.consider import Releases
        from fedge.seeding import derive

        torch.set_num_threads(1)
        e, source = self.enrolment, self.source.path
        device = client.Device(
            id=e.name,
            key=self.key,
            data=self._windows(frame),
            store=self.store,
            releases=Releases(
                e.root(),
                self.margin,
                timed=True,
                promoted_only=self.promoted_only,
                recent=partial(kept.recent, source) if kept.is_kept(source) else None,
                disk=FolderDisk(self.home),
            ),
            seed=derive(0, "device", e.federation, e.name),
            uplink_budget=self.uplink_budget,
        )
        return client.client_round(frame, device)

    def _windows(self, frame: bytes) -> "ClientData":
        from fedge.data import load_client
        from fedge.data.split import split_client

        stamp = stamp_of(self.source.path)
        task, length, target = self._task(frame)
        if self._data is None or (stamp, task) != self._stamp:
            found = load_client(
                self.source.path,
                classes=self.source.classes,
                window=length,
                step=max(1, length // 2),
                target=target,
            )
            (windows,) = found.clients.values()
            self._data = split_client(windows, judge_share=self.source.judge_share, target=target)
            self._stamp = (stamp, task)
            _log.info("%d windows to train on, from %s", len(self._data.train), self.source.path)
        return self._data

    def _task(self, frame: bytes) -> "tuple[str, int, TargetKind]":
        """Name of what is learned, length of a window, kind of target: from the plan."""
        from fedge import plugins
        from fedge.federated import frames
        from fedge.federated.client_state import ClientState
        from fedge.federated.plan import Plan

        task = frames.decode_task(frame)
        if isinstance(task, frames.Welcome):
            plan = Plan.from_dict(task.plan)
        else:
            try:
                plan = ClientState.load(self.store).plan
            except RefusedError as error:
                raise UpdateError(f"{error}; this client must be welcomed again") from None
        return plan.task, plan.spec.window[0], plugins.load("task", plan.task).TASK.target


def stamp_of(path: Path) -> tuple[tuple[str, int, int], ...]:
    """What changes when a file, or a file of a folder, does.

    Raises:
        DataError: it cannot be read.
    """
    try:
        files = sorted(path.iterdir())[:_FILES] if path.is_dir() else [path]
        return tuple((f.name, (s := f.stat()).st_mtime_ns, s.st_size) for f in files)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def hold_now(limits: DeviceLimits) -> Hold | None:
    """``hold_rounds`` at this moment, local time."""
    return hold_rounds(limits, datetime.now())
