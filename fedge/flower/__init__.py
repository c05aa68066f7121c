"""Between Flower's messages and fedge's frames, and compression for any Flower app.

Flower's public API only. ``Compressed`` and ``compression_mod`` are imported when they are first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedge.flower.compress_mod import compression_mod
    from fedge.flower.compression import Compressed

__all__ = ["Compressed", "compression_mod"]


def __getattr__(name: str) -> Any:
    """Import on first use: a client app needs no strategies, and a server app no mod."""
    if name == "Compressed":
        from fedge.flower.compression import Compressed

        return Compressed
    if name == "compression_mod":
        from fedge.flower.compress_mod import compression_mod

        return compression_mod
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
