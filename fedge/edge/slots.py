"""What a device holds and may run: two slots, and the rules of changing them. No IO, no clock.

A new release goes to the slot that is not in use. Which one is in use is one word of one small file, so a
device changes over in one step, and back in one. Versions that a device has put to the test never come
again; going back to the model in the other slot does not change that.
"""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Literal

from fedge.edge.codes import NotTakenError
from fedge.edge.watch import Finding, Promise, Watch, WatchRules
from fedge.errors import ReleaseError

Slot = Literal["a", "b"]
SLOTS: tuple[Slot, Slot] = ("a", "b")
MAX_FINDINGS = 16
"""So many findings are kept, the newest."""


@dataclass(frozen=True)
class Held:
    """What a slot holds: a version, and the SHA-256 (hex) of its manifest and of its model."""

    version: int
    manifest: str
    model: str

    @staticmethod
    def of(version: int, manifest: bytes, model: bytes) -> "Held":
        """What describes these two files."""
        return Held(version, hashlib.sha256(manifest).hexdigest(), hashlib.sha256(model).hexdigest())


@dataclass(frozen=True)
class Slots:
    """The whole of it.

    Attributes:
        active: the slot in use; None on a device without a model.
        a: what slot a holds, if anything.
        b: what slot b holds, if anything.
        highest: the highest version that this device ever put to the test; 0 for none.
        floor: the highest version that the offline key ever promoted, as far as this device knows.
        federation: whose releases these are (hex); empty for nobody's yet.
        vouchers: whose signatures ``highest`` is due to (see :func:`vouched`); empty for nobody's yet.
        pinned: whether the owner wants the active one kept, whatever comes.
        trial: whether the active one still has to prove itself.
        watch: of the active one.
        lost: what was active when it was found damaged: that very release may come again.
        findings: what was refused or taken back, and why; the oldest first.
    """

    active: Slot | None = None
    a: Held | None = None
    b: Held | None = None
    highest: int = 0
    floor: int = 0
    federation: str = ""
    vouchers: str = ""
    pinned: bool = False
    trial: bool = False
    watch: Watch = field(default_factory=Watch)
    lost: Held | None = None
    findings: tuple[Finding, ...] = ()

    def held(self, slot: Slot | None) -> Held | None:
        """What ``slot`` holds."""
        return {"a": self.a, "b": self.b, None: None}[slot]

    @property
    def current(self) -> Held | None:
        """What the active slot holds."""
        return self.held(self.active)

    @property
    def spare(self) -> Slot:
        """The slot that is not in use."""
        return "b" if self.active == "a" else "a"

    @property
    def earlier(self) -> Held | None:
        """What the other slot holds, if that is an earlier version: what there is to go back to."""
        other, current = self.held(self.spare), self.current
        return (
            other if other is not None and current is not None and other.version < current.version else None
        )


def joined(state: Slots, federation: str) -> Slots:
    """The state of a device in ``federation``: versions of another one say nothing here."""
    if state.federation in ("", federation):
        return replace(state, federation=federation)
    return Slots(state.active, state.a, state.b, federation=federation, pinned=state.pinned)


def vouched(state: Slots, vouchers: str) -> Slots:
    """The state for releases that ``vouchers`` (the delegated role's keys, as one word) sign.

    Whoever stole that role's key could have used up all version numbers. When the offline key has put another
    in its place, versions count anew from the promoted one; TUF does the same for its own numbers.
    """
    if state.vouchers in ("", vouchers):
        return replace(state, vouchers=vouchers)
    return replace(state, vouchers=vouchers, highest=state.floor, findings=())


def check_offer(state: Slots, version: int, manifest: str, *, again: bool = False) -> None:
    """Check that release ``version``, whose manifest has the SHA-256 ``manifest``, may be tried.

    Args:
        state: of this device.
        version: what is offered.
        manifest: its SHA-256 in hex.
        again: the owner wants a release that was refused or taken back here, and is above the one in use, to
            be tried once more.

    Raises:
        NotTakenError: the device is pinned, the version is below the promoted one, or it is not above every
            version that was tried here. The release that this device has lost may come again.
    """
    if state.pinned:
        raise NotTakenError(
            "pinned", "this device is pinned: fedge release pin --unpin lets it take releases"
        )
    if version < state.floor:
        raise NotTakenError("below_promoted", f"release {version} is below the promoted one, {state.floor}")
    known = [f.reason for f in state.findings if f.version == version]
    wanted = again and bool(known) and (state.current is None or version > state.current.version)
    lost = state.lost is not None and (version, manifest) == (state.lost.version, state.lost.manifest)
    if version <= state.highest and not (lost or wanted):
        why = f": {known[-1]}" if known else f": it is not above {state.highest}"
        raise NotTakenError("tried_before", f"release {version} is not tried again here{why}")


def promoted(state: Slots, version: int) -> Slots:
    """The offline key has promoted ``version``; that never falls."""
    return replace(state, floor=max(state.floor, version))


def attempted(state: Slots, version: int) -> Slots:
    """Release ``version`` is about to be opened. If that ends this process, it is not tried again."""
    return found(replace(state, highest=max(state.highest, version)), Finding(version, "stopped"))


def undone(state: Slots, version: int, before: Slots) -> Slots:
    """The attempt at ``version`` came to no end, through no fault of the release: it may be tried again.

    Where it is live all the same (its last flush failed, say), nothing is undone.
    """
    if state.current is not None and state.current.version == version:
        return state
    kept = tuple(f for f in state.findings if (f.version, f.code) != (version, "stopped"))
    highest = before.highest if state.highest == version else state.highest
    return replace(state, highest=highest, lost=before.lost, findings=kept)


def found(state: Slots, finding: Finding) -> Slots:
    """With one more finding, instead of what was known of that version before."""
    kept = tuple(f for f in state.findings if f.version != finding.version)
    return replace(state, findings=(*kept, finding)[-MAX_FINDINGS:])


def installed(state: Slots, held: Held, promise: Promise) -> Slots:
    """``held`` lies in the spare slot and goes live, on trial."""
    return replace(
        _put(state, state.spare, held),
        active=state.spare,
        highest=max(state.highest, held.version),
        trial=True,
        watch=Watch(promise),
        lost=None,
        findings=tuple(f for f in state.findings if f.version != held.version),
    )


def gone_back(state: Slots, finding: Finding) -> Slots:
    """The earlier model goes live again; the watch starts anew, and it is not on trial.

    Raises:
        ReleaseError: there is none.
    """
    if state.earlier is None:
        raise ReleaseError("there is no earlier release on this device to go back to")
    return replace(found(state, finding), active=state.spare, trial=False, watch=Watch(), pinned=False)


def chosen(state: Slots, version: int) -> Slots:
    """The owner wants ``version``, which this device holds, to be the active one.

    Raises:
        ReleaseError: it does not hold it.
    """
    other, current = state.held(state.spare), state.current
    if current is not None and current.version == version:
        return state
    if other is None or other.version != version:
        holds = [str(h.version) for h in (current, other) if h is not None]
        raise ReleaseError(
            f"this device does not hold release {version}; it holds: {', '.join(holds) or 'none'}"
        )
    findings = tuple(f for f in state.findings if f.version != version)
    if current is not None and version < current.version:
        findings = (*findings, Finding(current.version, "by_hand"))[-MAX_FINDINGS:]
    return replace(state, active=state.spare, trial=False, watch=Watch(), findings=findings)


def seen(state: Slots, watch: Watch, rules: WatchRules) -> Slots:
    """With another ``watch``; a trial that has lasted long enough is over."""
    return replace(state, watch=watch, trial=state.trial and watch.total < rules.trial_answers)


def without_damaged(state: Slots, whole: set[Slot]) -> Slots:
    """What is left when only the slots in ``whole`` hold what they should.

    If the active one does not, the other becomes active, whichever version it is: a device with a model that
    was taken back is better off than one with none.
    """
    after = state
    for slot in SLOTS:
        if state.held(slot) is not None and slot not in whole:
            after = _put(after, slot, None)
    if state.active is None or state.active in whole:
        return after
    lost, other = state.current, state.spare if state.spare in whole else None
    after = replace(after, active=other, lost=lost, trial=False, watch=Watch(), pinned=False)
    return after if lost is None else found(after, Finding(lost.version, "damaged"))


def recovered(found_in: dict[Slot, Held]) -> Slots:
    """The state of a device whose state file is gone: the highest version that is whole is active."""
    if not found_in:
        return Slots()
    active = max(found_in, key=lambda slot: found_in[slot].version)
    return Slots(active, found_in.get("a"), found_in.get("b"), highest=found_in[active].version)


def _put(state: Slots, slot: Slot, held: Held | None) -> Slots:
    return replace(state, a=held) if slot == "a" else replace(state, b=held)
