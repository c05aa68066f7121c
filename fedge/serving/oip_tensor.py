"""Tensors of the Open Inference Protocol, from JSON or from bytes. No IO."""

import math
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedge.serving._json import RequestError, as_list

DATATYPES = {
    "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
    "INT8": "|i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "UINT8": "|u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
}  # fmt: skip
"""Numbers that a tensor may hold, and how NumPy calls them."""


@dataclass(frozen=True)
class Tensor:
    """Name, datatype (a key of ``DATATYPES``) and the sizes after the batch."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """How NumPy calls the datatype."""
        return np.dtype(DATATYPES[self.datatype])

    @property
    def size(self) -> int:
        """Numbers for one window."""
        return math.prod(self.shape)


def from_json(data: object, datatype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """The tensor in ``data``: flat, or nested as ``shape`` says, row by row.

    Raises:
        RequestError: it has another number of values, is nested otherwise, or holds what is no such number.
    """
    flat = as_list(data, "data")
    if flat and isinstance(flat[0], list):
        flat = _unnested(flat, shape)
    if len(flat) != math.prod(shape):
        raise RequestError(400, f"data has {len(flat)} values; its shape says {math.prod(shape)}")
    dtype = np.dtype(DATATYPES[datatype])
    if dtype.kind != "f":
        return _whole(flat, dtype).reshape(shape)
    if not set(map(type, flat)) <= {int, float}:
        raise RequestError(400, "data holds other values than numbers")
    try:
        with np.errstate(over="ignore"):  # becomes infinity, which the model refuses
            return np.array(flat, dtype).reshape(shape)
    except OverflowError:  # of an int
        raise RequestError(400, f"data holds a value that {datatype} cannot") from None


def _whole(flat: list[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if not set(map(type, flat)) <= {int}:
        raise RequestError(400, "data holds other values than whole numbers")
    bounds = np.iinfo(dtype)
    if min(flat) < bounds.min or max(flat) > bounds.max:
        raise RequestError(400, f"data holds a value outside {bounds.min}..{bounds.max}")
    return np.array(flat, dtype)


def _unnested(rows: list[Any], shape: tuple[int, ...]) -> list[Any]:
    if len(rows) != shape[0]:
        raise RequestError(400, f"data has {len(rows)} rows; its shape says {shape[0]}")
    for size in shape[1:]:
        if any(type(row) is not list or len(row) != size for row in rows):
            raise RequestError(400, f"data is neither flat nor nested as its shape {list(shape)} says")
        rows = list(chain.from_iterable(rows))
    return rows


def from_bytes(body: bytes, start: int, said: int, datatype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """The tensor that is all of ``body`` from ``start``, little-endian, row by row; a view of it.

    ``said`` is what the request gives as its size in bytes.

    Raises:
        RequestError: the sizes do not agree.
    """
    dtype = np.dtype(DATATYPES[datatype])
    needed, found = dtype.itemsize * math.prod(shape), len(body) - start
    if said != needed:
        raise RequestError(400, f"binary_data_size is {said}; shape and datatype say {needed}")
    if found != needed:
        raise RequestError(400, f"{found} bytes follow the JSON; binary_data_size says {needed}")
    return np.frombuffer(body, dtype, offset=start).reshape(shape)


def converted(x: NDArray[Any], port: Tensor) -> NDArray[Any]:
    """``x`` as the model takes it; beyond float32 becomes infinity, which the model refuses."""
    if x.dtype == port.dtype:
        return x
    with np.errstate(over="ignore"):
        return x.astype(port.dtype)
