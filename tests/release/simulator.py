"""A repository of releases with a clock that can be moved, a stock TUF client, and the attacks on them.

An attack changes a folder that a device is then pointed at: a copy of the repository (``Simulator.copy``), as
it would lie on a mirror, a USB stick, or behind whoever sits on the wire. Attacks that need stolen keys are
given them by name.
"""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import Metadata, MetaFile, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from fedge.release import _tuf
from fedge.release.keys import Keys, OnlineKeys
from fedge.release.manifest import Manifest, ModelFile
from fedge.release.offline import create, promote, renew
from fedge.release.pointer import (
    LATEST,
    MAX_ROOT_BYTES,
    MAX_SNAPSHOT_BYTES,
    MAX_TARGETS_BYTES,
    MAX_TIMESTAMP_BYTES,
    PROMOTED,
    Pointer,
    parse_pointer,
)
from fedge.release.repository import Published, Repository
from fedge.release.trust import install, targets_for
from fedge.signing import SigningKey

from .build import manifest

DAY = 86_400.0
MANY_DAYS = 365.0
CONFIG = UpdaterConfig(
    max_delegations=2,
    root_max_length=MAX_ROOT_BYTES,
    timestamp_max_length=MAX_TIMESTAMP_BYTES,
    snapshot_max_length=MAX_SNAPSHOT_BYTES,
    targets_max_length=MAX_TARGETS_BYTES,
    prefix_targets_with_hash=False,
)
"""How a device reads a repository."""
FAR = 2**53
"""A version from which a device would never come back."""


def seeded_keys(first: int = 0) -> Keys:
    """Keys that are the same in every run."""
    root, targets, *online = (SigningKey.from_seed(bytes([first + i]) * 32) for i in range(5))
    return Keys(root, targets, OnlineKeys(*online))


def model_of(version: int, size: int = 2000) -> bytes:
    """Bytes that stand for a model; those of neighbouring versions are alike."""
    return bytes((i * 7 + (version if i % 5 == 0 else 0)) % 251 for i in range(size))


class Simulator:
    """A federation's repository in ``folder``, published into by an honest server."""

    def __init__(self, folder: Path, *, root_days: float = 1000.0, targets_days: float = MANY_DAYS) -> None:
        self.folder = folder
        self.now = datetime.now(UTC).timestamp()
        self.keys = seeded_keys()
        self.first = create(self.now, root_days, targets_days, self.keys)
        self.root = self.first["1.root.json"]
        self.repository = Repository(folder, self.keys.online, clock=lambda: self.now)
        self.repository.start(self.first)

    def wait(self, days: float) -> None:
        """Let time pass; nothing is signed again."""
        self.now += days * DAY

    def release(self, version: int, model: bytes | None = None, **changes: Any) -> tuple[bytes, bytes]:
        """Manifest and model of a release; ``changes`` are fields of the manifest."""
        content = model_of(version) if model is None else model
        facts = {
            "created": int(self.now),
            "expires": int(self.now + MANY_DAYS * DAY),
            "parent": version - 1 or None,
        }
        whole: Manifest = manifest(**{"version": version, "model": ModelFile.of(content), **facts, **changes})
        return whole.to_bytes(), content

    def publish(self, version: int, model: bytes | None = None, **changes: Any) -> Published:
        """Publish a release that the server made."""
        return self.repository.publish(*self.release(version, model, **changes))

    def promote(self, version: int) -> None:
        """Promote a release, and let the server take it up."""
        promote(self.folder, self.keys.targets, version, self.now)
        self.repository.refresh()

    def replace_online_keys(self, first: int) -> None:
        """What an operator does once the server's keys are stolen; a new ``Repository`` signs from now on."""
        new = Keys(self.keys.root, self.keys.targets, seeded_keys(first).online)
        metadata = renew(self.folder, self.now, self.keys.root, self.keys.targets, online=new.online)
        install(self.folder, metadata)
        self.keys = new
        self.repository = Repository(self.folder, new.online, clock=lambda: self.now)
        self.repository.refresh()

    def copy(self, name: str) -> Path:
        """The repository as it is now, in a folder of its own beside it."""
        place = self.folder.parent / name
        shutil.copytree(self.folder, place)
        return place


class StockClient:
    """python-tuf's client as it is, over a folder, with a clock that can be moved.

    Attributes:
        held: what it was last pointed at.
        model: the model that belongs to it, verified.
    """

    def __init__(self, home: Path, root: bytes) -> None:
        self._home = home
        self._root = root
        self.held: Pointer | None = None
        self.model: bytes | None = None
        for name in ("metadata", "targets"):
            (home / name).mkdir(parents=True, exist_ok=True)

    def copy(self, home: Path) -> "StockClient":
        """Another device in the same state."""
        shutil.copytree(self._home, home, symlinks=True)
        other = StockClient(home, self._root)
        other.held, other.model = self.held, self.model
        return other

    def update(self, place: Path, now: float, name: str = LATEST) -> Pointer | None:
        """Take what the repository at ``place`` points at; None if that is nothing.

        Raises:
            RepositoryError: something is not as it must be; what is held stays.
            DownloadError: something is missing or too long; what is held stays.
        """
        updater = Updater(
            str(self._home / "metadata"),
            "here:/metadata/",
            str(self._home / "targets"),
            "here:/",
            _Files(place),
            CONFIG,
            bootstrap=self._root,
        )
        updater._trusted_set.reference_time = datetime.fromtimestamp(now, UTC)
        updater.refresh()
        target = updater.get_targetinfo(name)
        if target is None:
            return None
        pointer = parse_pointer(target.custom)
        model = b""
        for path in (pointer.manifest, pointer.model):
            info = updater.get_targetinfo(path)
            assert info is not None
            model = Path(updater.download_target(info)).read_bytes()
        self.held, self.model = pointer, model
        return pointer


class _Files(FetcherInterface):
    def __init__(self, place: Path) -> None:
        self._place = place

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = self._place / url.removeprefix("here:/")
        if not path.is_file():
            raise DownloadHTTPError(f"{path} is missing", 404)
        with path.open("rb") as file:
            while chunk := file.read(1 << 16):
                yield chunk


@dataclass(frozen=True)
class Chain:
    """The names of the metadata files that a repository's timestamp leads to."""

    timestamp: str
    snapshot: str
    rounds: str
    targets: str


def chain_of(place: Path) -> Chain:
    """Where the timestamp of the repository at ``place`` leads."""
    timestamp = _read(place, "timestamp.json", Timestamp)
    snapshot = f"{timestamp.snapshot_meta.version}.snapshot.json"
    meta = _read(place, snapshot, Snapshot).meta
    rounds, targets = (f"{meta[f'{role}.json'].version}.{role}.json" for role in ("rounds", "targets"))
    return Chain("timestamp.json", snapshot, rounds, targets)


def replay(place: Path, older: Path) -> None:
    """Rollback or freeze: serve an older state of the whole repository."""
    shutil.rmtree(place)
    shutil.copytree(older, place)


def mix_in(place: Path, older: Path, role: str) -> None:
    """Mix and match: the newest metadata, but for one role that of an older state under the newest name."""
    new, old = (getattr(chain_of(where), role) for where in (place, older))
    shutil.copy(older / "metadata" / old, place / "metadata" / new)


def stretch(path: Path, by: int = 1) -> None:
    """Wrong length: ``by`` bytes more, or fewer."""
    content = path.read_bytes()
    path.write_bytes(content + b" " * by if by > 0 else content[:by])


def make_endless(path: Path) -> None:
    """Endless data: a terabyte of zeros follows. The file has holes, so it takes no disk."""
    with path.open("r+b") as file:
        file.truncate(1 << 40)


def flip(path: Path) -> None:
    """Change one byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


THIEF = SigningKey.from_seed(b"t" * 32)
"""Signs for whoever's key is not stolen; nobody trusts it."""


def forge(
    place: Path,
    stolen: Mapping[str, SigningKey],
    now: float,
    release: tuple[int, bytes, bytes] | None = None,
    *,
    number: int | None = None,
    files: Mapping[str, bytes] | None = None,
    name: str = LATEST,
) -> None:
    """Key compromise: sign a new state with the ``stolen`` keys (by role), and with ``THIEF`` for the others.

    Args:
        place: the repository that is changed.
        stolen: keys of snapshot, timestamp, rounds or targets.
        now: it expires long after that.
        release: version, manifest and model that it points at; None for those that it points at already.
        number: of the new metadata; the next one by default. A huge one is a fast-forward attack.
        files: deltas of the release (name -> content).
        name: of the pointer. ``promoted.json`` goes into the list of promoted releases.
    """
    chain = chain_of(place)
    number = number or _read(place, chain.timestamp, Timestamp).version + 1
    expires = _tuf.expiry(now, MANY_DAYS)
    changed = {"rounds": chain.rounds, "targets": chain.targets}
    if release is not None:
        role = "targets" if name == PROMOTED else "rounds"
        lists = _read(place, changed[role], Targets)
        lists.targets, lists.version, lists.expires = (
            _listed(place, release, files or {}, name),
            number,
            expires,
        )
        changed[role] = f"{number}.{role}.json"
        _write(place, changed[role], _tuf.sign(lists, stolen.get(role, THIEF)))
    meta = {f"{role}.json": _meta(place, changed[role]) for role in changed}
    _write(place, f"{number}.snapshot.json", _sign(Snapshot(number, None, expires, meta), "snapshot", stolen))
    named = _meta(place, f"{number}.snapshot.json")
    _write(place, "timestamp.json", _sign(Timestamp(number, None, expires, named), "timestamp", stolen))


def online(keys: Keys, *roles: str) -> dict[str, SigningKey]:
    """The keys of some online roles, to steal."""
    return {role: getattr(keys.online, role) for role in roles}


def _listed(
    place: Path, release: tuple[int, bytes, bytes], files: Mapping[str, bytes], name: str
) -> dict[str, TargetFile]:
    version, content, model = release
    bases = tuple(sorted(int(delta.removeprefix("from-").removesuffix(".delta")) for delta in files))
    pointer = Pointer(version, bases)
    whole = {"manifest.json": content, "model.onnx": model, **files}
    (place / pointer.model).parent.mkdir(exist_ok=True)
    for file, what in whole.items():
        (place / pointer.model).with_name(file).write_bytes(what)
    return targets_for(pointer, whole, name)


def _read(place: Path, name: str, kind: type[_tuf.Kind]) -> _tuf.Kind:
    return _tuf.parse(kind, (place / "metadata" / name).read_bytes(), name).signed


def _write(place: Path, name: str, content: bytes) -> None:
    (place / "metadata" / name).write_bytes(content)


def _sign(content: Any, role: str, stolen: Mapping[str, SigningKey]) -> bytes:
    return _tuf.sign(content, stolen.get(role, THIEF))


def _meta(place: Path, name: str) -> MetaFile:
    content = (place / "metadata" / name).read_bytes()
    version: int = Metadata[Any].from_bytes(content).signed.version
    return MetaFile.from_data(version, content, ["sha256"])
