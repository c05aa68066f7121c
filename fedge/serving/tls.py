"""TLS between clients and servers of inference, from PEM files or from an enrolment bundle.

With a bundle both ends are members of one federation: each shows its certificate, and each checks that the
other's was signed by the federation's own authority. Such a certificate names a device and no host, so the
name of the host is not looked at: any member may answer. A client from elsewhere wants a certificate for the
host, which ``--tls-cert`` gives.
"""

import ssl
import stat
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from fedge.errors import RefusedError, SetupError

_AUTHORITY = "ca.pem"
_PAIRS = (("server.pem", "server.key"), ("client.pem", "client.key"))
_MAX_PEM_BYTES = 65_536


def server_context(certificate: Path, key: Path, client_authority: Path | None) -> ssl.SSLContext:
    """The server's end; with ``client_authority``, clients must show a certificate that it has signed.

    Raises:
        SetupError: a file is missing, damaged or open to others, or they do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load(context, certificate, key)
    if client_authority is not None:
        _trust(context, client_authority)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def bundle_server(bundle: Path) -> ssl.SSLContext:
    """The server's end, from a device's bundle or the ``server`` folder of a federation.

    Raises:
        SetupError: as for :func:`server_context`.
    """
    return server_context(*_pair(bundle), bundle / _AUTHORITY)


class Peer:
    """The client's end: what to wrap a socket with, and what to ask of who answers."""

    def __init__(self, bundle: Path | None, authority: Path | None) -> None:
        """With ``bundle``, a member's end; else ``authority`` (PEM) or the system's is trusted.

        Raises:
            SetupError: as for :func:`server_context`.
        """
        self.context = ssl.create_default_context() if bundle is None else _member(bundle)
        self._authority = None if bundle is None else _read(bundle / _AUTHORITY)
        if authority is not None and bundle is None:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            _trust(self.context, authority)

    def check(self, connection: ssl.SSLSocket) -> None:
        """After the handshake: check that a member answers, where members are wanted.

        Raises:
            RefusedError: somebody else does.
        """
        if self._authority is not None:
            _check_member(connection.getpeercert(binary_form=True), self._authority)


def _member(bundle: Path) -> ssl.SSLContext:
    """Shows the bundle's certificate; the other's is looked at by :func:`_check_member`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # OpenSSL takes no device's certificate for a server's
    _load(context, *_pair(bundle, _PAIRS[1:]))
    return context


def _check_member(certificate: bytes | None, authority: bytes) -> None:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    try:
        found = x509.load_der_x509_certificate(certificate or b"")
        found.verify_directly_issued_by(x509.load_pem_x509_certificate(authority))
        constraints = found.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound):
        raise RefusedError("who answers is no member of this federation") from None
    if constraints.ca:
        raise RefusedError("who answers shows an authority's certificate, not one of its own")
    now = datetime.now(UTC)
    if not found.not_valid_before_utc <= now <= found.not_valid_after_utc:
        raise RefusedError("the certificate of who answers has expired, or is not valid yet")


def _pair(bundle: Path, known: Sequence[tuple[str, str]] = _PAIRS) -> tuple[Path, Path]:
    """Certificate and key in a bundle, or in a server's folder."""
    for certificate, key in known:
        if (bundle / certificate).exists():
            return bundle / certificate, bundle / key
    raise SetupError(f"{bundle}: no enrolment bundle (unpack NAME.fedge with `fedge provision --accept`)")


def _load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    try:
        if stat.S_IMODE(key.stat().st_mode) & 0o077:
            raise SetupError(f"{key}: is open to others; do: chmod 600 {key}")
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, OSError) as error:
        raise SetupError(f"{certificate} and {key} cannot be used for TLS: {error}") from None


def _trust(context: ssl.SSLContext, authority: Path) -> None:
    try:
        context.load_verify_locations(cadata=_read(authority).decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise SetupError(f"{authority}: holds no certificates in PEM: {error}") from None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_PEM_BYTES)
    except OSError as error:
        raise SetupError(f"cannot read {path}: {error.strerror}") from error
