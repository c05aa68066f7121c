"""A device's home: the model it runs, the one before it, and what it knows of both. IO; the rules are apart.

    state.json     which slot is in use, and all that ``slots.py`` knows: the one commit point
    a.json  a.onnx     manifest and model of slot a
    b.json  b.onnx     of slot b
    trust.json     the signed metadata that were verified last

To install is to write the spare slot, and then ``state.json``. Every write is durable before the next, so a
power cut at any point leaves the old model or the new one; what a slot holds is checked against the hashes
in ``state.json`` whenever it is read, and a slot that does not hold it counts as empty.

Several processes may share a home: one learns and updates, others answer windows.
"""

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace

from fedge.edge import _state_file, slots
from fedge.edge._sealed import seal, unseal
from fedge.edge.codes import NotTakenError
from fedge.edge.disk import Disk
from fedge.edge.slot_files import Installed, read_slot, told_by_itself, write_slot
from fedge.edge.slots import SLOTS, Held, Slots
from fedge.edge.watch import Finding, Promise, Seen, WatchRules, aged, judge, look
from fedge.errors import FedgeError, PayloadError, ReleaseError, SetupError
from fedge.release.manifest import parse

__all__ = ["ChangedError", "Home", "Installed", "Seen"]

STATE, TRUST = "state.json", "trust.json"
MAX_TRUST_BYTES = 1 << 22
_LOOKS = 3  # at a home that another process changes meanwhile


class ChangedError(FedgeError):
    """Another process changed over to another model meanwhile; whatever was compared with it is void."""


class Home:
    """A device's home on a ``Disk``. One object may be shared between threads."""

    def __init__(self, disk: Disk, rules: WatchRules | None = None) -> None:
        """Nothing is read or written yet.

        Args:
            disk: where it lies.
            rules: when a model that went live has to go again.
        """
        self.disk = disk
        self.rules = rules or WatchRules()
        self._unsaved: Seen | None = None  # plain answers, which are not worth a write each
        self._guard = threading.Lock()

    def slots(self) -> Slots:
        """What the device holds. Where ``state.json`` is damaged: what its slots still show.

        Raises:
            SetupError: the disk cannot be read.
        """
        try:
            content = self.disk.read(STATE, _state_file.MAX_STATE_BYTES)
            if content is not None:
                return _state_file.parse(content)
        except PayloadError:
            pass
        return slots.recovered({s: held for s in SLOTS if (held := told_by_itself(self.disk, s)) is not None})

    def current(self) -> Installed | None:
        """The model to run; None on a device that has none.

        A slot that is damaged counts as empty, and the other one is taken.

        Raises:
            SetupError: the disk cannot be read.
        """
        for _ in range(_LOOKS):
            state = self.slots()
            whole = read_slot(self.disk, state, state.active)
            if whole is not None or self.slots() == state:
                break
        return whole or read_slot(self.disk, state, state.spare)

    def held(self) -> list[Installed]:
        """The releases that are here and whole, the one in use first.

        Raises:
            SetupError: the disk cannot be read.
        """
        state = self.slots()
        found = (read_slot(self.disk, state, slot) for slot in (state.active, state.spare))
        return [installed for installed in found if installed is not None]

    def settle(self) -> int | None:
        """Take what is damaged for gone, where the model in use is, and the other slot has one to go on with.

        Then the device knows of no trial of a model that it has lost, and the release may come again. A disk
        that cannot be written changes nothing about which model goes on. Gives the version that was lost.

        Raises:
            SetupError: the disk cannot be read.
        """
        state = self.slots()
        if state.current is None or read_slot(self.disk, state, state.active) is not None:
            return None
        if self.slots() != state or read_slot(self.disk, state, state.spare) is None:
            return None
        with contextlib.suppress(SetupError):
            self.change(self.settled)
        return state.current.version

    def give_up(self, version: int, code: str) -> None:
        """Go back from ``version``, where that is in use and an earlier one is here, for the reason ``code``.

        Raises:
            SetupError: the disk cannot be read or written.
        """
        self.change(lambda state: self._gone_back(state, Finding(version, code)))

    def stamp(self) -> object:
        """A cheap value that is another one when the current model may be another one."""
        return self.disk.stamp(STATE)

    def rollback(self, to: int | None = None) -> int:
        """Go back to the earlier model, or change over to version ``to`` of the two that are here.

        The version that is left is not taken again; a newer one is, also where the device was pinned. Gives
        the version that is active now.

        Raises:
            ReleaseError: there is no such version here, or it is damaged.
            SetupError: the disk cannot be written.
        """

        def back(state: Slots) -> Slots:
            version = to
            if version is None:
                if state.earlier is None:
                    raise ReleaseError("there is no earlier release on this device to go back to")
                version = state.earlier.version
            return self._chosen(replace(state, pinned=False), version)

        return _version(self.change(back))

    def pin(self, version: int) -> None:
        """Run ``version``, which must be here, and take no other until :meth:`unpin`.

        Raises:
            ReleaseError: it is not here, or is damaged.
            SetupError: the disk cannot be written.
        """
        self.change(lambda state: replace(self._chosen(state, version), pinned=True))

    def unpin(self) -> None:
        """Take releases again.

        Raises:
            SetupError: the disk cannot be written.
        """
        self.change(lambda state: replace(state, pinned=False))

    def observe(self, observed: Seen) -> str | None:
        """Tell what was seen of the model in use; goes back to the earlier one if that is too bad.

        Gives the reason if it went back, else None. What was seen of another model than the one in use says
        nothing any more. A pinned device, and one that has nothing to go back to, keeps its model.

        Raises:
            SetupError: the disk cannot be read or written.
        """
        with self._guard:
            return self._observe(observed)

    def started(self, version: int) -> str | None:
        """A process is about to open model ``version``; :meth:`confirmed` says that it has answered.

        A model on trial whose processes end again and again before they answer is taken back: then this gives
        the reason, and :meth:`current` is another model.

        Raises:
            SetupError: the disk cannot be read or written.
        """
        if not self._on_trial(version):
            return None

        def start(state: Slots) -> Slots:
            watch = replace(state.watch, starts=state.watch.starts + 1)
            return self._decided(slots.seen(state, watch, self.rules), version)

        return _reason(self.change(start), version)

    def confirmed(self, version: int) -> None:
        """Model ``version`` has answered a window in this process.

        Raises:
            SetupError: the disk cannot be read or written.
        """
        state = self.slots()
        if _is_current(state, version) and state.trial and state.watch.starts:
            self.change(
                lambda s: replace(s, watch=replace(s.watch, starts=0)) if _is_current(s, version) else s
            )

    def install(self, base: Slots, manifest: bytes, model: bytes, promise: Promise) -> None:
        """Put a release, which passed the gate, into the spare slot and go over to it.

        Args:
            base: what :meth:`slots` gave when the release was compared with the current model.
            manifest: its manifest.
            model: its ONNX file, which the manifest names.
            promise: what the gate measured.

        Raises:
            ChangedError: the current model is another one by now.
            SetupError: the disk cannot be written; the current model is still in use.
        """
        held = Held.of(parse(manifest).version, manifest, model)

        def install(state: Slots) -> Slots:
            if state.current != base.current or state.pinned:
                raise ChangedError("the device changed over to another model, or was pinned, meanwhile")
            write_slot(self.disk, state.spare, manifest, model)
            return slots.installed(state, held, promise)

        self.change(install)

    def model(self, version: int) -> bytes | None:
        """The ONNX file of ``version``, if it is here and whole."""
        state = self.slots()
        for slot in SLOTS:
            held = state.held(slot)
            if held is not None and held.version == version and (found := read_slot(self.disk, state, slot)):
                return found.model
        return None

    def settled(self, state: Slots) -> Slots:
        """``state`` as it is when what is damaged in the slots counts as gone. For :meth:`change`."""
        return slots.without_damaged(state, {s for s in SLOTS if read_slot(self.disk, state, s) is not None})

    def change(self, transition: Callable[[Slots], Slots]) -> Slots:
        """Replace the state by what ``transition`` makes of it, with every other process kept out.

        Raises:
            SetupError: the disk cannot be read or written; whatever ``transition`` raises.
        """
        with self.disk.exclusive("state"):
            state = self.slots()
            after = transition(state)
            if after != state:
                self.disk.replace(STATE, _state_file.to_bytes(after))
        return after

    def trusted(self) -> Mapping[str, str]:
        """The metadata that were verified last, by name; none where that file is missing or damaged."""
        try:
            content = self.disk.read(TRUST, MAX_TRUST_BYTES)
            files = {} if content is None else unseal(content, TRUST)
        except PayloadError:
            return {}
        return {name: text for name, text in files.items() if isinstance(text, str)}

    def keep_trusted(self, files: Mapping[str, str]) -> None:
        """Replace them.

        Raises:
            NotTakenError: they are too large.
            SetupError: the disk cannot be written.
        """
        content = seal(files)
        if len(content) > MAX_TRUST_BYTES:
            said = f"the releases' metadata have {len(content)} bytes; at most {MAX_TRUST_BYTES} are kept"
            raise NotTakenError("too_long", said)
        if files != self.trusted():
            self.disk.replace(TRUST, content)

    def _observe(self, observed: Seen) -> str | None:
        seen = _joined(self._unsaved, observed)
        state = self.slots()
        if not _is_current(state, seen.version):
            self._unsaved = None
            return None
        after = look(state.watch, seen, self.rules)
        worth = state.trial or seen.errors or seen.windows or after.slow != state.watch.slow
        if not worth and judge(seen.version, after, self.rules) is None:
            self._unsaved = seen
            return None
        self._unsaved = None

        def told(state: Slots) -> Slots:
            if not _is_current(state, seen.version):
                return state
            watch = look(state.watch, seen, self.rules)
            decided = self._decided(slots.seen(state, watch, self.rules), seen.version)
            return decided if decided.active != state.active else replace(decided, watch=aged(decided.watch))

        return _reason(self.change(told), seen.version)

    def _decided(self, state: Slots, version: int) -> Slots:
        """The state after the watch's decision about the model in use, ``version``."""
        finding = None if state.pinned else judge(version, state.watch, self.rules)
        return state if finding is None else self._gone_back(state, finding)

    def _gone_back(self, state: Slots, finding: Finding) -> Slots:
        """The state after going back from the model in use, if ``finding`` is about it and it can be done."""
        if not _is_current(state, finding.version) or state.earlier is None:
            return state
        if read_slot(self.disk, state, state.spare) is None:
            return state
        return slots.gone_back(state, finding)

    def _on_trial(self, version: int) -> bool:
        state = self.slots()
        return state.trial and _is_current(state, version)

    def _chosen(self, state: Slots, version: int) -> Slots:
        after = slots.chosen(state, version)
        if read_slot(self.disk, after, after.active) is None:
            raise ReleaseError(f"release {version} is damaged on this device's disk")
        return after


def _joined(before: Seen | None, now: Seen) -> Seen:
    """Two looks at the same model as one."""
    if before is None or before.version != now.version:
        return now
    return replace(now, answers=before.answers + now.answers)


def _is_current(state: Slots, version: int) -> bool:
    return state.current is not None and state.current.version == version


def _version(state: Slots) -> int:
    return 0 if state.current is None else state.current.version


def _reason(state: Slots, version: int) -> str | None:
    """Why ``version`` is not active any more, if it is not."""
    if _is_current(state, version) or state.current is None:
        return None
    known: list[Finding] = [f for f in state.findings if f.version == version]
    return f"{known[-1].reason}; back to release {state.current.version}" if known else None
