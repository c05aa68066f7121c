"""TLS contexts of both ends, from the provisioned folders. What is wrong with those is said in one line.

TLS 1.2 and 1.3; the federation's own authority is the only one that is trusted, never the system's.
"""

import ssl
import time
from pathlib import Path
from typing import Literal

from fedge.deploy import bundle_file, federation, pki
from fedge.errors import SetupError

ClientCertificates = Literal["required", "optional", "none"]
_VERIFY = {"required": ssl.CERT_REQUIRED, "optional": ssl.CERT_OPTIONAL, "none": ssl.CERT_NONE}


def server_context(
    folder: Path, clients: ClientCertificates = "required", now: float | None = None
) -> ssl.SSLContext:
    """The server's end, from its ``server`` folder; session tickets are on, renegotiation is off.

    Args:
        folder: holds ca.pem, server.pem and server.key.
        clients: whether a client has to show a certificate; stock Flower nodes have none. One that is shown
            must be this federation's. Whose it is, and whether it was revoked, is for ``Registry.admit``.
        now: Unix seconds; the clock's by default.

    Raises:
        SetupError: a file is missing, damaged, open to others, expired, not valid yet or of another
            federation, or the key does not belong to the certificate.
    """
    certificate, key = folder / federation.SERVER_CERTIFICATE, folder / federation.SERVER_KEY
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 1  # one is enough to resume, and each costs about 1 kB
    _load(context, folder / federation.AUTHORITY, certificate, key, now)
    context.verify_mode = _VERIFY[clients]
    return context


def device_context(bundle: Path, now: float | None = None) -> ssl.SSLContext:
    """A device's end, from its enrolment bundle: shows its certificate, checks the server's and its name.

    Raises:
        SetupError: as for :func:`server_context`.
    """
    certificate, key = bundle / bundle_file.CERTIFICATE, bundle / bundle_file.KEY
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _load(context, bundle / bundle_file.AUTHORITY, certificate, key, now)
    return context


def _load(context: ssl.SSLContext, authority: Path, certificate: Path, key: Path, now: float | None) -> None:
    issuer = federation.load_certificate(authority)
    own = federation.load_certificate(certificate)
    pki.check_pair(own, federation.load_private(key), str(certificate))
    clock = time.time() if now is None else now
    pki.check_certificate(issuer, issuer, clock, str(authority))
    pki.check_certificate(own, issuer, clock, str(certificate))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    try:
        context.load_verify_locations(cadata=pki.certificate_pem(issuer).decode("ascii"))
        context.load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as error:
        raise SetupError(f"{certificate} cannot be used for TLS: {error}") from None
