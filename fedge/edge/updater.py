"""A device takes a new release: look, verify, fetch, test, go over. Each step is durable before the next.

    the signed metadata are verified, and kept
    -> the release is newer than all that were tried, and not below the promoted one
    -> manifest and model are fetched (the model as a delta from one that is here, or whole) and verified
    -> the attempt is written down, so that a model that ends this process is not tried again
    -> the gate
    -> the spare slot is written, and then the state: the release is live, on trial

``slots.py`` has the rules of what may be tried, ``trusted.py`` who is believed, ``gate.py`` the test,
``home.py`` the disk. Whatever is refused on the way, the current model goes on.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedge.edge import slots
from fedge.edge.agreement import Likeness
from fedge.edge.codes import NotTakenError
from fedge.edge.gate import Decision, GateInputs, OpenRelease, judge
from fedge.edge.home import ChangedError, Home
from fedge.edge.runtime import Runtime
from fedge.edge.slots import Slots
from fedge.edge.sources import FetchError, Source
from fedge.edge.watch import Finding, Promise
from fedge.errors import DataError, RefusedError, ReleaseError, SetupError
from fedge.metrics import RANGES
from fedge.release.manifest import MAX_MANIFEST_BYTES, MAX_MODEL_BYTES, Manifest, check_model, parse

if TYPE_CHECKING:
    from fedge.edge.trusted import Offer, View

_NOT_ITS_FAULT = (DataError, SetupError, ChangedError, KeyboardInterrupt, SystemExit)
"""What ends a test without a word about the release: it may be tried again."""


@dataclass(frozen=True)
class Outcome:
    """What came of an update: all that a server is told, in numbers and one word.

    Attributes:
        version: of the release that was considered; 0 if it did not come to that.
        taken: whether the device runs it from now on.
        code: the reason for machines: ``fedge.edge.codes``, or the gate's (``fedge.edge.gate.Decision``).
        reason: the same for people.
        current_score: see ``Decision``, as for the rest.
        candidate_score: of the release.
        windows: labelled ones.
        latency_us: of the release.
        likeness: of its answers to the current model's.
    """

    version: int
    taken: bool
    code: str
    reason: str
    current_score: float | None = None
    candidate_score: float | None = None
    windows: int = 0
    latency_us: float | None = None
    likeness: Likeness | None = None

    @staticmethod
    def of(version: int, decision: Decision) -> "Outcome":
        """What the gate decided about release ``version``."""
        return Outcome(
            version,
            decision.taken,
            decision.code,
            decision.reason,
            decision.current_score,
            decision.candidate_score,
            decision.windows,
            decision.latency_us,
            decision.likeness,
        )


@dataclass(frozen=True, eq=False)
class _Arrived:
    """A release that was fetched and verified."""

    manifest: Manifest
    manifest_bytes: bytes
    model: bytes


class Updater:
    """Takes releases into one home."""

    def __init__(
        self,
        home: Home,
        root: bytes,
        federation: str,
        now: Callable[[], int],
        *,
        insist_on_promoted: bool = False,
        again: bool = False,
    ) -> None:
        """Nothing is read or written yet.

        Args:
            home: where releases go.
            root: the first root's metadata (``1.root.json``), which the device was enrolled with.
            federation: whose releases it takes, in hex.
            now: Unix time in seconds.
            insist_on_promoted: take only what the offline key has promoted.
            again: also what was refused or taken back here: see ``slots.check_offer``.
        """
        self._home, self._root, self._federation, self._now = home, root, federation, now
        self._insist, self._again = insist_on_promoted, again
        self._undo: Callable[[Slots], Slots] = lambda state: state  # where the disk was too full for it

    def update(self, source: Source, test: GateInputs) -> Outcome:
        """Take the release that ``source`` offers, if it is to be had, newer, and passes the gate.

        Raises:
            FetchError: a file cannot be had; it may be tried again.
            SetupError: the disk cannot be read or written, or another process updates this home.
            DataError: the device's own windows cannot be used.
        """
        with self._home.disk.exclusive("update", wait=False):
            considered = 0
            try:
                state = self._home.change(self._begun)
                self._undo = lambda state: state
                if state.pinned:
                    slots.check_offer(state, 0, "")
                offer = self._choose(self._look(source))
                considered = offer.pointer.version
                self._check_new(offer)
                return self._try(self._fetch(offer), test)
            except NotTakenError as error:
                return Outcome(considered, False, error.code, str(error))

    def _begun(self, state: Slots) -> Slots:
        return slots.joined(self._home.settled(self._undo(state)), self._federation)

    def _look(self, source: Source) -> "View":
        """Verify the metadata, keep them, and note what they say of all releases."""
        from fedge.edge.trusted import look_at  # python-tuf: half a second, which only an update needs

        with self._home.disk.scratch() as scratch:
            view = look_at(
                source,
                self._home.trusted(),
                self._root,
                self._now(),
                scratch,
                self._home.keep_trusted,
                promoted_only=self._insist,
            )
        floor = 0 if view.promoted is None else view.promoted.pointer.version
        self._home.change(lambda state: slots.promoted(slots.vouched(state, view.vouchers), floor))
        return view

    def _choose(self, view: "View") -> "Offer":
        """The newest release, or the promoted one where the newest is below it or may not be taken."""
        offers = [offer for offer in (view.latest, view.promoted) if offer is not None]
        if not offers:
            raise NotTakenError("nothing", "there is no release that this device may take")
        return max(offers, key=lambda offer: offer.pointer.version)

    def _check_new(self, offer: "Offer") -> None:
        """Check that the release may be tried, as far as its version says."""
        state, version = self._home.slots(), offer.pointer.version
        target = offer.files.get(offer.pointer.manifest)
        digest = "" if target is None else target.hashes.get("sha256", "")
        if state.current is not None and (version, digest) == (state.current.version, state.current.manifest):
            raise NotTakenError("up_to_date", f"this device runs release {version}, which is the newest")
        slots.check_offer(state, version, digest, again=self._again)

    def _fetch(self, offer: "Offer") -> _Arrived:
        """Fetch a release and check that it is what it says, and of this federation, and has not expired."""
        content = offer.fetch(offer.pointer.manifest, MAX_MANIFEST_BYTES)
        version = offer.pointer.version
        try:
            manifest = parse(content)
        except ReleaseError as error:
            raise NotTakenError("malformed", f"release {version}: {error}") from error
        if (manifest.version, manifest.federation) != (version, self._federation):
            said = f"release {manifest.version} of federation {manifest.federation}"
            raise NotTakenError("malformed", f"what was signed as release {version} is {said}")
        if self._now() >= manifest.expires:
            late = self._now() - manifest.expires
            raise NotTakenError("expired", f"release {version} expired {late} s ago; a newer one is needed")
        return _Arrived(manifest, content, self._model(offer, manifest))

    def _model(self, offer: "Offer", manifest: Manifest) -> bytes:
        """The model: as a delta from one that is here, if that leads to it; else whole."""
        failed: RefusedError | None = None
        for base in self._bases(offer):
            try:
                return self._rebuild(offer, manifest, base)
            except FetchError:
                continue
            except RefusedError as error:
                failed = error
        try:
            model = offer.fetch(offer.pointer.model, MAX_MODEL_BYTES)
            check_model(manifest, model)
        except FetchError as error:
            if failed is None:
                raise
            raise NotTakenError("altered", f"the delta to the release is refused: {failed}") from error
        except NotTakenError:
            raise
        except ReleaseError as error:
            raise NotTakenError("altered", str(error)) from error
        return model

    def _bases(self, offer: "Offer") -> list[int]:
        """Versions that are here and that a delta starts from; the current one first."""
        state = self._home.slots()
        held = [h.version for h in (state.current, state.held(state.spare)) if h is not None]
        return [version for version in held if version in offer.pointer.bases]

    def _rebuild(self, offer: "Offer", manifest: Manifest, base: int) -> bytes:
        from fedge.release import delta

        old = self._home.model(base)
        if old is None:
            raise ReleaseError(f"release {base} is damaged here")
        content = offer.fetch(offer.pointer.delta(base), MAX_MODEL_BYTES)
        model = delta.decode(old, content, manifest.model.size)
        check_model(manifest, model)
        return model

    def _try(self, new: _Arrived, test: GateInputs) -> Outcome:
        """The gate, and what follows from it."""
        version, before = new.manifest.version, self._home.slots()
        try:
            state = self._home.change(lambda s: slots.attempted(s, version))
            decision = judge(new.manifest, new.model, self._current(), test)
            if decision.taken:
                promise = _promise(new.manifest.metric, decision, state, self._home)
                self._home.install(state, new.manifest_bytes, new.model, promise)
        except _NOT_ITS_FAULT as error:
            self._undo = lambda s: slots.undone(s, version, before)
            with contextlib.suppress(SetupError):
                self._home.change(self._undo)
            if isinstance(error, ChangedError):
                raise NotTakenError("changed", str(error)) from error
            raise
        if not decision.taken:
            self._home.change(lambda s: slots.found(s, _finding(version, decision)))
        return Outcome.of(version, decision)

    def _current(self) -> OpenRelease | None:
        """The release in use, if there is one that opens."""
        installed = self._home.current()
        try:
            return None if installed is None else OpenRelease(installed.manifest, Runtime(installed.model))
        except RefusedError:
            return None


def _promise(metric: str, decision: Decision, state: Slots, home: Home) -> Promise:
    """What the release is held to: its own time, and the score of the one that it replaces."""
    score = decision.candidate_score if decision.current_score is None else decision.current_score
    if score is None and state.watch.windows >= home.rules.least_windows:
        score = state.watch.score  # what the current model had on windows that were labelled later
    whole = metric in RANGES and math.isfinite(RANGES[metric][0])
    return Promise(decision.latency_us, score, 1.0 if whole or score is None else abs(score))


def _finding(version: int, decision: Decision) -> Finding:
    """What was measured of a release that is refused, and what it was compared with."""
    value = limit = None
    if decision.code == "worse":
        value, limit = decision.candidate_score, decision.current_score
    elif decision.code == "slow":
        value = decision.latency_us
    elif decision.likeness is not None:
        disagrees = decision.code == "disagrees"
        value = decision.likeness.agreement if disagrees else decision.likeness.drift
    finite = value is None or math.isfinite(value)
    return Finding(version, decision.code, value if finite else None, limit)
