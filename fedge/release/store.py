"""Where releases lie: ``DIR/releases/v0001/{model.onnx,manifest.json,manifest.sig}``.

A release is there whole or not at all: it is written beside its place, flushed to the disk, and renamed
into place; then the folder is flushed. What a power cut leaves of an unfinished one starts with a dot,
is never listed, and is cleared away by the next :func:`publish`.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedge.durable import flush_folder, write_new
from fedge.errors import ReleaseError, SetupError
from fedge.release.bundle import Bundle
from fedge.release.manifest import MAX_MANIFEST_BYTES, MAX_MODEL_BYTES, parse
from fedge.release.rules import check_model
from fedge.signing import SIGNATURE_BYTES

MODEL, MANIFEST, SIGNATURE = "model.onnx", "manifest.json", "manifest.sig"
_FILES = {MANIFEST: MAX_MANIFEST_BYTES, SIGNATURE: SIGNATURE_BYTES, MODEL: MAX_MODEL_BYTES}
_VERSION = re.compile(r"v(?!0+$)(\d{4}|[1-9]\d{4,15})")
_UNFINISHED = ".unfinished-"


def publish(folder: Path, manifest: bytes, signature: bytes, model: bytes) -> Path:
    """Store a release under ``folder/releases``; gives its own folder.

    Storing the very same release again changes nothing. The signature's length is checked here, not
    whose it is: the store holds no keys.

    Raises:
        ReleaseError: the manifest is malformed, the model is not the one it names, the signature has
            another length, or another release of this version is there already.
        SetupError: the folder cannot be written.
    """
    release = parse(manifest)
    check_model(release, model)
    if len(signature) != SIGNATURE_BYTES:
        raise ReleaseError(f"a signature has {SIGNATURE_BYTES} bytes, not {len(signature)}")
    bundle = Bundle(manifest, signature, model)
    try:
        with _locked(folder / "releases") as releases:
            return _publish(releases, release.version, bundle)
    except OSError as error:
        raise SetupError(f"cannot store the release in {folder}: {error.strerror}") from error


def list_releases(folder: Path) -> list[int]:
    """The versions under ``folder/releases``, ascending; none if there is no such folder."""
    try:
        entries = list((folder / "releases").iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SetupError(f"cannot read {folder / 'releases'}: {error.strerror}") from error
    found = (_VERSION.fullmatch(entry.name) for entry in entries)
    return sorted(int(match[1]) for match in found if match)


def load(folder: Path, version: int) -> Bundle:
    """Read one release; nothing about it has been verified but the sizes of its files.

    Raises:
        ReleaseError: there is no such release, or a file of it is missing or above its limit.
        SetupError: a file cannot be read.
    """
    place = folder / "releases" / _name(version)
    if not place.is_dir():
        known = ", ".join(map(str, list_releases(folder))) or "none"
        raise ReleaseError(f"there is no release {version} in {folder}; there are: {known}")
    content = {name: _read(place / name, limit) for name, limit in _FILES.items()}
    return Bundle(content[MANIFEST], content[SIGNATURE], content[MODEL])


def _name(version: int) -> str:
    return f"v{version:04d}"


def _publish(releases: Path, version: int, bundle: Bundle) -> Path:
    """Store ``bundle``; the lock on ``releases`` is held."""
    for left_over in releases.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(left_over)
    place = releases / _name(version)
    if place.exists():
        if load(releases.parent, version) != bundle:
            raise ReleaseError(f"another release {version} is at {place}; a release is never overwritten")
        flush_folder(releases)  # an earlier call may have been stopped just before this
        return place
    unfinished = releases / f"{_UNFINISHED}{_name(version)}"
    try:
        _write_release(unfinished, bundle)
        os.rename(unfinished, place)
    except BaseException:  # a full disk, most likely: give back what was taken
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    flush_folder(releases)
    return place


def _write_release(folder: Path, bundle: Bundle) -> None:
    """Make ``folder`` with the three files of a release, all of it flushed to the disk."""
    os.mkdir(folder)
    for name, content in ((MODEL, bundle.model), (MANIFEST, bundle.manifest), (SIGNATURE, bundle.signature)):
        _write(folder / name, content)
    flush_folder(folder)


@contextmanager
def _locked(releases: Path) -> Iterator[Path]:
    """Make the folder and hold a lock on it, which a killed process drops."""
    for missing in reversed([f for f in (releases, *releases.parents) if not f.exists()]):
        missing.mkdir(exist_ok=True)
        flush_folder(missing.parent)
    handle = os.open(releases, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield releases
    finally:
        os.close(handle)


def _write(path: Path, content: bytes) -> None:
    """A release is for everyone to read."""
    write_new(path, content, 0o644)


def _read(path: Path, limit: int) -> bytes:
    """A file's content, of which no more is read than ``limit`` and one byte."""
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except FileNotFoundError as error:
        raise ReleaseError(f"the release is incomplete: {path} is missing") from error
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from error
    if len(content) > limit:
        raise ReleaseError(f"{path} has more than {limit} bytes, the limit for such a file")
    return content
