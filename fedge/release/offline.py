"""What the offline keys are for: to begin a repository, to renew its trust, and to promote a release."""

from collections.abc import Mapping
from pathlib import Path

from fedge.errors import ReleaseError
from fedge.release import _tuf, delta, folder
from fedge.release._tuf import DelegatedRole, Delegations, Role, Root, TargetFile, Targets
from fedge.release.keys import Keys, OnlineKeys
from fedge.release.manifest import MAX_MANIFEST_BYTES, MAX_MODEL_BYTES, check_model, parse
from fedge.release.pointer import (
    CARD,
    MANIFEST,
    MAX_CARD_BYTES,
    MAX_TARGETS_BYTES,
    METADATA,
    MODEL,
    PROMOTED,
    ROUNDS,
    ROUNDS_PATHS,
    Pointer,
    delta_name,
    folder_name,
)
from fedge.release.trust import read_trust, targets_for
from fedge.signing import SigningKey

ROOT_DAYS, TARGETS_DAYS = 730.0, 365.0


def create(now: float, root_days: float, targets_days: float, keys: Keys) -> dict[str, bytes]:
    """Begin a repository: ``1.root.json`` and ``1.targets.json``, by name.

    Args:
        now: Unix time in seconds.
        root_days: how long the root is valid.
        targets_days: how long the list of promoted releases is valid, empty as it is.
        keys: all of them; no private one is in the result.
    """
    root, targets = Root(consistent_snapshot=True), Targets()
    _appoint(root, targets, keys.root, keys.targets, keys.online)
    root.expires = _tuf.expiry(now, root_days)
    targets.expires = _tuf.expiry(now, targets_days)
    return {
        "1.root.json": _tuf.sign(root, keys.root),
        "1.targets.json": _tuf.sign(targets, keys.targets),
    }


def renew(
    place: Path,
    now: float,
    root_key: SigningKey,
    targets_key: SigningKey,
    *,
    root_days: float = ROOT_DAYS,
    targets_days: float = TARGETS_DAYS,
    online: OnlineKeys | None = None,
    new_root_key: SigningKey | None = None,
) -> dict[str, bytes]:
    """The next root and targets of a repository: valid for longer, and with other keys where they are given.

    Args:
        place: the repository, or a copy of it; nothing is written.
        now: Unix time in seconds.
        root_key: the one in force.
        targets_key: the one for promotions from now on; another one than before replaces that.
        root_days: how long the root is valid.
        targets_days: how long the list of promoted releases is valid.
        online: the server's new keys, where they are replaced.
        new_root_key: what replaces ``root_key``.

    Returns:
        Metadata files by name, for :func:`fedge.release.trust.install`.

    Raises:
        SetupError: ``root_key`` is not the one that is trusted.
        ReleaseError: the repository's root or targets are damaged.
        SignatureError: they are not signed by who is trusted.
    """
    trust = read_trust(place)
    root, targets = trust.root, trust.targets
    _tuf.check_trusted(root, "root", root_key)
    _appoint(root, targets, new_root_key or root_key, targets_key, online)
    root.version, root.expires = root.version + 1, _tuf.expiry(now, root_days)
    targets.version, targets.expires = targets.version + 1, _tuf.expiry(now, targets_days)
    signers = [root_key] if new_root_key is None else [root_key, new_root_key]
    return {
        f"{root.version}.root.json": _tuf.sign(root, *signers),
        f"{targets.version}.targets.json": _tuf.sign(targets, targets_key),
    }


def promote(
    place: Path, targets_key: SigningKey, version: int, now: float, days: float = TARGETS_DAYS
) -> Pointer:
    """Promote a release: from now on devices take nothing below it, and some take nothing else.

    Devices learn of it once the server has signed the next snapshot (``Repository.refresh``). Promoting the
    promoted one again renews its promotion.

    Args:
        place: the repository.
        targets_key: the offline key.
        version: the release.
        now: Unix time in seconds.
        days: how long the promotion is valid.

    Raises:
        ReleaseError: there is no such release, it is damaged or has expired, the server never signed it, or
            a later one is promoted.
        SetupError: it is not the right key, or the repository cannot be written.
    """
    with folder.locked(place):
        trust = read_trust(place)
        targets, old = trust.targets, trust.promoted
        _tuf.check_trusted(trust.root, "targets", targets_key)
        if old and version < old.version:
            hint = "publish the old model as a new release"
            raise ReleaseError(f"release {old.version} is promoted, and no device goes below it: {hint}")
        files = _read_release(place, version, now)
        _check_signed(place, targets, Pointer(version), files)
        deltas = _deltas(place, version, old, files[MODEL])
        pointer = Pointer(version, tuple(sorted(deltas)))
        named = {delta_name(base): content for base, content in deltas.items()}
        targets.targets = targets_for(pointer, {**files, **named}, PROMOTED)
        targets.version, targets.expires = targets.version + 1, _tuf.expiry(now, days)
        path = place / METADATA / f"{targets.version}.targets.json"
        folder.put(path, _tuf.sign(targets, targets_key))
        return pointer


def _appoint(
    root: Root, targets: Targets, root_key: SigningKey, targets_key: SigningKey, online: OnlineKeys | None
) -> None:
    """Say in ``root`` and ``targets`` whose key is whose; without ``online`` the server's stay."""
    keys = {"root": root_key, "targets": targets_key}
    if online is not None:
        keys |= {"snapshot": online.snapshot, "timestamp": online.timestamp}
        key = _tuf.public_key(online.rounds)
        role = DelegatedRole(ROUNDS, [key.keyid], 1, terminating=True, paths=list(ROUNDS_PATHS))
        targets.delegations = Delegations({key.keyid: key}, {ROUNDS: role})
    for name, signer in keys.items():
        for old in root.roles[name].keyids.copy():
            root.revoke_key(old, name)
        root.roles[name] = Role([], 1)
        root.add_key(_tuf.public_key(signer), name)


def _read_release(place: Path, version: int, now: float) -> dict[str, bytes]:
    """A release's manifest, model and card, once they belong together and it has not expired."""
    where = place / folder_name(version)
    if not where.is_dir():
        known = ", ".join(map(str, folder.versions(place))) or "none"
        raise ReleaseError(f"there is no release {version} in {place}; there are: {known}")
    limits = {MANIFEST: MAX_MANIFEST_BYTES, MODEL: MAX_MODEL_BYTES, CARD: MAX_CARD_BYTES}
    files = {name: folder.read(where / name, limit) for name, limit in limits.items()}
    manifest = parse(files[MANIFEST])
    check_model(manifest, files[MODEL])
    if manifest.version != version:
        raise ReleaseError(f"{where} holds release {manifest.version}")
    if now >= manifest.expires:
        raise ReleaseError(f"release {version} has expired; publish the model again")
    return files


def _check_signed(place: Path, targets: Targets, pointer: Pointer, files: Mapping[str, bytes]) -> None:
    """Check that the server signed this very release: who can only write to the folder promotes nothing."""
    wanted = [
        TargetFile.from_data(path, files[name])
        for path, name in ((pointer.manifest, MANIFEST), (pointer.model, MODEL))
    ]
    for number in reversed(folder.numbers(place, ROUNDS)):
        path = place / METADATA / f"{number}.{ROUNDS}.json"
        metadata = _tuf.parse(Targets, folder.read(path, MAX_TARGETS_BYTES), str(path))
        known = metadata.signed.targets
        if all(target.path in known and known[target.path] == target for target in wanted):
            return _tuf.verify(targets, ROUNDS, metadata, str(path))
    raise ReleaseError(f"the server never signed release {pointer.version} as it is in {place}")


def _deltas(place: Path, version: int, old: Pointer | None, model: bytes) -> dict[int, bytes]:
    """For devices that take promoted releases only: a delta from the one that was promoted before."""
    if old is None:
        return {}
    found = {}
    for base in old.bases if old.version == version else (old.version,):
        path = place / folder_name(version) / delta_name(base)
        change = folder.read(path, MAX_MODEL_BYTES) if path.exists() else _encode(place, base, model)
        if change is not None:
            found[base] = change
            folder.put(path, change)
    return found


def _encode(place: Path, base: int, model: bytes) -> bytes | None:
    return delta.encode(folder.read(place / Pointer(base).model, MAX_MODEL_BYTES), model)
