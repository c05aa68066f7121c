"""Between our keys and python-tuf's metadata: sign, parse, verify. One key signs each role."""

from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from securesystemslib.signer import CryptoSigner, SSlibKey  # type: ignore[attr-defined]  # as below
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # type: ignore[attr-defined]  # it exports them without saying so
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError

from fedge.errors import ReleaseError, SetupError, SignatureError
from fedge.signing import SigningKey

__all__ = [
    "DelegatedRole",
    "Delegations",
    "Kind",
    "MetaFile",
    "Metadata",
    "Role",
    "Root",
    "Snapshot",
    "TargetFile",
    "Targets",
    "Timestamp",
]

Kind = TypeVar("Kind", Root, Snapshot, Targets, Timestamp)


def public_key(key: SigningKey) -> SSlibKey:
    """The public half, as TUF's metadata hold it."""
    return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(key.public))


def sign(content: Root | Snapshot | Targets | Timestamp, *keys: SigningKey) -> bytes:
    """The bytes of a metadata file.

    TUF signs the bare JSON. Whatever else fedge signs starts with a prefix that is no JSON
    (``fedge.signing``), so a signature of the one kind is never one of the other.
    """
    metadata: Metadata[Any] = Metadata(content)
    for key in keys:
        metadata.sign(CryptoSigner(key.private(), public_key(key)), append=True)
    return metadata.to_bytes()


def parse(kind: type[Kind], content: bytes, what: str) -> Metadata[Kind]:
    """Parse a metadata file; nothing about its signatures has been verified.

    Raises:
        ReleaseError: it is malformed, or of another kind.
    """
    try:
        found = Metadata[Any].from_bytes(content)
    except DeserializationError as error:
        raise ReleaseError(f"{what} is no TUF metadata: {error.__cause__ or error}") from error
    if not isinstance(found.signed, kind):
        raise ReleaseError(f"{what} is of type {found.signed.type!r:.40}, not {kind.type!r}")
    return found


def verify(delegator: Root | Targets, role: str, metadata: Metadata[Any], what: str) -> None:
    """Check that the keys that ``delegator`` names for ``role`` signed ``metadata``.

    Raises:
        SignatureError: they did not.
    """
    try:
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError) as error:
        raise SignatureError(f"{what} is not signed by the key that is trusted for {role}") from error


def check_trusted(delegator: Root | Targets, role: str, key: SigningKey) -> None:
    """Check that ``key`` is the one that signs ``role``.

    Raises:
        SetupError: it is not.
    """
    try:
        trusted = delegator.get_delegated_role(role).keyids
    except ValueError:
        trusted = []
    if public_key(key).keyid not in trusted:
        raise SetupError(f"this is not the key that the repository trusts for {role}")


def expiry(now: float, days: float) -> datetime:
    """``days`` after the Unix time ``now``, in UTC; whole seconds."""
    return (datetime.fromtimestamp(now, UTC) + timedelta(days=days)).replace(microsecond=0)
