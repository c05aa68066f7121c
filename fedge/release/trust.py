"""Root and targets of a repository of releases: who may sign what, and which release is promoted."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedge.errors import ReleaseError
from fedge.release import _tuf, folder
from fedge.release._tuf import Root, TargetFile, Targets
from fedge.release.pointer import (
    MAX_ROOT_BYTES,
    MAX_TARGETS_BYTES,
    METADATA,
    PROMOTED,
    Pointer,
    folder_name,
    parse_pointer,
)

_LIMITS = {"root": MAX_ROOT_BYTES, "targets": MAX_TARGETS_BYTES}
_NAME = re.compile(r"([1-9]\d{0,17})\.(root|targets)\.json")


@dataclass(frozen=True, eq=False)
class Trust:
    """The newest root and targets of a repository, verified.

    Attributes:
        root: says whose the keys are.
        targets: says which release is promoted, and whose the key of the rounds is.
        targets_bytes: the file that ``targets`` was read from.
    """

    root: Root
    targets: Targets
    targets_bytes: bytes

    @property
    def promoted(self) -> Pointer | None:
        """The promoted release."""
        return pointer_in(self.targets, PROMOTED)


def trust_of(metadata: Mapping[str, bytes]) -> Trust:
    """The newest root and targets among ``metadata`` (name -> content).

    Raises:
        ReleaseError: there is no first root or no targets, a root does not follow the one before, or one of
            the files is damaged.
        SignatureError: one is not signed by who is trusted: for a root, the root before and itself.
    """
    root: Root | None = None
    for number in _numbers(metadata, "root"):
        name = f"{number}.root.json"
        found = _tuf.parse(Root, metadata[name], name)
        for delegator in (root or found.signed, found.signed):
            _tuf.verify(delegator, "root", found, name)
        if found.signed.version != number or number != (root.version if root else 0) + 1:
            raise ReleaseError(f"{name} is not the root that follows the one before")
        root = found.signed
    numbers = _numbers(metadata, "targets")
    if root is None or not numbers:
        raise ReleaseError("there is no repository of releases here: it needs 1.root.json and 1.targets.json")
    name = f"{numbers[-1]}.targets.json"
    targets = _tuf.parse(Targets, metadata[name], name)
    _tuf.verify(root, "targets", targets, name)
    if targets.signed.version != numbers[-1]:
        raise ReleaseError(f"{name} says that it is version {targets.signed.version}")
    return Trust(root, targets.signed, metadata[name])


def read_trust(place: Path) -> Trust:
    """The newest root and targets of the repository at ``place``.

    Raises:
        ReleaseError: see :func:`trust_of`; or a file is above its limit.
        SignatureError: see :func:`trust_of`.
        SetupError: a file cannot be read.
    """
    return trust_of(_read(place))


def install(place: Path, metadata: Mapping[str, bytes]) -> Trust:
    """Put root and targets into a repository; gives the newest. Those that are there must be the same.

    Raises:
        ReleaseError: a name is none of root or targets, or is there with another content: that of another
            federation. Or see :func:`trust_of`.
        SignatureError: see :func:`trust_of`.
        SetupError: they cannot be written.
    """
    for name in metadata:
        if not _NAME.fullmatch(name):
            raise ReleaseError(f"{name!r:.40} is no name of a root or of targets")
    with folder.locked(place):
        known = _read(place)
        for name in sorted(known.keys() & metadata.keys()):
            if known[name] != metadata[name]:
                raise ReleaseError(f"{place} is the repository of another federation: {name} differs")
        trust = trust_of({**known, **metadata})
        for role in _LIMITS:
            for number in _numbers(metadata, role):
                name = f"{number}.{role}.json"
                folder.put(place / METADATA / name, metadata[name])
        return trust


def targets_for(pointer: Pointer, files: Mapping[str, bytes], name: str) -> dict[str, TargetFile]:
    """What a role signs for the one release that it points at.

    Args:
        pointer: the release.
        files: those of the release (name -> content).
        name: of the pointer: ``latest.json`` or ``promoted.json``.
    """
    first = TargetFile.from_data(name, pointer.to_bytes())
    first.unrecognized_fields["custom"] = pointer.to_dict()
    paths = {f"{folder_name(pointer.version)}/{file}": content for file, content in files.items()}
    return {name: first, **{path: TargetFile.from_data(path, paths[path]) for path in sorted(paths)}}


def pointer_in(targets: Targets, name: str) -> Pointer | None:
    """What the target ``name`` points at; None where there is none.

    Raises:
        PayloadError: it is malformed.
    """
    target = targets.targets.get(name)
    return None if target is None else parse_pointer(target.custom)


def _read(place: Path) -> dict[str, bytes]:
    names = [f"{number}.{role}.json" for role in _LIMITS for number in folder.numbers(place, role)]
    return {name: folder.read(place / METADATA / name, _LIMITS[name.split(".")[1]]) for name in names}


def _numbers(metadata: Mapping[str, bytes], role: str) -> list[int]:
    matches = (_NAME.fullmatch(name) for name in metadata)
    return sorted(int(match[1]) for match in matches if match and match[2] == role)
