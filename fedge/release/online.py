"""What the online keys sign: what is signed now, whether it must be signed again, and signing it.

Every signing gives rounds, snapshot and timestamp the same new number, above all that lie on the disk. So a
lost ``timestamp.json`` costs nothing: devices see no version go back.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from fedge.release import _tuf, folder
from fedge.release._tuf import MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from fedge.release.keys import OnlineKeys
from fedge.release.pointer import (
    LATEST,
    MAX_SNAPSHOT_BYTES,
    MAX_TARGETS_BYTES,
    MAX_TIMESTAMP_BYTES,
    METADATA,
    PROMOTED,
    ROUNDS,
    TIMESTAMP,
    Pointer,
    parse_pointer,
)
from fedge.release.trust import Trust, pointer_in, read_trust
from fedge.signing import SigningKey


@dataclass(frozen=True, eq=False)
class State:
    """What is signed now; None where there is nothing yet, or the key has been replaced since.

    Attributes:
        trust: root and targets.
        timestamp: what ``timestamp.json`` says.
        snapshot: the newest on the disk; the timestamp need not name it, if a publisher was killed.
        rounds: the newest on the disk; the snapshot need not name it either.
    """

    trust: Trust
    timestamp: Timestamp | None
    snapshot: Snapshot | None
    rounds: Targets | None

    @property
    def latest(self) -> Pointer | None:
        """The newest release."""
        return None if self.rounds is None else pointer_in(self.rounds, LATEST)

    @property
    def targets(self) -> Mapping[str, TargetFile]:
        """The files that the rounds' role signs."""
        return {} if self.rounds is None else self.rounds.targets


def read_state(place: Path, keys: OnlineKeys) -> State:
    """What is signed in the repository at ``place``, verified.

    Raises:
        ReleaseError: it was never started, or a file is malformed or too long.
        SignatureError: a file is not signed by who is trusted.
        SetupError: ``keys`` are not those that are trusted, or a file cannot be read.
    """
    trust = read_trust(place)
    root, targets = trust.root, trust.targets
    for delegator, role in ((root, "snapshot"), (root, "timestamp"), (targets, ROUNDS)):
        _tuf.check_trusted(delegator, role, getattr(keys, role))
    snapshot, rounds = (_newest_path(place, role) for role in ("snapshot", ROUNDS))
    return State(
        trust,
        _signed_by(Timestamp, place / METADATA / TIMESTAMP, MAX_TIMESTAMP_BYTES, root, keys.timestamp),
        _signed_by(Snapshot, snapshot, MAX_SNAPSHOT_BYTES, root, keys.snapshot),
        _signed_by(Targets, rounds, MAX_TARGETS_BYTES, targets, keys.rounds),
    )


def is_due(state: State, now: float, days: float) -> bool:
    """Whether there is something to sign: half of a life is over, or not all that is there is signed."""
    timestamp, snapshot, rounds = state.timestamp, state.snapshot, state.rounds
    if timestamp is None or snapshot is None or rounds is None:
        return True
    half: datetime = _tuf.expiry(now, days / 2)
    named = {name: file.version for name, file in snapshot.meta.items()}
    wanted = {"targets.json": state.trust.targets.version, f"{ROUNDS}.json": rounds.version}
    whole = timestamp.snapshot_meta.version == snapshot.version and named == wanted
    return not whole or min(timestamp.expires, snapshot.expires, rounds.expires) <= half


def sign(
    place: Path, keys: OnlineKeys, trust: Trust, targets: Mapping[str, TargetFile], now: float, days: float
) -> None:
    """Sign ``targets`` as what comes out of the rounds; the lock is held. The timestamp comes last.

    Raises:
        OSError: a file cannot be written; what was signed before still counts.
    """
    number = 1 + max(
        [0, _timestamp_version(place), *folder.numbers(place, "snapshot"), *folder.numbers(place, ROUNDS)]
    )
    expires = _tuf.expiry(now, days)
    rounds = _tuf.sign(Targets(number, None, expires, dict(targets)), keys.rounds)
    meta = {
        "targets.json": MetaFile.from_data(trust.targets.version, trust.targets_bytes, ["sha256"]),
        f"{ROUNDS}.json": MetaFile.from_data(number, rounds, ["sha256"]),
    }
    snapshot = _tuf.sign(Snapshot(number, None, expires, meta), keys.snapshot)
    named = MetaFile.from_data(number, snapshot, ["sha256"])
    timestamp = _tuf.sign(Timestamp(number, None, expires, named), keys.timestamp)
    folder.put(place / METADATA / f"{number}.{ROUNDS}.json", rounds)
    folder.put(place / METADATA / f"{number}.snapshot.json", snapshot)
    folder.replace(place / METADATA / TIMESTAMP, timestamp)
    show_pointers(place, trust, targets)


def show_pointers(place: Path, trust: Trust, targets: Mapping[str, TargetFile]) -> None:
    """Write ``latest.json`` and ``promoted.json`` where they are not as they were signed; the lock is held.

    Raises:
        OSError: one cannot be written.
    """
    for name, listed in ((LATEST, targets), (PROMOTED, trust.targets.targets)):
        if name in listed:
            folder.copy(place / name, parse_pointer(listed[name].custom).to_bytes())


def _signed_by(
    kind: type[_tuf.Kind], path: Path, limit: int, delegator: Root | Targets, key: SigningKey
) -> _tuf.Kind | None:
    """What ``path`` says, verified; None if it is not there, or carries no signature of ``key``."""
    if not path.exists():
        return None
    metadata = _tuf.parse(kind, folder.read(path, limit), str(path))
    if _tuf.public_key(key).keyid not in metadata.signatures:
        return None
    _tuf.verify(delegator, path.name.split(".")[-2], metadata, str(path))
    return metadata.signed


def _newest_path(place: Path, role: str) -> Path:
    return place / METADATA / f"{max(folder.numbers(place, role), default=0)}.{role}.json"


def _timestamp_version(place: Path) -> int:
    """Of the timestamp that is there, whoever signed it; 0 where there is none."""
    path = place / METADATA / TIMESTAMP
    if not path.exists():
        return 0
    return _tuf.parse(Timestamp, folder.read(path, MAX_TIMESTAMP_BYTES), str(path)).signed.version
