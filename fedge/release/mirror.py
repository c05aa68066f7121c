"""A repository of releases as an edge server keeps it: filled from packages, for its devices to take from.

Nothing of it is signed or trusted here: a device verifies what it takes against the root that it was enrolled
with, wherever it comes from. So a mirror that was fed rubbish can withhold releases, and never forge one; it
is then emptied and filled anew.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from fedge.errors import PayloadError, ReleaseError
from fedge.release import delta, folder
from fedge.release.chain import Chain, read_chain
from fedge.release.manifest import MAX_MANIFEST_BYTES, MAX_MODEL_BYTES, Manifest, check_model, parse
from fedge.release.package import parse_package
from fedge.release.pointer import MANIFEST, METADATA, MODEL, TIMESTAMP, Pointer, folder_name, version_of
from fedge.release.shelf import Shelf

KEPT = 16
"""Releases, and versions of each role's metadata, that a mirror keeps; and the promoted release."""

_NAME = re.compile(r"([1-9]\d{0,17}\.(root|targets|rounds|snapshot)|timestamp)\.json")
_FIRST_ROOT = "1.root.json"


class Mirror:
    """One mirror. ``take`` is for one process at a time."""

    def __init__(self, place: Path, root: bytes) -> None:
        """Nothing is written yet.

        Args:
            place: its folder.
            root: the first root of trust (``1.root.json``).
        """
        self._place, self._root = place, root
        self.package = Shelf(place).package

    def take(self, package: bytes) -> Manifest | None:
        """Keep what is in ``package``; the release that it brings, if it brings one.

        Where it does not fit what is here, what is here is thrown away, and the package has to do by itself.

        Raises:
            PayloadError: it is no package, or made for who holds a release that is not here. After the latter
                the mirror can only be helped by a package for who holds none.
            ReleaseError: it contradicts itself; the mirror is empty now.
            SetupError: the folder cannot be written.
        """
        try:
            return self._keep(self._opened(package))
        except ReleaseError:
            self._empty()
        files = parse_package(package)
        try:
            return self._keep(files)
        except ReleaseError:
            self._empty()
            raise

    def _opened(self, package: bytes) -> Mapping[str, bytes]:
        for version in reversed(folder.versions(self._place)):
            manifest = folder.read(self._place / Pointer(version).manifest, MAX_MANIFEST_BYTES)
            try:
                return parse_package(package, manifest)
            except PayloadError:
                continue
        return parse_package(package)

    def _keep(self, files: Mapping[str, bytes]) -> Manifest | None:
        metadata = {name: c for path, c in files.items() if (name := _metadata_name(path)) is not None}
        timestamp = metadata.pop(TIMESTAMP, None)
        if timestamp is None:
            raise ReleaseError(f"the package has no {TIMESTAMP}")
        brought = [p for p in files if p.endswith(f"/{MANIFEST}")]
        versions = [v for p in brought if (v := version_of(p.removesuffix(f"/{MANIFEST}")))]
        with folder.locked(self._place):
            folder.put(self._place / METADATA / _FIRST_ROOT, self._root)
            made = [self._add(version, files) for version in sorted(versions)]
            for name, content in metadata.items():
                folder.put(self._place / METADATA / name, content)
            folder.copy(self._place / METADATA / TIMESTAMP, timestamp)
            self._forget_old(self._chain())
        return made[-1] if made else None

    def _chain(self) -> Chain:
        """What is on offer now; it is whole."""
        try:
            chain = read_chain(self._place)
        except PayloadError as error:
            raise ReleaseError(str(error)) from None
        if chain.newest is not None and chain.newest.version not in folder.versions(self._place):
            raise ReleaseError(f"release {chain.newest.version} is on offer, and it is not here")
        return chain

    def _add(self, version: int, files: Mapping[str, bytes]) -> Manifest:
        """A release, rebuilt from its delta where that is what came."""
        inside = f"{folder_name(version)}/"
        own = {p.removeprefix(inside): c for p, c in files.items() if p.startswith(inside)}
        manifest, model = own.pop(MANIFEST), own.pop(MODEL, None)
        try:
            release = parse(manifest)
            if model is None:
                model = self._rebuilt(version, own)
            check_model(release, model)
        except PayloadError as error:
            raise ReleaseError(f"release {version}: {error}") from None
        if release.version != version:
            raise ReleaseError(f"release {release.version} lies in the folder of release {version}")
        folder.add_release(
            self._place, version, {MANIFEST: manifest, MODEL: model}, self._deltas(version, own)
        )
        return release

    def _deltas(self, version: int, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """Those of the deltas to a release that lead from another one here."""
        names = {Pointer(version).delta(base).rpartition("/")[2] for base in folder.versions(self._place)}
        return {name: content for name, content in files.items() if name in names}

    def _rebuilt(self, version: int, deltas: Mapping[str, bytes]) -> bytes:
        for base in folder.versions(self._place):
            change = deltas.get(Pointer(version).delta(base).rpartition("/")[2])
            if change is not None:
                held = folder.read(self._place / Pointer(base).model, MAX_MODEL_BYTES)
                return delta.decode(held, change, MAX_MODEL_BYTES)
        raise ReleaseError(f"the package has no model of release {version}, nor what leads to it from here")

    def _forget_old(self, chain: Chain) -> None:
        """What nobody asks for any more. The lock is held."""
        promoted = {chain.promoted.version} if chain.promoted is not None else set()
        for version in set(folder.versions(self._place)[:-KEPT]) - promoted:
            folder.remove(self._place / folder_name(version))
        for role in ("targets", "rounds", "snapshot"):
            old = {
                self._place / METADATA / f"{n}.{role}.json" for n in folder.numbers(self._place, role)[:-KEPT]
            }
            for path in old - {self._place / path for path in chain.files}:
                path.unlink()

    def _empty(self) -> None:
        """Begin anew: the timestamp goes first, so that no half of it is taken for the whole."""
        with folder.locked(self._place):
            (self._place / METADATA / TIMESTAMP).unlink(missing_ok=True)
            for version in folder.versions(self._place):
                folder.remove(self._place / folder_name(version))
            folder.remove(self._place / METADATA)


def _metadata_name(path: str) -> str | None:
    """The file's name, where ``path`` is one of a repository's metadata, but for the first root."""
    name = path.removeprefix(f"{METADATA}/")
    return name if name != path and name != _FIRST_ROOT and _NAME.fullmatch(name) else None
