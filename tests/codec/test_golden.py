"""Payloads that pin the format: whoever changes one must change ``VERSION`` or a codec's number with it."""

import zlib
from collections.abc import Mapping

import numpy as np
import pytest

from fedge.codec import Limits

from .cases import Named, flat, limits, make

ARRAYS: Named = {
    "w": (np.arange(-20, 20).astype(np.float32) ** 3 / np.float32(8192)).reshape(8, 5),
    "b": np.array([0.5, -0.25, 0, 2, -1e-3], np.float32),
    "s": np.array(1.5, np.float32),
}

# Codec, settings, its second payload for ARRAYS, and the CRC-32 of the float32 values in it, little-endian.
GOLDEN = [
    (
        "raw",
        {},
        "2000007abf005856bf004036bf008819bf000000bf00f0d2be0080abbe005089be000058be006026be0000fabd0040b6bd000080bd00802bbd0000d8bc00007abc000000bc000058bb000080ba000000b900000000000000390000803a0000583b0000003c00007a3c0000d83c00802b3d0000803d0040b63d0000fa3d0060263e0000583e0050893e0080ab3e00f0d23e0000003f0088193f0040363f0058563f0000003f000080be00000000000000406f1283ba0000c03f65c58a21",
        0x7EDB3CF3,
    ),
    (
        "float16",
        {},
        "21d0bbb2bab2b9ccb800b897b65cb54bb4c0b233b1d0afb2ad00ac5ca9c0a6d0a300a0c09a00940088000000080014c01a0020d023c0265c29002cb22dd02f3331c0324b345c3597360038cc38b239b23a003800b4000000401894003e71d730cd",
        0xC5B8476D,
    ),
    ("ternary", {"share": 0.2}, "2212447ff01f23057c00c35f6978", 0xC4A86124),
    ("ternary", {"share": 0.01}, "220280805a9e1fd41d", 0xD6B94123),
    (
        "quantized",
        {},
        "232201fc7801003f96e0217db77c118202003204ec04a313974824b862636b73c1fbde9aadf24b0e",
        0x8A0ECCE2,
    ),
    ("quantized", {"bits": 2}, "231001fc78807f807fd40fa80c8ee9bb34b976cf3f598f", 0x6D3FB381),
    (
        "quantized",
        {"bits": 8},
        "232601fc600803ffdfc0a40e29800d798378da80d226c887078dd00f6296ff1d10a5feac7f30be40a350955856de63666eec01f318f8be67de2123c9727e8d12",
        0xC4B3909D,
    ),
    (
        "quantized",
        {"bits": 3, "stochastic": True, "seed": 7},
        "231101fc5d70557e007ebf87d302f5099e243e361ea8ed71481d93d8915c",
        0x1556F78F,
    ),
    (
        "quantized",
        {"budget_bytes": 40},
        "232b01fc75c06d27d04083039c003b05448eac264aac5b49f9e77df51676cdb2bd3f30ed",
        0xFE72DF68,
    ),
    ("subspace", {}, "2400012ede7b3bb5a9968777878887778787788777777699aa44a6808120ceceb2", 0xBD413AF8),
    ("subspace", {"dimensions": 5, "seed": 300}, "24ac0201050279f88880d2279fff", 0xD56E447F),
]


@pytest.mark.parametrize(("name", "knobs", "payload", "decoded"), GOLDEN)
def test_the_format_is_what_it_was(
    name: str, knobs: Mapping[str, object], payload: str, decoded: int
) -> None:
    codec = make(name, **knobs)
    state, _ = codec.encode(codec.init({k: v.shape for k, v in ARRAYS.items()}), ARRAYS)
    assert codec.encode(state, ARRAYS)[1].hex() == payload
    values = flat(codec.decode(bytes.fromhex(payload), limits(ARRAYS)))
    assert zlib.crc32(values.astype("<f4").tobytes()) == decoded


def test_a_payload_written_by_hand_decodes() -> None:
    """Two entries of five, 1.5 each, the second negative; from the text of docs/wire-format.md."""
    shapes = {"a": (5,)}
    # 2 entries, not split; 1.5 as 16 bits is 0x7f80; divisor round(ln 2 * 5 / 2) = 2: gaps 1 and 1 have the
    # quotients 0 and 0 (bits 1 1), no leading bits, last bits 1 1; signs 0 1; zeros.
    body = bytes([1 << 5 | 2, 2 << 1, 0x80, 0x7F, 0b11110100])
    expected_shapes = zlib.crc32(b'[["a"],[[5]]]')
    payload = body + zlib.crc32(body, expected_shapes).to_bytes(4, "little")
    assert make("ternary").decode(payload, Limits(shapes, 100))["a"].tolist() == [0, 1.5, 0, -1.5, 0]
