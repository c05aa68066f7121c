"""What this machine's processor can do that matters to an int8 model."""

import functools
import os
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_FIRST = 1 << 14  # bytes of it that are read: the first core's lines
_X86 = ("x86_64", "amd64", "i386", "i686")
_EXACT = {"avx512_vnni", "avx_vnni", "amx_int8"}


@functools.cache
def adds_exactly(machine: str = "") -> bool:
    """Whether ONNX Runtime's quick kernels for uint8 times int8 are exact here.

    On x86 without VNNI they add two products in 16 bits, and clip what does not fit: 2 * 255 * 127 does not.
    ONNX Runtime has exact, slower kernels on demand. Where it cannot be told, they are taken for clipping.

    Args:
        machine: as ``uname`` calls it; by default this one.
    """
    if (machine or os.uname().machine).lower() not in _X86:
        return True
    try:
        with _CPUINFO.open("rb") as file:
            words = file.read(_FIRST).decode("ascii", "replace").split()
    except OSError:
        return False
    return not _EXACT.isdisjoint(words)
