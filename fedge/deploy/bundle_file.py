"""An enrolment bundle as one file, ``NAME.fedge``: a zip, stored and not compressed, of the folder's files.

A reader takes known names only, each once, and looks at every size before it reads.
"""

import io
import zipfile
from collections.abc import Mapping

from fedge.errors import PayloadError

DEVICE, AUTHORITY, CERTIFICATE, KEY = "device.json", "ca.pem", "client.pem", "client.key"
ROOT = "root.json"  # of releases: whom the device believes
SIGNING, NODE, NODE_PUBLIC = "signing.key", "node.key", "node.pub"
NAMES = (DEVICE, AUTHORITY, CERTIFICATE, ROOT, KEY, SIGNING, NODE, NODE_PUBLIC)
REQUIRED = frozenset({DEVICE, AUTHORITY, CERTIFICATE, ROOT})
MAX_FILE_BYTES = 16_384
MAX_BUNDLE_BYTES = 131_072
_DATE = (1980, 1, 1, 0, 0, 0)
_UNREADABLE = (zipfile.BadZipFile, RuntimeError, ValueError, EOFError, OSError, LookupError, OverflowError)


def pack(files: Mapping[str, bytes]) -> bytes:
    """The files of a bundle (name -> content) as one; the same files give the same bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in NAMES:
            if name in files:
                entry = zipfile.ZipInfo(name, _DATE)
                entry.create_system = 3
                entry.external_attr = 0o100600 << 16
                archive.writestr(entry, files[name])
    return out.getvalue()


def unpack(content: bytes) -> dict[str, bytes]:
    """The files in a bundle, by name. What they say is not looked at here.

    Raises:
        PayloadError: it is no bundle, a file of it is unknown, missing, there twice, damaged or too large.
    """
    if len(content) > MAX_BUNDLE_BYTES:
        raise PayloadError(f"the bundle has more than {MAX_BUNDLE_BYTES} bytes, the limit")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            _check(entries)
            return {entry.filename: archive.read(entry) for entry in entries}
    except _UNREADABLE as error:
        raise PayloadError(f"this is no enrolment bundle, or it is damaged: {error}") from None


def _check(entries: list[zipfile.ZipInfo]) -> None:
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names) or not REQUIRED <= set(names) <= set(NAMES):
        raise PayloadError(
            f"an enrolment bundle holds {', '.join(NAMES[:4])} and keys, each once, nothing else"
        )
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise PayloadError(f"{entry.filename} is compressed; a bundle stores its files as they are")
        if entry.file_size > MAX_FILE_BYTES:
            raise PayloadError(f"{entry.filename} has more than {MAX_FILE_BYTES} bytes, the limit")
