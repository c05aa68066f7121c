"""``_container``: what is not sealed as it should be is never read."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.codec._container import OVERHEAD, Reader, seal, unseal, varint
from fedge.errors import PayloadError


@given(st.binary(max_size=50), st.integers(0, 31), st.integers(0, 2**32 - 1))
def test_what_is_sealed_is_unsealed(body: bytes, number: int, digest: int) -> None:
    payload = seal(number, body, digest)
    assert len(payload) == len(body) + OVERHEAD
    assert unseal(payload, number, digest, len(payload)).rest() == body


def test_the_checksum_is_the_published_crc_32() -> None:
    """The check value of CRC-32/ISO-HDLC: 0xCBF43926 for the nine digits."""
    assert zlib.crc32(b"123456789") == 0xCBF43926
    payload = seal(3, b"123456789", 0)
    assert payload[-4:] == zlib.crc32(payload[:-4]).to_bytes(4, "little")


def test_another_version_codec_or_model_is_refused_by_name() -> None:
    payload = seal(3, b"body", 17)
    newer = bytes([payload[0] + 32]) + payload[1:]
    for broken, number, digest, words in (
        (newer, 3, 17, "format version 2"),
        (payload, 4, 17, "codec number 3; expected 4"),
        (payload, 3, 18, "other names or shapes"),
        (payload[:4], 3, 17, "4 bytes"),
        (b"", 3, 17, "0 bytes"),
    ):
        with pytest.raises(PayloadError, match=words):
            unseal(broken, number, digest, 100)


@given(st.integers(0, 2**64 - 1))
def test_varints_come_back_in_as_few_bytes_as_their_bits_need(value: int) -> None:
    data = varint(value)
    reader = Reader(data)
    assert reader.varint(2**64 - 1) == value
    assert reader.left == 0
    assert len(data) == max(1, -(-value.bit_length() // 7))


def test_varints_of_the_published_examples() -> None:
    """Wikipedia, LEB128: 624485 is E5 8E 26; protocol buffers: 300 is AC 02."""
    assert varint(624485).hex() == "e58e26"
    assert varint(300).hex() == "ac02"


@pytest.mark.parametrize("data", ["80", "8000", "ff00", "ffffffffffffffffffff01", "80808080808080808080", ""])
def test_padded_endless_and_cut_off_varints_are_refused(data: str) -> None:
    with pytest.raises(PayloadError):
        Reader(bytes.fromhex(data)).varint(2**64 - 1)


def test_a_number_above_what_is_accepted_is_refused() -> None:
    assert Reader(varint(300)).varint(300) == 300
    with pytest.raises(PayloadError, match="above 299"):
        Reader(varint(300)).varint(299)


def test_reading_past_the_end_and_leaving_something_are_refused() -> None:
    reader = Reader(b"abc")
    assert reader.take(2) == b"ab"
    with pytest.raises(PayloadError, match="2 bytes expected, 1 left"):
        reader.take(2)
    with pytest.raises(PayloadError, match="1 trailing"):
        reader.end()
