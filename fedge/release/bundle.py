"""A release as one byte string, to travel in: manifest, signature and model behind a fixed header.

    magic "FDGR" | format 1 byte | 3 bytes zero | lengths of manifest, signature, model: 4 bytes each

All numbers are little-endian. Nothing follows the model.
"""

import struct
from dataclasses import dataclass

from fedge.errors import PayloadError
from fedge.release.manifest import MAX_MANIFEST_BYTES, MAX_MODEL_BYTES
from fedge.signing import SIGNATURE_BYTES

_HEADER = struct.Struct("<4sB3sIII")
_MAGIC, _FORMAT, _ZERO = b"FDGR", 1, b"\0\0\0"
MAX_BUNDLE_BYTES = _HEADER.size + MAX_MANIFEST_BYTES + SIGNATURE_BYTES + MAX_MODEL_BYTES


@dataclass(frozen=True)
class Bundle:
    """The three parts of a release, as bytes: nothing about them has been verified."""

    manifest: bytes
    signature: bytes
    model: bytes

    def to_bytes(self) -> bytes:
        """One byte string.

        Raises:
            PayloadError: a part is empty or above its limit.
        """
        lengths = len(self.manifest), len(self.signature), len(self.model)
        _check_lengths(*lengths)
        header = _HEADER.pack(_MAGIC, _FORMAT, _ZERO, *lengths)
        return b"".join((header, self.manifest, self.signature, self.model))


def parse_bundle(content: bytes) -> Bundle:
    """Take a bundle from a source that is not trusted apart again.

    Raises:
        PayloadError: it is not a bundle, of another format, cut off, too long, or a part is above its limit.
    """
    if len(content) < _HEADER.size:
        raise PayloadError(f"a release bundle starts with {_HEADER.size} bytes; here are {len(content)}")
    magic, version, zero, *lengths = _HEADER.unpack_from(content)
    if magic != _MAGIC or zero != _ZERO:
        raise PayloadError("this is not a release bundle: it does not start with FDGR")
    if version != _FORMAT:
        raise PayloadError(f"the release bundle has format {version}; this fedge reads {_FORMAT}")
    _check_lengths(*lengths)
    if _HEADER.size + sum(lengths) != len(content):
        raise PayloadError(f"the release bundle has {len(content)} bytes, not what its header says")
    ends = (_HEADER.size + lengths[0], _HEADER.size + lengths[0] + lengths[1])
    return Bundle(content[_HEADER.size : ends[0]], content[ends[0] : ends[1]], content[ends[1] :])


def _check_lengths(manifest: int, signature: int, model: int) -> None:
    if not 0 < manifest <= MAX_MANIFEST_BYTES:
        raise PayloadError(f"a manifest has 1 to {MAX_MANIFEST_BYTES} bytes, not {manifest}")
    if signature != SIGNATURE_BYTES:
        raise PayloadError(f"a signature has {SIGNATURE_BYTES} bytes, not {signature}")
    if not 0 < model <= MAX_MODEL_BYTES:
        raise PayloadError(f"a model has 1 to {MAX_MODEL_BYTES} bytes, not {model}")
