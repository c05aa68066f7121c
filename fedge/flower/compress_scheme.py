"""What both ends of a compressed Flower app agree on: which arrays there are, and how each way is coded.

Floating-point arrays are *coded*: as float32, by one of ``fedge.codec``. All other arrays (BatchNorm's
counters) and the float arrays that the server names (BatchNorm's running statistics, which must not become
negative) are *exact*: their bytes travel as they are, deflated.
"""

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedge import plugins
from fedge.codec import Codec, Limits
from fedge.errors import ConfigError, PayloadError

Named = Mapping[str, NDArray[Any]]
"""An app's arrays, in the app's own dtypes."""

Coded = dict[str, NDArray[np.float32]]
"""The coded ones among them, as float32."""

LARGEST = float(np.finfo(np.float32).max)
"""The limit on magnitudes where there is none but float32's own."""

_CODED = ("float16", "float32", "float64")
_EXACT = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_LARGEST_TEXT = 1 << 22
_LARGEST_PAYLOAD = 1 << 30


@dataclass(frozen=True)
class Coding:
    """A codec by name, with its settings."""

    codec: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def build(self, **changed: Any) -> Codec:
        """The codec; settings in ``changed`` that it has replace its own.

        Raises:
            ConfigError: no such codec or setting, or a setting that is out of range.
        """
        module = plugins.load("codec", self.codec)
        known = [f.name for f in fields(module.Settings)]
        for key in self.settings:
            if key not in known:
                nearest = plugins.nearest(key, known)
                raise ConfigError(f"codec {self.codec!r} has no setting {key!r}; {nearest}")
        try:
            settings = module.Settings(**self.settings)
            settings = replace(settings, **{k: v for k, v in changed.items() if k in known})
        except (ValueError, TypeError) as error:
            raise ConfigError(f"codec {self.codec!r}: {error}") from None
        codec: Codec = module.build(settings)
        return codec


@dataclass(frozen=True)
class Entry:
    """One array: its name, dtype (as NumPy names it), shape, and whether it travels exactly."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    exact: bool

    @property
    def size(self) -> int:
        """Values in it."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Scheme:
    """The arrays in order, and the codecs of both ways."""

    entries: tuple[Entry, ...]
    uplink: Coding
    downlink: Coding

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the coded arrays."""
        return {e.name: e.shape for e in self.entries if not e.exact}

    @cached_property
    def values(self) -> int:
        """Values of the coded arrays."""
        return sum(e.size for e in self.entries if not e.exact)

    @cached_property
    def plain_bytes(self) -> int:
        """Bytes of all values, uncompressed."""
        return sum(e.size * np.dtype(e.dtype).itemsize for e in self.entries)

    @cached_property
    def exact_bytes(self) -> int:
        """Bytes of the exact arrays."""
        return sum(e.size * np.dtype(e.dtype).itemsize for e in self.entries if e.exact)

    def limits(self, max_abs: float) -> Limits:
        """What may come out of a payload; at most 8 bytes a value may go in."""
        return Limits(self.shapes, min(_LARGEST_PAYLOAD, 1024 + 8 * self.values), max_abs)

    def split(self, arrays: Named) -> tuple[Coded, bytes]:
        """The coded arrays as float32, and the bytes of the exact ones.

        A strategy's mean of integers is no integer: it is rounded back to the dtype that the array had first.

        Raises:
            PayloadError: other names or shapes, or values that are not finite.
        """
        if set(arrays) != {e.name for e in self.entries}:
            odd = sorted(set(arrays) ^ {e.name for e in self.entries})
            raise PayloadError(f"arrays do not have the names that they had first: {', '.join(odd[:5])}")
        for e in self.entries:
            if arrays[e.name].shape != e.shape:
                found = arrays[e.name].shape
                raise PayloadError(f"array {e.name!r} has shape {found}; it had {e.shape} first")
            if not np.isfinite(arrays[e.name]).all():
                raise PayloadError(f"array {e.name!r} has values that are not finite (infinite or NaN)")
        exact = b"".join(_raw(arrays[e.name], e.dtype) for e in self.entries if e.exact)
        return {name: _float32(name, arrays[name]) for name in self.shapes}, exact

    def join(self, coded: Coded, exact: bytes) -> dict[str, NDArray[Any]]:
        """The app's arrays again, in order and in the dtypes that they had first: the inverse of ``split``.

        Raises:
            PayloadError: ``exact`` has another length, or holds values that are not finite.
        """
        arrays = self.read_exact(exact)
        with np.errstate(over="ignore"):  # float16: beyond its range is infinite, as in any cast
            arrays |= {e.name: coded[e.name].astype(e.dtype) for e in self.entries if not e.exact}
        return {e.name: arrays[e.name] for e in self.entries}

    def read_exact(self, exact: bytes) -> dict[str, NDArray[Any]]:
        """The exact arrays.

        Raises:
            PayloadError: ``exact`` has another length, or holds values that are not finite.
        """
        if len(exact) != self.exact_bytes:
            raise PayloadError(f"exact arrays have {len(exact)} bytes; expected {self.exact_bytes}")
        arrays, at = {}, 0
        for e in (e for e in self.entries if e.exact):
            little = np.dtype(e.dtype).newbyteorder("<")
            flat = np.frombuffer(exact, little, e.size, at)
            arrays[e.name], at = flat.astype(e.dtype).reshape(e.shape), at + flat.nbytes
            if not np.isfinite(flat).all():
                raise PayloadError(f"array {e.name!r} has values that are not finite (infinite or NaN)")
        return arrays

    def to_bytes(self) -> bytes:
        """Deflated JSON."""
        text = {
            "arrays": [[e.name, e.dtype, e.shape, e.exact] for e in self.entries],
            "uplink": [self.uplink.codec, dict(self.uplink.settings)],
            "downlink": [self.downlink.codec, dict(self.downlink.settings)],
        }
        return zlib.compress(json.dumps(text, separators=(",", ":")).encode(), 9)


def scheme_of(arrays: Named, exact: tuple[str, ...], uplink: Coding, downlink: Coding) -> Scheme:
    """The scheme for an app's arrays; float arrays whose names match a pattern of ``exact`` are exact.

    Raises:
        ConfigError: an array has a dtype that is neither.
    """
    entries = []
    for name, array in arrays.items():
        dtype = array.dtype.name
        if dtype not in _CODED + _EXACT:
            raise ConfigError(f"array {name!r} has dtype {dtype}, which cannot be compressed")
        stays = dtype not in _CODED or any(fnmatchcase(name, pattern) for pattern in exact)
        entries.append(Entry(name, dtype, tuple(array.shape), stays))
    return Scheme(tuple(entries), uplink, downlink)


def parse_scheme(content: bytes, max_values: int) -> Scheme:
    """The inverse of ``Scheme.to_bytes``.

    Raises:
        PayloadError: not a scheme, or arrays of more than ``max_values`` values together.
    """
    try:
        text = json.loads(inflate(content, _LARGEST_TEXT))
        entries = tuple(_entry(*row) for row in text["arrays"])
        up, down = (
            Coding(str(name), dict(settings)) for name, settings in (text["uplink"], text["downlink"])
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise PayloadError(f"not a scheme of compression: {error}") from None
    if len({e.name for e in entries}) != len(entries):
        raise PayloadError("a scheme of compression names an array twice")
    if sum(e.size for e in entries) > max_values:
        raise PayloadError(f"a model has more than {max_values} values; raise max_values if that is right")
    return Scheme(entries, up, down)


def inflate(content: bytes, most: int) -> bytes:
    """What was deflated, if it is no longer than ``most`` bytes.

    Raises:
        PayloadError: not deflated bytes, or longer.
    """
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(content, most + 1)
    except zlib.error as error:
        raise PayloadError(f"not deflated bytes: {error}") from None
    if len(data) > most or not stream.eof or stream.unused_data:
        raise PayloadError(f"deflated bytes are truncated, or more than {most}")
    return data


def encode(codec: Codec, state: Any, arrays: Coded) -> tuple[Any, bytes]:
    """The codec's next state and payload; a model without coded arrays has an empty one."""
    return codec.encode(state, arrays) if any(a.size for a in arrays.values()) else (state, b"")


def decode(codec: Codec, payload: bytes, limits: Limits) -> Coded:
    """The inverse of ``encode``.

    Raises:
        PayloadError: not such a payload.
    """
    if any(math.prod(shape) for shape in limits.shapes.values()):
        return codec.decode(payload, limits)
    if payload:
        raise PayloadError("a payload came for a model that has nothing to code")
    return {name: np.zeros(shape, np.float32) for name, shape in limits.shapes.items()}


def _entry(name: Any, dtype: Any, shape: Any, exact: Any) -> Entry:
    known = dtype in _EXACT or dtype in _CODED
    if not (isinstance(name, str) and known and isinstance(exact, bool) and len(shape) <= 32):
        raise ValueError("an array's description is malformed")
    if not all(type(n) is int and 0 <= n < 2**31 for n in shape) or (dtype in _EXACT and not exact):
        raise ValueError("an array's shape or dtype is out of range")
    return Entry(name, dtype, tuple(shape), exact)


def _float32(name: str, array: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise PayloadError(f"array {name!r} has values beyond the range of float32")
    return narrow


def _raw(array: NDArray[Any], dtype: str) -> bytes:
    target = np.dtype(dtype)
    whole = target.kind in "iu" and array.dtype.kind == "f"
    return (np.rint(array) if whole else array).astype(target.newbyteorder("<")).tobytes()
