"""Keeps ``status.json`` (``status_file``) while a run goes on."""

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedge.deploy.status_file import (
    LAST,
    ROUNDS,
    STATUS,
    About,
    ClientRow,
    Number,
    Refusal,
    ReleaseRow,
    RoundRow,
    Snapshot,
    Totals,
    load,
)
from fedge.errors import SetupError
from fedge.observe import Stage, Tee

if TYPE_CHECKING:
    from fedge.federated.state import ClientRecord

_SHARE, _CREDIT = 0.05, 0.5
# Of the time so much, at most, goes into writing about single answers and about who is there, and at once no
# more than so many seconds.
_LONGEST = 500  # characters of a reason


class Status:
    """Keeps ``status.json``: an ``Observer`` that is also told of each committed round and of who is there.

    A disk that is full does not stop the rounds here: the journal says so, with better reason.
    """

    def __init__(self, state: Path, about: About, clock: Callable[[], float] = time.time) -> None:
        """Go on from what is in ``state``, if that is of this federation; ``clock`` gives Unix time."""
        self._path, self._clock = state / STATUS, clock
        self._credit, self._counted = _CREDIT, time.monotonic()
        self._late = False  # whether there is news that is not written
        self.now = Snapshot(about)
        with suppress(SetupError):
            old = load(state)
            if old.about.federation == about.federation:
                self.now = replace(old, about=about, stages=[], waiting=None, present=[])

    def resume(self, rounds: int, records: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        """Make sure that exactly the committed ``rounds`` are in it; ``records`` reads them if need be."""
        if self.now.rounds != rounds:
            ended, old = {r.number: r.ended for r in self.now.log}, self.now
            kept = Totals(given_up=old.totals.given_up)
            self.now = Snapshot(old.about, totals=kept, refused=old.refused, refusals=old.refusals)
            for record in records():
                self._add(record, ended.get(record["round"]))
        self._write()

    def committed(self, record: Mapping[str, Any], clients: Mapping[str, "ClientRecord"]) -> None:
        """A round is in the journal, as ``record``; ``clients`` is how they stand after it."""
        self._add(record, self._clock())
        for name, known in clients.items():
            row = self.now.clients.get(name, ClientRow())
            stands = replace(row, last=known.counted, offences=known.offences, barred=known.barred)
            self.now.clients[name] = stands
        self.now.waiting = None
        self._write()

    def there(self, names: Collection[str], enrolled: int) -> None:
        """These clients can be asked now."""
        now, present = self.now, sorted(names)
        if now.waiting is not None and len(present) >= now.waiting[1]:
            now.waiting = None
            self._late = True
        if (present, enrolled) != (now.present, now.enrolled):
            now.present, now.enrolled = present, enrolled
            self._late = True
        if self._late:
            self._write(small=True)

    def event(self, kind: str, /, **fields: object) -> None:
        """Note what matters."""
        told: Mapping[str, Any] = fields
        match kind:
            case "stage_start":
                self.now.stages.append((str(told["name"]), self._clock()))
            case "stage":
                del self.now.stages[-1:]
            case "waiting":
                self.now.waiting = (int(told["there"]), int(told["needed"]))
            case "given_up":
                self.now.waiting = None
                self.now.totals = replace(self.now.totals, given_up=self.now.totals.given_up + 1)
            case "refused":
                self._refuse(told["round"], str(told["client"]), str(told["kind"]), str(told["reason"]))
            case _:
                return
        self._write(small=kind == "refused")

    def stage(self, name: str) -> AbstractContextManager[Stage]:
        """Timed by whoever passes the events on."""
        return Tee(self).stage(name)

    def progress(self, done: float, total: float | None, text: str = "") -> None:
        """Too fine for a file."""

    def _refuse(self, number: int, client: str, kind: str, reason: str) -> None:
        now, row = self.now, self.now.clients.get(client, ClientRow())
        told = Refusal(self._clock(), number, client, kind, reason[:_LONGEST])
        now.refusals = [*now.refusals, told][-LAST:]
        now.refused[kind] = now.refused.get(kind, 0) + 1
        now.clients[client] = replace(row, refused=row.refused + 1)

    def _add(self, record: Mapping[str, Any], ended: Number | None) -> None:
        now, row = self.now, _row(record, ended)
        now.rounds, now.log = row.number, [*now.log, row][-ROUNDS:]
        now.totals = _sum(now.totals, record, row)
        if (made := record["release"]) is not None:
            now.releases = [*now.releases, _release(made, row.number)][-LAST:]
        counted = set(record["counted"])
        for name in record["down"].keys() | record["up"].keys() | counted:
            old = now.clients.get(name, ClientRow())
            now.clients[name] = ClientRow(
                last=row.number if name in counted else old.last,
                counted=old.counted + (name in counted),
                refused=old.refused,
                offences=old.offences,
                barred=old.barred,
                up=old.up + record["up"].get(name, 0),
                down=old.down + record["down"].get(name, 0),
                score=record["own_scores"].get(name, old.score),
            )

    def _write(self, small: bool = False) -> None:
        """Small news wait while they have had their share of the time."""
        begin = time.monotonic()
        self._credit = min(_CREDIT, self._credit + _SHARE * (begin - self._counted))
        self._counted, self._late = begin, small and self._credit <= 0
        if self._late:
            return
        self.now.written = self._clock()
        new = self._path.with_name(f".{self._path.name}.unfinished")
        with suppress(OSError):
            new.write_bytes(self.now.encode())
            os.replace(new, self._path)
        if small:
            self._credit -= time.monotonic() - begin


def _row(record: Mapping[str, Any], ended: Number | None) -> RoundRow:
    scores = [s for s in record["own_scores"].values() if s is not None]
    release, lesson = record["release"], record["redistillation"]
    return RoundRow(
        number=record["round"],
        ended=ended,
        seconds=record["seconds"],
        asked=record["participants"],
        counted=len(record["counted"]),
        score=sum(scores) / len(scores) if scores else None,
        loss=record["loss"],
        up=sum(record["up"].values()),
        down=sum(record["down"].values()),
        release=None if release is None else release["version"],
        redistilled=None if lesson is None else bool(lesson["accepted"]),
    )


def _release(made: Mapping[str, Any], number: int) -> ReleaseRow:
    taken, offered = sum(bool(d["taken"]) for d in made["decisions"]), len(made["decisions"])
    return ReleaseRow(
        made["version"], number, made["bytes"], taken, offered - taken, made["path"], made["sha256"]
    )


def _sum(old: Totals, record: Mapping[str, Any], row: RoundRow) -> Totals:
    made = None if record["release"] is None else _release(record["release"], row.number)
    return replace(
        old,
        counted=old.counted + row.counted,
        up=old.up + row.up,
        down=old.down + row.down,
        releases=old.releases + (made is not None),
        taken=old.taken + (made.taken if made else 0),
        not_taken=old.not_taken + (made.refused if made else 0),
        accepted=old.accepted + (row.redistilled is True),
        rejected=old.rejected + (row.redistilled is False),
    )
