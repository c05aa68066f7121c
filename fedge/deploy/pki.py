"""Keys and certificates of a federation. Nothing here reads or writes a file or knows the time.

A federation is its own certificate authority: ECDSA P-256 with SHA-256, X.509 version 3 as RFC 5280 profiles
it. A device's name is its certificate's common name and the URI ``fedge:FEDERATION/NAME`` in its subject
alternative name. The authority signs certificates of servers and devices and nothing below them.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedge.errors import PayloadError, SetupError

MAX_PEM_BYTES = 16_384
"""Largest certificate, key or signing request that is looked at; ours have about 1,000 bytes."""
FEDERATION_BYTES = 16
AUTHORITY_DAYS = 20 * 365
CERTIFICATE_DAYS = 2 * 365
_BACKDATED = timedelta(days=1)  # for a device whose clock is slow
_NAME = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,64}")
_HOST = re.compile(r"(?=.{1,253}\Z)(?!-)[A-Za-z0-9-]{1,63}(?<!-)(?:\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_URI = re.compile(r"fedge:([0-9a-f]{32})/(.{1,64})")

MALFORMED: tuple[type[Exception], ...] = (
    ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension,
    x509.ExtensionNotFound, x509.UnsupportedGeneralNameType,
)  # fmt: skip
"""What ``cryptography`` raises for bytes that are no certificate or request, or a strange one."""

Key = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey
Certificate = x509.Certificate


@dataclass(frozen=True, eq=False)
class Authority:
    """What signs: the authority's certificate and its private key, which is never printed."""

    certificate: x509.Certificate
    key: Key = field(repr=False)


@dataclass(frozen=True)
class Identity:
    """Whose certificate it is: the federation (32 hex digits), the device, and the SHA-256 of the DER."""

    federation: str
    name: str
    fingerprint: bytes


def check_name(name: str) -> str:
    """``name``, if a device may be called so.

    Raises:
        PayloadError: it has not 1 to 64 of ``A-Za-z0-9._-``, starts with a dot, or ends in ``.fedge``.
    """
    if not _NAME.fullmatch(name):
        rule = "1 to 64 of A-Z a-z 0-9 . _ -, the first no dot"
        raise PayloadError(f"{name!r:.80} is no name of a device: {rule}")
    if name.lower().endswith(".fedge"):
        raise PayloadError(f"{name!r} is no name of a device: .fedge ends the names of enrolment files")
    return name


def check_host(host: str) -> str:
    """``host``, if it is an IP address or could be the name of a host.

    Raises:
        PayloadError: it is neither.
    """
    if _is_address(host):
        return host
    looks_like_address = host.replace(".", "").isdigit()
    if looks_like_address or not _HOST.fullmatch(host):
        raise PayloadError(f"{host!r:.80} is neither the name of a host nor an IP address")
    return host


def new_key() -> Key:
    """A new private key for TLS (P-256)."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: Key) -> bytes:
    """A private key as PEM (PKCS 8), not encrypted."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def parse_key(pem: bytes, what: str) -> Key:
    """The P-256 private key in ``pem``.

    Raises:
        PayloadError: it is something else.
    """
    problem = PayloadError(f"{what} is not an unencrypted ECDSA P-256 private key in PEM")
    if len(pem) > MAX_PEM_BYTES:
        raise problem
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise problem from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise problem
    return key


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """A certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM)


def certificate_der(certificate: x509.Certificate) -> bytes:
    """A certificate as DER, as it travels in a handshake."""
    return certificate.public_bytes(Encoding.DER)


def parse_certificate(pem: bytes, what: str) -> x509.Certificate:
    """The one certificate in ``pem``, with a P-256 key.

    Raises:
        PayloadError: it is something else, or more.
    """
    problem = PayloadError(f"{what} is not one certificate in PEM with an ECDSA P-256 key")
    if len(pem) > MAX_PEM_BYTES or pem.count(b"-----BEGIN ") != 1:
        raise problem
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        public_of(certificate.public_key())
        _ = certificate.extensions
    except PayloadError:
        raise problem from None
    except MALFORMED:
        raise problem from None
    return certificate


def public_of(key: object) -> PublicKey:
    """``key``, if it is a P-256 public key.

    Raises:
        PayloadError: it is another kind of key.
    """
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise PayloadError("the key is not an ECDSA P-256 key")
    return key


def fingerprint(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the certificate's DER: 32 bytes."""
    return certificate.fingerprint(hashes.SHA256())


def identity(der: bytes) -> Identity:
    """Whose device certificate ``der`` is, as ``ssl.SSLObject.getpeercert(True)`` gives it.

    Who signed it is not looked at: the TLS handshake has done that.

    Raises:
        PayloadError: it is no certificate, or not a device's.
    """
    problem = PayloadError("this is not the certificate of a fedge device")
    if len(der) > MAX_PEM_BYTES:
        raise problem
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        common = [str(a.value) for a in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    except MALFORMED:
        raise problem from None
    match = _URI.fullmatch(uris[0]) if len(uris) == 1 else None
    if match is None or common != [match[2]]:
        raise problem
    return Identity(match[1], check_name(match[2]), hashlib.sha256(der).digest())


def new_authority(federation: str, now: float) -> Authority:
    """A new authority for the federation (32 hex digits); ``now`` in Unix seconds."""
    key = new_key()
    subject = _subject(f"fedge {federation}")
    builder = _builder(key.public_key(), subject, subject, now, AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(authority=True), critical=True)
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own), False
    )
    return Authority(builder.sign(key, hashes.SHA256()), key)


def issue_server(
    authority: Authority, public: PublicKey, names: Sequence[str], now: float, days: int
) -> x509.Certificate:
    """A certificate for a server that is reached by ``names``: hosts and IP addresses."""
    found = [x509.IPAddress(ip_address(n)) if _is_address(n) else x509.DNSName(n) for n in names]
    subject = _subject(names[0] if len(names[0]) <= 64 else "fedge server")
    return _issue(authority, public, subject, found, ExtendedKeyUsageOID.SERVER_AUTH, now, days)


def issue_device(
    authority: Authority, public: PublicKey, federation: str, name: str, now: float, days: int
) -> x509.Certificate:
    """A certificate for the device ``name``, valid from a day before ``now`` for ``days``."""
    uri = x509.UniformResourceIdentifier(f"fedge:{federation}/{check_name(name)}")
    return _issue(authority, public, _subject(name), [uri], ExtendedKeyUsageOID.CLIENT_AUTH, now, days)


def check_certificate(certificate: x509.Certificate, issuer: x509.Certificate, now: float, what: str) -> None:
    """Check that ``issuer`` signed the certificate and that ``now`` (Unix seconds) is within its dates.

    Raises:
        SetupError: another authority signed it, it has expired, or is not valid yet.
    """
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        message = f"{what} was not signed by this federation's authority; is it from another federation?"
        raise SetupError(message) from None
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    clock = datetime.fromtimestamp(now, UTC)
    if clock < start:
        hint = "is the clock of this machine wrong?"
        raise SetupError(f"{what} is valid only from {_day(start)}, and it is {_day(clock)} here: {hint}")
    if clock > end:
        hint = "renew it, or set this machine's clock"
        raise SetupError(f"{what} expired on {_day(end)}, and it is {_day(clock)} here: {hint}")


def check_pair(certificate: x509.Certificate, key: Key, what: str) -> None:
    """Check that the private key belongs to the certificate.

    Raises:
        SetupError: it belongs to another one.
    """
    if certificate.public_key() != key.public_key():
        raise SetupError(f"{what} does not belong to its private key; were files of two devices mixed?")


def days_left(certificate: x509.Certificate, now: float) -> float:
    """Days until the certificate expires; negative once it has."""
    return (certificate.not_valid_after_utc.timestamp() - now) / 86_400


def _issue(
    authority: Authority,
    public: PublicKey,
    subject: x509.Name,
    names: Sequence[x509.GeneralName],
    purpose: x509.ObjectIdentifier,
    now: float,
    days: int,
) -> x509.Certificate:
    if days_left(authority.certificate, now) < days:
        left = max(0, int(days_left(authority.certificate, now)))
        raise SetupError(f"{days} days are more than this federation's authority has left: {left}")
    issuer = authority.certificate
    builder = _builder(public, subject, issuer.subject, now, days)
    above = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    above_id = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(above)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(authority=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.add_extension(above_id, critical=False).sign(authority.key, hashes.SHA256())


def _builder(
    public: PublicKey, subject: x509.Name, issuer: x509.Name, now: float, days: int
) -> x509.CertificateBuilder:
    start = datetime.fromtimestamp(int(now), UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(start - _BACKDATED).not_valid_after(start + timedelta(days=days))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _is_address(host: str) -> bool:
    try:
        return not getattr(ip_address(host), "scope_id", None)
    except ValueError:
        return False


def _day(when: datetime) -> str:
    return f"{when:%Y-%m-%d %H:%M} UTC"
