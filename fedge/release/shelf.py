"""Packages for devices, from a repository of releases that lies in a folder. Nothing is signed here."""

from dataclasses import dataclass, field
from pathlib import Path

from fedge.release import folder
from fedge.release.chain import Chain, read_chain
from fedge.release.manifest import MAX_MANIFEST_BYTES, MAX_MODEL_BYTES
from fedge.release.package import make_package
from fedge.release.pointer import METADATA, TIMESTAMP, Pointer


@dataclass(frozen=True, eq=False)
class Shelf:
    """A repository to take from. Each call reads what it needs anew.

    Attributes:
        folder: the repository itself, such as ``DIR/releases``.
    """

    folder: Path
    _packages: dict[tuple[bytes, Pointer | None, int | None], bytes] = field(default_factory=dict, repr=False)

    def package(self, held: int | None, *, promoted: bool = False) -> bytes:
        """Everything that a device needs for its next step, as one byte string for ``parse_package``.

        Args:
            held: the version it has, if any; it must give that one's manifest to ``parse_package``.
            promoted: whether it takes promoted releases only.

        Raises:
            ReleaseError: there is no repository, it was never started, or is damaged.
            SetupError: it cannot be read.
        """
        chain = read_chain(self.folder)
        pointer = chain.promoted if promoted else chain.newest
        if pointer is None or (held is not None and held >= pointer.version):
            return self._packed(chain, None, None)
        return self._packed(chain, pointer, held if held in folder.versions(self.folder) else None)

    def _packed(self, chain: Chain, pointer: Pointer | None, held: int | None) -> bytes:
        """The package; those of the present state are kept, for many devices hold the same."""
        timestamp = chain.files[f"{METADATA}/{TIMESTAMP}"]
        if (known := self._packages.get((timestamp, pointer, held))) is not None:
            return known
        files, manifest = dict(chain.files), None
        if pointer is not None:
            wanted = self._wanted(pointer, held)
            files[pointer.manifest] = folder.read(self.folder / pointer.manifest, MAX_MANIFEST_BYTES)
            files[wanted] = folder.read(self.folder / wanted, MAX_MODEL_BYTES)
        if held is not None:
            manifest = folder.read(self.folder / Pointer(held).manifest, MAX_MANIFEST_BYTES)
        for old in [key for key in list(self._packages) if key[0] != timestamp]:
            self._packages.pop(old, None)
        made = self._packages[timestamp, pointer, held] = make_package(files, manifest)
        return made

    def _wanted(self, pointer: Pointer, held: int | None) -> str:
        """The delta from what is held, if there is one here (a mirror has not all of them), or the model."""
        if held in pointer.bases and (self.folder / pointer.delta(held)).is_file():
            return pointer.delta(held)
        return pointer.model
