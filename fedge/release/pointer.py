"""Where a repository of releases keeps what, how large it may be, and what points at a release.

    metadata/N.root.json, N.targets.json, N.rounds.json, N.snapshot.json, timestamp.json
    v0007/model.onnx, manifest.json, card.md, from-0006.delta
    latest.json, promoted.json

A pointer says which release is the newest (``latest.json``) or the promoted one (``promoted.json``). It is
signed as ``custom`` of the target of that name, so it changes in the same instant as the metadata does; the
file beside it is the same content, for whoever reads it without TUF. Every other file but ``timestamp.json``
never changes.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from fedge.errors import PayloadError

LATEST, PROMOTED = "latest.json", "promoted.json"
MODEL, MANIFEST, CARD = "model.onnx", "manifest.json", "card.md"
METADATA, TIMESTAMP = "metadata", "timestamp.json"
ROUNDS = "rounds"
"""The delegated role that signs releases as they come out of the rounds."""
ROUNDS_PATHS = (LATEST, "v*/*")
"""What this role may sign."""

MAX_VERSION = 10**15
MAX_DELTAS = 16
MAX_CARD_BYTES = 1 << 16
MAX_POINTER_BYTES = 4096
MAX_ROOT_BYTES, MAX_TIMESTAMP_BYTES = 1 << 16, 1 << 13
MAX_SNAPSHOT_BYTES, MAX_TARGETS_BYTES = 1 << 14, 1 << 17

_VERSION = re.compile(r"v(?!0+$)(\d{4}|[1-9]\d{4,14})")


@dataclass(frozen=True)
class Pointer:
    """One release, by its version, and the earlier ones from which a delta leads to it.

    Attributes:
        version: 1 or above.
        bases: versions below it, ascending, at most ``MAX_DELTAS``.
    """

    version: int
    bases: tuple[int, ...] = ()

    @property
    def manifest(self) -> str:
        """Path of the manifest within the repository."""
        return f"{folder_name(self.version)}/{MANIFEST}"

    @property
    def model(self) -> str:
        """Path of the ONNX file within the repository."""
        return f"{folder_name(self.version)}/{MODEL}"

    def delta(self, base: int) -> str:
        """Path of the delta from release ``base`` within the repository."""
        return f"{folder_name(self.version)}/{delta_name(base)}"

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object."""
        deltas = {str(base): self.delta(base) for base in self.bases}
        return {"version": self.version, "manifest": self.manifest, "model": self.model, "deltas": deltas}

    def to_bytes(self) -> bytes:
        """The content of ``latest.json`` or ``promoted.json``: canonical JSON."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":")).encode("ascii")


def parse_pointer(raw: object) -> Pointer:
    """Read a pointer from a source that is not trusted: the file's bytes, or ``custom`` of its target.

    Raises:
        PayloadError: it is too long, no such JSON object, or anything but what ``to_bytes`` writes.
    """
    content = raw
    if isinstance(raw, bytes):
        if len(raw) > MAX_POINTER_BYTES:
            raise PayloadError(f"the pointer to a release has more than {MAX_POINTER_BYTES} bytes")
        try:
            content = json.loads(raw.decode("ascii"))
        except (ValueError, RecursionError) as error:
            raise PayloadError("the pointer to a release is not JSON") from error
    pointer = _read(content)
    if (pointer.to_bytes() if isinstance(raw, bytes) else pointer.to_dict()) != raw:
        raise PayloadError("the pointer to a release is not written as this fedge writes it")
    return pointer


def _read(raw: object) -> Pointer:
    """Version and bases; whether the rest is as it must be follows from writing it again."""
    if not isinstance(raw, dict) or not isinstance(deltas := raw.get("deltas"), dict):
        raise PayloadError("the pointer to a release is no object with version, manifest, model and deltas")
    version = raw.get("version")
    if type(version) is not int or not 1 <= version <= MAX_VERSION:
        raise PayloadError(f"the pointer to a release must have a version in 1..{MAX_VERSION}")
    keys = [k for k in deltas if isinstance(k, str) and len(k) <= len(str(MAX_VERSION)) and k.isdecimal()]
    bases = tuple(sorted(int(key) for key in keys))
    if len(keys) != len(deltas) or len(bases) > MAX_DELTAS or not all(0 < b < version for b in bases):
        raise PayloadError(f"the pointer must have at most {MAX_DELTAS} deltas, each from an earlier release")
    return Pointer(version, bases)


def folder_name(version: int) -> str:
    """The folder of a release: ``v0007``."""
    return f"v{version:04d}"


def delta_name(base: int) -> str:
    """The file of the delta from release ``base``: ``from-0006.delta``."""
    return f"from-{base:04d}.delta"


def version_of(name: str) -> int | None:
    """The version of the release whose folder is called ``name``; None if it is no such name."""
    match = _VERSION.fullmatch(name)
    return int(match[1]) if match else None
