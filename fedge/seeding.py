"""Random numbers that depend on what they are for, never on what was drawn before."""

import hashlib


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose: the same words always give the same number.

    So a round that is run again, or in another order, draws what it drew the first time.
    """
    text = "\x1f".join(str(word) for word in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def derive_bytes(seed: int, *purpose: str | int) -> bytes:
    """32 bytes for one purpose, as ``derive``."""
    text = "\x1f".join(str(word) for word in (seed, *purpose))
    return hashlib.blake2b(text.encode(), digest_size=32).digest()
