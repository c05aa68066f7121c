"""Ed25519 signatures (RFC 8032) with domain separation, and the file a private key lives in.

What is signed is never a bare payload but an encoding of a purpose and some parts, each with its
length in front. So a signature made for one purpose verifies for no other, and no two different
tuples of parts sign the same bytes.
"""

import hashlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from fedge.errors import SetupError, SignatureError

PUBLIC_BYTES = 32
SIGNATURE_BYTES = 64
_SEED_BYTES = 32
_PEM_BYTES = 4096  # an Ed25519 key is 119 bytes of PEM; more than this is not one
_MAGIC = b"fedge-signed-1\0"


@dataclass(frozen=True, eq=False)
class SigningKey:
    """A private Ed25519 key. It is never printed: its ``repr`` shows the public half only."""

    _key: Ed25519PrivateKey = field(repr=False)

    @staticmethod
    def generate() -> "SigningKey":
        """A new key from the operating system's random numbers."""
        return SigningKey(Ed25519PrivateKey.generate())

    @staticmethod
    def from_seed(seed: bytes) -> "SigningKey":
        """The key of a 32-byte seed (RFC 8032, 5.1.5). For tests and simulations.

        Raises:
            ValueError: the seed has another length.
        """
        if len(seed) != _SEED_BYTES:
            raise ValueError(f"an Ed25519 seed has {_SEED_BYTES} bytes, not {len(seed)}")
        return SigningKey(Ed25519PrivateKey.from_private_bytes(seed))

    @property
    def public(self) -> bytes:
        """The public key: 32 bytes."""
        return self._key.public_key().public_bytes_raw()

    def pem(self) -> bytes:
        """The private key, unencrypted, as PEM (PKCS 8): what its file holds."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def private(self) -> Ed25519PrivateKey:
        """The key itself, for a library that signs by rules of its own (TUF)."""
        return self._key

    def sign(self, purpose: str, *parts: bytes) -> bytes:
        """A signature of 64 bytes over ``purpose`` and ``parts``, in that order."""
        return self._key.sign(signed_bytes(purpose, *parts))

    def __repr__(self) -> str:
        """The public half's fingerprint."""
        return f"SigningKey({fingerprint(self.public)})"


def verify(public: bytes, signature: bytes, purpose: str, *parts: bytes) -> None:
    """Check that the owner of ``public`` (32 bytes) signed ``parts`` for ``purpose``.

    Raises:
        SignatureError: the signature does not verify, or it or the public key is malformed.
    """
    if len(public) != PUBLIC_BYTES:
        raise SignatureError(f"a public key has {PUBLIC_BYTES} bytes, not {len(public)}")
    if len(signature) != SIGNATURE_BYTES:
        raise SignatureError(f"a signature has {SIGNATURE_BYTES} bytes, not {len(signature)}")
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, signed_bytes(purpose, *parts))
    except (InvalidSignature, ValueError) as error:
        who = fingerprint(public)
        raise SignatureError(f"the signature of this {purpose} does not verify with key {who}") from error


def signed_bytes(purpose: str, *parts: bytes) -> bytes:
    """The bytes that are signed: injective in ``(purpose, *parts)``.

    A fixed prefix, the number of fields (4 bytes), then the purpose (UTF-8) and each part with its
    length (8 bytes) in front; all numbers little-endian.
    """
    fields = (purpose.encode(), *parts)
    pieces = [_MAGIC, len(fields).to_bytes(4, "little")]
    for content in fields:
        pieces += [len(content).to_bytes(8, "little"), content]
    return b"".join(pieces)


def fingerprint(public: bytes) -> str:
    """A short name of a public key for people: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(public).hexdigest()[:16]


def save_key(key: SigningKey, path: Path) -> None:
    """Write ``key`` to a new file as PEM (PKCS 8), readable by its owner only (mode 0600).

    Raises:
        SetupError: the file exists already, or it cannot be written.
    """
    pem = key.pem()
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        message = f"{path} exists; a private key is never overwritten: move it away first"
        raise SetupError(message) from error
    except OSError as error:
        raise SetupError(f"cannot write the private key {path}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        raise SetupError(f"cannot write the private key {path}: {error.strerror}") from error


def load_key(path: Path) -> SigningKey:
    """Read a private key that :func:`save_key` (or ``openssl genpkey -algorithm ed25519``) wrote.

    Raises:
        SetupError: no such file, others than its owner may read or write it, or it is no
            unencrypted Ed25519 key in PEM.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            pem = file.read(_PEM_BYTES + 1)
    except OSError as error:
        raise SetupError(f"cannot read the private key {path}: {error.strerror}") from error
    if mode & 0o077:
        raise SetupError(f"{path} is open to others (mode {mode:04o}); make it yours alone: chmod 600 {path}")
    return SigningKey(_parse_pem(pem, path))


def _parse_pem(pem: bytes, path: Path) -> Ed25519PrivateKey:
    problem = SetupError(f"{path} is not an unencrypted Ed25519 private key in PEM (PKCS 8)")
    if len(pem) > _PEM_BYTES:
        raise problem
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise problem from error
    if not isinstance(key, Ed25519PrivateKey):
        raise problem
    return key
