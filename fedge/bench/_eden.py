"""A one-bit quantizer in the style of EDEN, to compare with (Vargaftik et al. 2022, arXiv 2108.08842).

A randomised Hadamard transform makes the entries nearly Gaussian, whatever they were; one bit and one scale
a block is then the quantizer. The vector is cut into blocks of powers of two, so that hardly anything is
padded. The scale is the one of least squared error, mean |rotated| (their unbiased scale has the larger
error on a single vector). This is our own few lines, not the authors' code.

    for each block      float32 scale, then one bit an entry
"""

import numpy as np
from numpy.typing import NDArray

from fedge.seeding import derive

Vector = NDArray[np.float32]

_SMALLEST = 128
"""Shortest block; the last one is padded to it."""


def encode(vector: Vector, seed: int) -> bytes:
    """``[n]`` float32 to about ``n / 8`` bytes."""
    parts, at = [], 0
    for number, size in enumerate(blocks(len(vector))):
        block = np.zeros(size, np.float32)
        piece = vector[at : at + size]
        block[: len(piece)] = piece
        rotated = hadamard(block * _signs(size, seed, number))
        scale = np.abs(rotated).mean(dtype=np.float64)
        parts += [np.float32(scale).astype("<f4").tobytes(), np.packbits(rotated < 0).tobytes()]
        at += size
    return b"".join(parts)


def decode(payload: bytes, count: int, seed: int) -> Vector:
    """What ``encode`` coded, ``[count]``. For the benchmark's own payloads: nothing is checked."""
    parts, at = [np.zeros(0, np.float32)], 0
    for number, size in enumerate(blocks(count)):
        scale = np.frombuffer(payload, "<f4", 1, at)[0]
        bits = np.unpackbits(np.frombuffer(payload, np.uint8, size // 8, at + 4))
        rotated = np.where(bits, -scale, scale).astype(np.float32)
        parts.append(hadamard(rotated) * _signs(size, seed, number))
        at += 4 + size // 8
    return np.concatenate(parts)[:count]


def blocks(count: int) -> list[int]:
    """Powers of two, falling, that hold ``count`` entries with fewer than 128 to spare."""
    whole = -(-count // _SMALLEST) * _SMALLEST
    return [1 << bit for bit in range(whole.bit_length() - 1, -1, -1) if whole >> bit & 1]


def hadamard(x: Vector) -> Vector:
    """The orthonormal Walsh-Hadamard transform of ``[n]``, ``n`` a power of two; its own inverse."""
    n, half = len(x), 1
    while half < n:
        pairs = x.reshape(-1, 2, half)
        x = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1)
        half *= 2
    return x.reshape(n) * np.float32(n**-0.5)


def _signs(size: int, seed: int, block: int) -> Vector:
    random = np.random.default_rng(derive(seed, "eden", block))
    octets = np.frombuffer(random.bytes(size // 8), np.uint8)
    return np.unpackbits(octets).astype(np.float32) * 2 - 1
