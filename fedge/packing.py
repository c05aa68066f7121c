"""Named arrays and a JSON header as one byte string: for state on disk and plans that travel.

Layout, little-endian: ``b"FP1\\0"``, u32 length of the header, the header (UTF-8 JSON), then the arrays one
after the other. The header holds ``meta`` (the caller's) and ``arrays``: ``[name, dtype, shape]`` each.
Numbers and fixed dtypes only; nothing in it is ever executed.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedge.errors import PayloadError

_MAGIC = b"FP1\0"
_DTYPES = {
    "f4": "<f4",
    "f8": "<f8",
    "i4": "<i4",
    "i8": "<i8",
    "u1": "|u1",
    "i1": "|i1",
    "u4": "<u4",
    "u8": "<u8",
}
_LARGEST_HEADER = 1 << 22


def pack(meta: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """``meta`` (what JSON can hold, finite numbers) and arrays of fixed-size numbers as bytes."""
    table: list[Any] = []
    bodies: list[memoryview] = []
    for name, array in arrays.items():
        code = f"{array.dtype.kind}{array.dtype.itemsize}"
        if code not in _DTYPES:
            raise TypeError(f"array {name!r}: dtype {array.dtype} cannot be packed")
        table.append([name, code, list(array.shape)])
        flat = np.ascontiguousarray(array, dtype=_DTYPES[code]).reshape(-1)
        bodies.append(flat.view(np.uint8).data)  # no copy: weights may be most of the memory
    header = json.dumps({"meta": meta, "arrays": table}, allow_nan=False, separators=(",", ":")).encode()
    return b"".join([_MAGIC, len(header).to_bytes(4, "little"), header, *bodies])


def unpack(data: bytes, max_bytes: int = 1 << 30) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What ``pack`` was given.

    Raises:
        PayloadError: not that format, truncated, or longer than ``max_bytes``.
    """
    if len(data) > max_bytes:
        raise PayloadError(f"packed arrays: {len(data)} bytes, more than {max_bytes}")
    if data[:4] != _MAGIC or len(data) < 8:
        raise PayloadError("packed arrays: not that format")
    size = int.from_bytes(data[4:8], "little")
    if size > min(_LARGEST_HEADER, len(data) - 8):
        raise PayloadError("packed arrays: truncated header")
    try:
        header = json.loads(data[8 : 8 + size], parse_constant=_no_constant)
        meta, table = header["meta"], header["arrays"]
        if not isinstance(meta, dict):
            raise ValueError("meta is not a table")
        arrays, position = {}, 8 + size
        for name, code, shape in table:
            if name in arrays:
                raise ValueError(f"array {name!r} is there twice")
            arrays[str(name)], position = _array(data, position, _DTYPES[code], shape)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise PayloadError(f"packed arrays: {error}") from None
    if position != len(data):
        raise PayloadError("packed arrays: trailing bytes")
    return meta, arrays


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no number")


def _array(data: bytes, position: int, dtype: str, shape: list[int]) -> tuple[NDArray[Any], int]:
    if len(shape) > 8 or not all(type(n) is int and 0 <= n <= len(data) for n in shape):
        raise ValueError("a shape is out of range")
    count = math.prod(shape)
    end = position + count * np.dtype(dtype).itemsize
    if end > len(data):
        raise ValueError("truncated arrays")
    native = np.dtype(dtype).newbyteorder("=")
    array = np.frombuffer(data, dtype, count, position).astype(native).reshape(shape)
    return array, end
