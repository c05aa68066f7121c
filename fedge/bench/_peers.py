"""General coders to compare with: deflate, zstandard and constriction's entropy coder.

Only zlib is always there. What is missing is not measured, and is named in the result.
"""

import importlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedge.bench._entropy import Levels

_ZSTD_LEVELS = {"zstd": 3, "zstd_19": 19}
"""zlib and zstd at their defaults, which is how they are fast; zstd also at its shortest."""


@dataclass(frozen=True)
class Bytewise:
    """A lossless coder of bytes.

    Attributes:
        name: as in the result.
        compress: bytes to fewer.
        decompress: the way back.
    """

    name: str
    compress: Callable[[bytes], bytes]
    decompress: Callable[[bytes], bytes]


def bytewise() -> tuple[list[Bytewise], list[str]]:
    """The coders of bytes that are here, and a line for each that is not."""
    found = [Bytewise("zlib", zlib.compress, zlib.decompress)]
    if (zstd := _module("compression.zstd")) is not None:
        return [*found, *(_standard(zstd, name, level) for name, level in _ZSTD_LEVELS.items())], []
    if (package := _module("zstandard")) is not None:
        return [*found, *(_package(package, name, level) for name, level in _ZSTD_LEVELS.items())], []
    return found, ["zstd: needs Python 3.14 or the package zstandard"]


def _standard(zstd: Any, name: str, level: int) -> Bytewise:
    return Bytewise(name, lambda data: zstd.compress(data, level), zstd.decompress)


def _package(zstandard: Any, name: str, level: int) -> Bytewise:
    compress = zstandard.ZstdCompressor(level=level).compress
    return Bytewise(name, compress, zstandard.ZstdDecompressor().decompress)


@dataclass(frozen=True)
class Ideal:
    """constriction's range-ANS coder with the exact histogram, which is not counted as sent.

    Attributes:
        package: the module ``constriction``.
    """

    package: Any

    def encode(self, levels: Levels) -> bytes:
        """Levels ``[n]`` to 32-bit words."""
        symbols, model = self._model(levels)
        coder = self.package.stream.stack.AnsCoder()
        coder.encode_reverse(symbols, model)
        words: bytes = coder.get_compressed().astype("<u4").tobytes()
        return words

    def decode(self, payload: bytes, levels: Levels) -> Levels:
        """The same levels again; ``levels`` stands for the histogram that the receiver is given."""
        _, model = self._model(levels)
        coder = self.package.stream.stack.AnsCoder(np.frombuffer(payload, "<u4").astype(np.uint32))
        found: Levels = (coder.decode(model, len(levels)) + int(levels.min())).astype(np.int8)
        return found

    def _model(self, levels: Levels) -> tuple[Any, Any]:
        symbols = levels.astype(np.int32) - int(levels.min())
        shares = np.bincount(symbols, minlength=2) / len(symbols)
        return symbols, self.package.stream.model.Categorical(shares, perfect=False)


def ideal() -> tuple[Ideal | None, list[str]]:
    """constriction's coder, or ``None`` and a line that says so."""
    package = _module("constriction")
    return (
        (None, ["constriction: needs the package constriction"]) if package is None else (Ideal(package), [])
    )


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None
