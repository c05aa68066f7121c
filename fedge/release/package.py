"""Several files of a repository as one byte string: all that a device needs for one step, deflated.

    magic "FDGP" | format 1 byte | length of what follows, inflated: 4 bytes, little-endian | a zlib stream of
    records: length of the path 1 byte | path | coding 1 byte | length 4 bytes | content

Coding 0 is the file as it is, 1 a model file coded by :func:`fedge.release.delta.pack`, 2 a manifest coded by
:func:`fedge.release.delta.encode` from that of the release which the device holds: most of a manifest are the
windows of its self-test, which stay the same.
"""

import re
import struct
import zlib
from collections.abc import Iterator, Mapping

from fedge.errors import PayloadError
from fedge.release import _streams, delta
from fedge.release.manifest import MAX_MANIFEST_BYTES, MAX_MODEL_BYTES
from fedge.release.pointer import MANIFEST, MAX_DELTAS, MODEL

_HEAD = struct.Struct("<4sBI")
_MAGIC, _FORMAT = b"FDGP", 1
_AS_IT_IS, _PACKED, _CHANGED = 0, 1, 2
_SIZE = struct.Struct("<BI")
_PATH = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}/){0,2}[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")
MAX_FILES = 64 + MAX_DELTAS
_MAX_INSIDE = MAX_MODEL_BYTES + 2 * MAX_MANIFEST_BYTES
MAX_PACKAGE_BYTES = _HEAD.size + _MAX_INSIDE + _MAX_INSIDE // 1000 + 64


def make_package(files: Mapping[str, bytes], manifest: bytes | None = None) -> bytes:
    """One byte string of ``files`` (path within the repository -> content); model files are packed.

    Args:
        files: what the device is to find in it.
        manifest: of the release that the device holds, where it is known to.

    Raises:
        PayloadError: a path is none that a repository has, or there are too many files or bytes.
    """
    if len(files) > MAX_FILES:
        raise PayloadError(f"a package holds at most {MAX_FILES} files, not {len(files)}")
    inside = b"".join(_record(path, files[path], manifest) for path in sorted(files))
    _check_inside(len(inside))
    return _HEAD.pack(_MAGIC, _FORMAT, len(inside)) + zlib.compress(inside, 9)


def parse_package(content: bytes, manifest: bytes | None = None) -> Mapping[str, bytes]:
    """The files of a package from a source that is not trusted: path -> content, nothing of it verified.

    Args:
        content: the package.
        manifest: of the release that the device holds, if it has one.

    Raises:
        PayloadError: it is no package, of another format, cut off, too long, made for a device with another
            release, or a file is above its limit.
    """
    if not _HEAD.size <= len(content) <= MAX_PACKAGE_BYTES:
        raise PayloadError(f"a package has {_HEAD.size} to {MAX_PACKAGE_BYTES} bytes, not {len(content)}")
    magic, version, size = _HEAD.unpack_from(content)
    if magic != _MAGIC or version != _FORMAT:
        raise PayloadError(f"this is no package of releases of format {_FORMAT}")
    _check_inside(size)
    files = dict[str, bytes]()
    left = _MAX_INSIDE
    for path, coding, part in _records(_streams.inflate(content[_HEAD.size :], size)):
        if path in files or len(files) == MAX_FILES:
            raise PayloadError("the package names a file twice, or too many of them")
        files[path] = _decoded(coding, bytes(part), manifest, left)
        left -= len(files[path])
    return files


def _decoded(coding: int, part: bytes, manifest: bytes | None, limit: int) -> bytes:
    """A file of at most ``limit`` bytes."""
    if coding == _PACKED:
        return delta.unpack(part, min(limit, MAX_MODEL_BYTES))
    if coding == _CHANGED:
        if manifest is None:
            raise PayloadError("the package was made for a device that holds a release")
        return delta.decode(manifest, part, min(limit, MAX_MANIFEST_BYTES))
    if len(part) > limit:
        raise PayloadError(f"the package's files have more than {_MAX_INSIDE} bytes")
    return part


def _record(path: str, content: bytes, manifest: bytes | None) -> bytes:
    if not _PATH.fullmatch(path):
        raise PayloadError(f"{path!r:.80} is no path of a repository of releases")
    name, coding = path.encode("ascii"), _AS_IT_IS
    if path.endswith(f"/{MODEL}"):
        content, coding = delta.pack(content), _PACKED
    elif path.endswith(f"/{MANIFEST}") and manifest is not None:
        change = delta.encode(manifest, content)
        if change is not None:
            content, coding = change, _CHANGED
    return bytes([len(name)]) + name + _SIZE.pack(coding, len(content)) + content


def _records(inside: bytes) -> Iterator[tuple[str, int, memoryview]]:
    view, at = memoryview(inside), 0
    while at < len(inside):
        end = at + 1 + inside[at]
        if end + _SIZE.size > len(inside):
            raise PayloadError("the package ends within a record")
        path = inside[at + 1 : end].decode("ascii", "replace")
        coding, size = _SIZE.unpack_from(inside, end)
        at = end + _SIZE.size + size
        if at > len(inside) or coding > _CHANGED or not _PATH.fullmatch(path):
            raise PayloadError("the package has a record that is cut off, or of an unknown kind")
        yield path, coding, view[at - size : at]


def _check_inside(size: int) -> None:
    if not size <= _MAX_INSIDE:
        raise PayloadError(f"a package holds at most {_MAX_INSIDE} bytes, not {size}")
