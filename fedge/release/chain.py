"""What a repository offers now, as a device would find it: the signed chain from the timestamp on.

Nothing is verified here: whoever takes something from it verifies it (``fedge.release.verify``, and the
device's updater).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fedge.errors import ReleaseError
from fedge.release import _tuf, folder
from fedge.release._tuf import Metadata, Root, Snapshot, Targets, Timestamp
from fedge.release.pointer import (
    LATEST,
    MAX_ROOT_BYTES,
    MAX_SNAPSHOT_BYTES,
    MAX_TARGETS_BYTES,
    MAX_TIMESTAMP_BYTES,
    METADATA,
    PROMOTED,
    ROUNDS,
    TIMESTAMP,
    Pointer,
)
from fedge.release.trust import pointer_in


@dataclass(frozen=True, eq=False)
class Chain:
    """The metadata that belong together at one moment.

    Attributes:
        files: path within the repository -> content; of the roots all but the first, which a device has.
        latest: the newest release.
        promoted: the promoted release.
        expires: when each role's metadata expire, in UTC.
    """

    files: Mapping[str, bytes]
    latest: Pointer | None
    promoted: Pointer | None
    expires: Mapping[str, datetime]

    @property
    def newest(self) -> Pointer | None:
        """What a device takes that takes any: the newest, or the promoted one where that is above it."""
        offers = [pointer for pointer in (self.latest, self.promoted) if pointer is not None]
        return max(offers, key=lambda pointer: pointer.version, default=None)


def read_chain(place: Path) -> Chain:
    """Read what the repository at ``place`` offers; no lock is needed, for only one file is ever replaced.

    Raises:
        ReleaseError: it is no repository, was never started, or a file is missing, malformed or too long.
        SetupError: a file cannot be read.
    """
    files: dict[str, bytes] = {}

    def take(name: str, limit: int) -> bytes:
        content = files[f"{METADATA}/{name}"] = folder.read(place / METADATA / name, limit)
        return content

    timestamp = _tuf.parse(Timestamp, take(TIMESTAMP, MAX_TIMESTAMP_BYTES), TIMESTAMP)
    name = f"{timestamp.signed.snapshot_meta.version}.snapshot.json"
    snapshot = _tuf.parse(Snapshot, take(name, MAX_SNAPSHOT_BYTES), name)
    named: dict[str, Metadata[Any]] = {"timestamp": timestamp, "snapshot": snapshot}
    for role in ("targets", ROUNDS):
        name = f"{_version(snapshot.signed, role)}.{role}.json"
        named[role] = _tuf.parse(Targets, take(name, MAX_TARGETS_BYTES), name)
    roots = folder.numbers(place, "root")
    for number in roots[1:]:
        take(f"{number}.root.json", MAX_ROOT_BYTES)
    name = f"{roots[-1] if roots else 1}.root.json"
    named["root"] = _tuf.parse(Root, folder.read(place / METADATA / name, MAX_ROOT_BYTES), name)
    return Chain(
        files,
        pointer_in(named[ROUNDS].signed, LATEST),
        pointer_in(named["targets"].signed, PROMOTED),
        {role: metadata.signed.expires for role, metadata in named.items()},
    )


def _version(snapshot: Snapshot, role: str) -> int:
    try:
        return int(snapshot.meta[f"{role}.json"].version)
    except KeyError as error:
        raise ReleaseError(f"the snapshot names no {role}.json") from error
