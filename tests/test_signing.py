import os
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import SetupError, SignatureError
from fedge.signing import SigningKey, fingerprint, load_key, save_key, signed_bytes, verify

KEY = SigningKey.from_seed(bytes(range(32)))

# RFC 8032, section 7.1, tests 1 to 3: secret key, public key, message, signature.
RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
        "387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
        "4a7c15e9716ed28dc027beceea1ec40a",
    ),
]


@pytest.mark.parametrize(("seed", "public", "message", "signature"), RFC_8032)
def test_keys_are_those_of_rfc_8032(seed: str, public: str, message: str, signature: str) -> None:
    key = SigningKey.from_seed(bytes.fromhex(seed))
    assert key.public.hex() == public
    assert key._key.sign(bytes.fromhex(message)).hex() == signature


def test_signature_is_plain_ed25519_over_the_documented_encoding() -> None:
    encoding = b"fedge-signed-1\0" + b"\x03\0\0\0"
    for part in (b"update", b"ab", b""):
        encoding += len(part).to_bytes(8, "little") + part
    signature = KEY.sign("update", b"ab", b"")
    assert len(signature) == 64
    Ed25519PublicKey.from_public_bytes(KEY.public).verify(signature, encoding)


fields = st.tuples(st.text(max_size=4), st.lists(st.binary(max_size=4), max_size=4))


@given(fields, fields)
def test_different_tuples_never_sign_the_same_bytes(
    one: tuple[str, list[bytes]], other: tuple[str, list[bytes]]
) -> None:
    same = signed_bytes(one[0], *one[1]) == signed_bytes(other[0], *other[1])
    assert same == (one == other)


@pytest.mark.parametrize(
    ("purpose", "parts"),
    [
        ("release", (b"ab", b"c")),  # another purpose
        ("update", (b"a", b"bc")),  # a byte moved over the border
        ("update", (b"abc",)),
        ("update", (b"ab", b"c", b"")),
        ("update", (b"c", b"ab")),
    ],
)
def test_signature_is_refused_for_anything_else(purpose: str, parts: tuple[bytes, ...]) -> None:
    signature = KEY.sign("update", b"ab", b"c")
    verify(KEY.public, signature, "update", b"ab", b"c")
    with pytest.raises(SignatureError, match="does not verify"):
        verify(KEY.public, signature, purpose, *parts)


def test_every_flipped_bit_of_a_signature_is_refused() -> None:
    signature = KEY.sign("update", b"x")
    for bit in range(512):
        broken = bytearray(signature)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SignatureError):
            verify(KEY.public, bytes(broken), "update", b"x")


def test_malleable_signature_is_refused() -> None:
    order = 2**252 + 27742317777372353535851937790883648493
    signature = KEY.sign("update", b"x")
    s = int.from_bytes(signature[32:], "little") + order
    with pytest.raises(SignatureError):
        verify(KEY.public, signature[:32] + s.to_bytes(32, "little"), "update", b"x")


@given(st.binary(max_size=70), st.binary(max_size=40))
def test_garbage_keys_and_signatures_raise_signature_error_only(signature: bytes, public: bytes) -> None:
    with pytest.raises(SignatureError):
        verify(public, signature, "update", b"x")
    with pytest.raises(SignatureError):
        verify(KEY.public, signature, "update", b"x")


def test_wrong_key_is_refused() -> None:
    with pytest.raises(SignatureError):
        verify(SigningKey.generate().public, KEY.sign("update", b"x"), "update", b"x")


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_seed_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        SigningKey.from_seed(bytes(size))


def test_private_key_never_shows_in_a_repr() -> None:
    assert repr(KEY) == f"SigningKey({fingerprint(KEY.public)})"


def test_key_file_round_trip_is_private_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    old = os.umask(0)
    try:
        save_key(KEY, path)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_key(path).public == KEY.public


def test_existing_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    save_key(KEY, path)
    with pytest.raises(SetupError, match="never overwritten"):
        save_key(SigningKey.generate(), path)
    assert load_key(path).public == KEY.public


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o644])
def test_key_open_to_others_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key.pem"
    save_key(KEY, path)
    path.chmod(mode)
    with pytest.raises(SetupError, match="chmod 600"):
        load_key(path)


def _pem_of_another_kind() -> bytes:
    key = generate_private_key(SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize("content", [b"", b"hello", b"\0" * 9000, _pem_of_another_kind()])
def test_file_that_is_no_ed25519_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key.pem"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(SetupError, match="Ed25519"):
        load_key(path)


def test_missing_file_and_missing_folder_are_the_users_errors(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="cannot read"):
        load_key(tmp_path / "none.pem")
    with pytest.raises(SetupError, match="cannot write"):
        save_key(KEY, tmp_path / "none" / "key.pem")


def test_unfinished_key_file_is_taken_away_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SetupError, match="No space left"):
        save_key(KEY, tmp_path / "key.pem")
    assert list(tmp_path.iterdir()) == []


def test_key_file_is_what_openssl_reads(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    save_key(KEY, path)
    try:
        done = subprocess.run(
            ["openssl", "pkey", "-in", path, "-pubout", "-outform", "DER"], capture_output=True, check=True
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("no openssl here that knows Ed25519")
    assert done.stdout[-32:] == KEY.public
