"""A signing request: what a device that made its keys itself asks the operator to enrol.

It holds public keys only. The certificate request (PKCS 10) is signed by the TLS key and names the signing
key; an Ed25519 signature over the whole, made by the signing key, names the certificate request. So whoever
made the request holds both private keys, and neither half can be put into another request.
"""

from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from fedge.deploy import _json, pki
from fedge.deploy.stock_node import POINT_BYTES, flower_pem
from fedge.errors import PayloadError, SignatureError
from fedge.signing import PUBLIC_BYTES, SIGNATURE_BYTES, SigningKey, verify

MAX_REQUEST_BYTES = 16_384
_SCHEMA = 1
_PURPOSE = "signing request"


@dataclass(frozen=True, eq=False)
class SigningRequest:
    """A request whose signatures verify.

    Attributes:
        name: of the device.
        public: its TLS key.
        signing: its Ed25519 public key, 32 bytes.
        node: its stock node's public key, a compressed point of 49 bytes, if it has one.
    """

    name: str
    public: pki.PublicKey
    signing: bytes
    node: bytes | None


def write_request(name: str, key: pki.Key, signing: SigningKey, node: bytes | None) -> bytes:
    """The request of the device ``name``, as JSON.

    Raises:
        PayloadError: it is no name of a device.
    """
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, pki.check_name(name))])
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(_uri(signing.public))])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject).add_extension(names, False)
    csr = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    signature = signing.sign(_PURPOSE, name.encode(), csr, node or b"")
    return _json.encode(
        {
            "schema": _SCHEMA,
            "name": name,
            "certificate_request": csr.decode("ascii"),
            "signing": signing.public.hex(),
            "node": node.hex() if node else None,
            "signature": signature.hex(),
        }
    )


def parse_request(content: bytes) -> SigningRequest:
    """Read a request and check both signatures.

    Raises:
        PayloadError: it is no signing request, or exceeds a limit.
        SignatureError: a signature does not verify, or the two halves belong to different requests.
    """
    raw = _json.load(content, "the signing request", MAX_REQUEST_BYTES)
    _json.schema(raw, "the signing request", _SCHEMA)
    known = ("schema", "name", "certificate_request", "signing", "node", "signature")
    raw = _json.keys(raw, "the signing request", known)
    name = pki.check_name(_json.text(raw["name"], "name", 64))
    signing = _json.binary(raw["signing"], "signing", PUBLIC_BYTES)
    node = None if raw["node"] is None else _node(raw["node"])
    pem = _pem(raw["certificate_request"])
    signature = _json.binary(raw["signature"], "signature", SIGNATURE_BYTES)
    verify(signing, signature, _PURPOSE, name.encode(), pem, node or b"")
    return SigningRequest(name, _certificate_key(pem, name, signing), signing, node)


def _certificate_key(pem: bytes, name: str, signing: bytes) -> pki.PublicKey:
    problem = PayloadError("the signing request holds no certificate request (PKCS 10) of a fedge device")
    try:
        csr = x509.load_pem_x509_csr(pem)
        genuine = csr.is_signature_valid
        names: Any = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        common = [str(a.value) for a in csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        public = pki.public_of(csr.public_key())
    except pki.MALFORMED:
        raise problem from None
    if not genuine:
        raise SignatureError("the certificate request is not signed by its own key")
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if common != [name] or uris != [_uri(signing)]:
        raise SignatureError("the certificate request was made for another device or signing key")
    return public


def _node(raw: object) -> bytes:
    point = _json.binary(raw, "node", POINT_BYTES)
    flower_pem(point)
    return point


def _pem(raw: object) -> bytes:
    if not isinstance(raw, str) or not raw.isascii() or len(raw) > pki.MAX_PEM_BYTES:
        raise PayloadError("certificate_request must be PEM")
    return raw.encode("ascii")


def _uri(signing: bytes) -> str:
    return f"fedge:signing/{signing.hex()}"
