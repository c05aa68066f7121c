"""The keys of a stock Flower SuperNode: ECDSA P-384 in OpenSSH's form, as ``flower-supernode`` takes them."""

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_public_key,
    load_ssh_public_key,
)

from fedge.errors import PayloadError

POINT_BYTES = 49
"""A public key as the registry holds it: a compressed point of P-384 (SEC 1, 2.3.3)."""
_MAX_BYTES = 4096


def new_node_key() -> tuple[bytes, bytes]:
    """A new key: what ``--auth-supernode-private-key`` reads, and the line that belongs to it in public."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return private, public + b"\n"


def point_of(public: bytes) -> bytes:
    """The 49 bytes of a public key, whichever of its two forms it comes in.

    Args:
        public: OpenSSH's one line, or the PEM that Flower sends and registers (``SubjectPublicKeyInfo``).

    Raises:
        PayloadError: it is neither, or a key on another curve.
    """
    problem = PayloadError("this is not the ECDSA P-384 public key of a Flower SuperNode")
    if len(public) > _MAX_BYTES:
        raise problem
    load = load_pem_public_key if public.startswith(b"-----BEGIN") else load_ssh_public_key
    try:
        key = load(public)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise problem from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise problem
    return key.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)


def flower_pem(point: bytes) -> bytes:
    """The form in which Flower registers and compares a public key: PEM of ``SubjectPublicKeyInfo``.

    Raises:
        PayloadError: ``point`` is no compressed point of P-384.
    """
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), point)
    except ValueError:
        raise PayloadError("this is no compressed point of P-384") from None
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
