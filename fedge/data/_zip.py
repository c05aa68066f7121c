"""Reading chosen arrays of an ``.npz`` file, with every limit checked before memory is taken."""

import math
import os
import stat
import tokenize
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fedge.errors import DataError

MAX_FILE_BYTES = 2**31
"""Largest data file that is opened."""
MAX_ARRAY_BYTES = 2**32
"""Largest sum of the arrays of one file, in memory."""
MAX_RATIO = 100
"""Largest ratio of unpacked to packed size, for arrays of more than ``SMALL_BYTES`` together."""
SMALL_BYTES = 2**28
_MAX_DIRECTORY_BYTES = 2**20
_MAX_HEADER_BYTES = 10_000
_MAX_DIMENSIONS = 8
_END = b"PK\x05\x06"
_END_BYTES = 22
_ZIP64_LOCATOR = b"PK\x06\x07"


def check_file(path: Path, what: str) -> int:
    """The size of ``path`` in bytes, if it is a regular file of acceptable size.

    Raises:
        DataError: missing, a folder, not a regular file, unreadable, empty or too large.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give {what}") from None
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{path}: is a folder; give {what}")
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: is not a regular file; give {what}")
    if status.st_size == 0:
        raise DataError(f"{path}: is empty; give {what}")
    if status.st_size > MAX_FILE_BYTES:
        raise DataError(f"{path}: has {status.st_size} bytes; at most {MAX_FILE_BYTES} are read")
    return status.st_size


def read_arrays(path: Path, wanted: Collection[str]) -> tuple[dict[str, NDArray[Any]], tuple[str, ...]]:
    """The arrays named in ``wanted`` that ``path`` holds, and the names of all arrays in it.

    Nothing is unpickled. The directory of the zip file and the header of each array are checked against
    the limits of this module before an array is allocated, and a header must agree with the size of its
    entry; other arrays than the wanted ones are not opened.

    Raises:
        DataError: the file is missing, damaged, no ``.npz``, beyond a limit, or holds Python objects.
    """
    size = check_file(path, "an .npz file")
    try:
        with path.open("rb") as file:
            _check_directory(file, size, path)
            with zipfile.ZipFile(file) as archive:
                return _read(archive, wanted, path)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is damaged or no .npz file ({error}); write it with numpy.savez") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def _check_directory(file: IO[bytes], size: int, path: Path) -> None:
    """Refuse a zip directory that is too large to load (``zipfile`` would load all of it)."""
    file.seek(max(0, size - _END_BYTES - 0xFFFF - 20))
    tail = file.read()
    at = len(tail) - _END_BYTES
    if not (tail[at : at + 4] == _END and tail.endswith(b"\0\0")):
        at = tail.rfind(_END)
    if at < 0 or len(tail) < at + _END_BYTES:
        raise DataError(f"{path}: is not an .npz file, or is cut short; write it with numpy.savez")
    directory = int.from_bytes(tail[at + 12 : at + 16], "little")
    if directory > _MAX_DIRECTORY_BYTES or tail[max(0, at - 20) : at].startswith(_ZIP64_LOCATOR):
        raise DataError(f"{path}: has an oversized zip directory; write it with numpy.savez")
    file.seek(0)


def _read(
    archive: zipfile.ZipFile, wanted: Collection[str], path: Path
) -> tuple[dict[str, NDArray[Any]], tuple[str, ...]]:
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        key = info.filename.removesuffix(".npy")
        if key in entries:
            raise DataError(f"{path}: holds the array {key!r} twice; write it again with numpy.savez")
        entries[key] = info
    chosen = {key: info for key, info in entries.items() if key in wanted}
    total = sum(info.file_size for info in chosen.values())
    packed = sum(info.compress_size for info in chosen.values())
    if total > MAX_ARRAY_BYTES or total > max(SMALL_BYTES, MAX_RATIO * packed):
        raise DataError(
            f"{path}: {packed} bytes would unpack to {total}; at most {MAX_ARRAY_BYTES} are read, and above "
            f"{SMALL_BYTES} at most {MAX_RATIO} times the packed size"
        )
    for key, info in chosen.items():
        _check_entry(archive, info, f"{path}: {key!r}")
    arrays = {key: _read_entry(archive, info, f"{path}: {key!r}") for key, info in chosen.items()}
    return arrays, tuple(entries)


def _check_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> None:
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{where} is encrypted or packed in a way NumPy does not; write it with numpy.savez")
    with archive.open(info) as file:
        shape, dtype = _header(file, where)
        start = file.tell()
    if dtype.hasobject:
        raise DataError(f"{where} holds Python objects, which are never loaded; store numbers or plain text")
    if dtype.kind not in "biufSU" or dtype.subdtype is not None:
        raise DataError(f"{where} has elements of type {dtype}; store numbers or plain text")
    if len(shape) > _MAX_DIMENSIONS or any(length < 0 for length in shape):
        raise DataError(f"{where} claims the shape {shape}, which no array has")
    claimed = math.prod(shape) * dtype.itemsize
    if claimed != info.file_size - start:
        raise DataError(f"{where} claims {claimed} bytes {shape}, but holds {info.file_size - start}")


def _header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, _, dtype = np.lib.format.read_array_header_1_0(file, _MAX_HEADER_BYTES)
        elif version == (2, 0):
            shape, _, dtype = np.lib.format.read_array_header_2_0(file, _MAX_HEADER_BYTES)
        else:
            raise ValueError(f"version {version} of the array format")
    except (ValueError, TypeError, KeyError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError):
        raise DataError(f"{where} has no readable array header; write it with numpy.savez") from None
    return shape, dtype


def _read_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> NDArray[Any]:
    with archive.open(info) as file:
        try:
            array: NDArray[Any] = np.lib.format.read_array(
                file, allow_pickle=False, max_header_size=_MAX_HEADER_BYTES
            )
        except ValueError as error:
            raise DataError(f"{where} is damaged ({error})") from None
    return array
