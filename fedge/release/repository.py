"""The repository of releases as the server writes it: a folder that any web server or USB stick can carry.

TUF (theupdateframework.io, specification 1.0) through python-tuf. Every signed file but ``timestamp.json`` is
written once, so replacing that one file is what makes a new state count: whenever a publisher is killed, a
device finds the old state or the new one. ``fedge.release.pointer`` says what lies where.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fedge.errors import ReleaseError
from fedge.release import delta, folder
from fedge.release._tuf import TargetFile
from fedge.release.card import card
from fedge.release.keys import OnlineKeys
from fedge.release.manifest import MAX_MANIFEST_BYTES, MAX_MODEL_BYTES, Manifest, check_model, parse
from fedge.release.online import State, is_due, read_state, show_pointers, sign
from fedge.release.pointer import (
    CARD,
    LATEST,
    MANIFEST,
    MODEL,
    Pointer,
    delta_name,
    folder_name,
)
from fedge.release.shelf import Shelf
from fedge.release.trust import Trust, install, targets_for

ONLINE_DAYS = 7.0
DELTAS = 3
"""From how many earlier releases a delta leads to a new one."""


@dataclass(frozen=True)
class Published:
    """A release that devices can have.

    Attributes:
        version: its number.
        path: its folder.
        sha256: of the model.
        model_bytes: size of the model.
    """

    version: int
    path: Path
    sha256: str
    model_bytes: int


@dataclass(frozen=True, eq=False)
class Repository:
    """One repository, to publish into. Each call takes a lock on the folder, and reads what it needs anew.

    Attributes:
        folder: the repository itself, such as ``DIR/releases``.
        online: the server's keys.
        clock: Unix time in seconds.
        days: how long what the online keys sign is valid; it is signed again after half of that.
    """

    folder: Path
    online: OnlineKeys
    clock: Callable[[], float] = time.time
    days: float = ONLINE_DAYS

    @cached_property
    def _shelf(self) -> Shelf:
        return Shelf(self.folder)

    def start(self, metadata: Mapping[str, bytes]) -> None:
        """Put root and targets in place, and sign what is missing; the same again changes nothing.

        Args:
            metadata: ``1.root.json`` and ``1.targets.json``, and any later ones (name -> content).

        Raises:
            ReleaseError: the folder holds the repository of another federation, or is damaged.
            SignatureError: a file is not signed by who is trusted.
            SetupError: the online keys are not those that are trusted, or the folder cannot be written.
        """
        install(self.folder, metadata)
        self.refresh()

    def publish(self, manifest: bytes, model: bytes) -> Published:
        """Publish a release; the very same again changes nothing.

        Raises:
            ReleaseError: the manifest is malformed, the model is not the one it names, another release of
                this version is there, or a later one; or the repository was never started, or is damaged.
            SetupError: the folder cannot be written.
        """
        release = parse(manifest)
        check_model(release, model)
        files = {MANIFEST: manifest, MODEL: model}
        with folder.locked(self.folder):
            state = read_state(self.folder, self.online)
            if state.latest is None or release.version > state.latest.version:
                self._add(state.trust, release, files)
            elif self.stored(release.version) != (manifest, model):
                newest = state.latest.version
                raise ReleaseError(
                    f"release {newest} is there; release {release.version} is another, or too late"
                )
            else:
                self._sign_if_due(state)
        place = self.folder / folder_name(release.version)
        return Published(release.version, place, release.model.sha256, len(model))

    def refresh(self) -> None:
        """Sign again what has lived half of its life, and take up what was promoted or renewed meanwhile.

        Raises:
            ReleaseError: the repository was never started, or is damaged.
            SignatureError: a file in it is not signed by who is trusted.
            SetupError: the online keys are not those that are trusted, or the folder cannot be written.
        """
        with folder.locked(self.folder):
            self._sign_if_due(read_state(self.folder, self.online))

    def package(self, held: int | None, *, promoted: bool = False) -> bytes:
        """Everything that a device needs for its next step, as one byte string for ``parse_package``.

        Args:
            held: the version it has, if any; it must give that one's manifest to ``parse_package``.
            promoted: whether it takes promoted releases only.

        Raises:
            ReleaseError: the repository was never started, or is damaged.
            SetupError: it cannot be read.
        """
        return self._shelf.package(held, promoted=promoted)

    def stored(self, version: int) -> tuple[bytes, bytes] | None:
        """Manifest and model of a release that lies here, signed or not yet; None where there is none.

        Raises:
            ReleaseError: a file of it is missing or above its limit.
            SetupError: it cannot be read.
        """
        place = self.folder / folder_name(version)
        if not place.is_dir():
            return None
        return folder.read(place / MANIFEST, MAX_MANIFEST_BYTES), folder.read(place / MODEL, MAX_MODEL_BYTES)

    def _add(self, trust: Trust, release: Manifest, files: Mapping[str, bytes]) -> None:
        """Write a new release, and sign it."""
        deltas = self._deltas(release.version, files[MODEL])
        derived = {CARD: card(release).encode()} | {delta_name(b): deltas[b] for b in deltas}
        folder.add_release(self.folder, release.version, files, derived)
        pointer = Pointer(release.version, tuple(sorted(deltas)))
        self._sign(trust, targets_for(pointer, {**files, **derived}, LATEST))

    def _deltas(self, version: int, model: bytes) -> dict[int, bytes]:
        """Deltas to ``model`` from the last few releases before it, where they are smaller than it is."""
        found = {}
        for base in [v for v in folder.versions(self.folder) if v < version][-DELTAS:]:
            change = delta.encode(folder.read(self.folder / Pointer(base).model, MAX_MODEL_BYTES), model)
            if change is not None:
                found[base] = change
        return found

    def _sign_if_due(self, state: State) -> None:
        if is_due(state, self.clock(), self.days):
            self._sign(state.trust, state.targets)
        else:
            show_pointers(self.folder, state.trust, state.targets)

    def _sign(self, trust: Trust, targets: Mapping[str, TargetFile]) -> None:
        sign(self.folder, self.online, trust, targets, self.clock(), self.days)
