"""Who may come in at the gateway: a certificate and a signed hello, held against the registry."""

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from fedge.deploy import pki
from fedge.deploy.registry import Registry
from fedge.errors import FedgeError, PayloadError, SetupError, SignatureError
from fedge.link.device_end import HELLO, hello_parts
from fedge.link.frames import VERSION, Hello, LinkError, Reason
from fedge.signing import verify

REFUSED_FOR = 300
"""Seconds after which a refused device may ask again."""

_log = logging.getLogger("fedge.gateway")


@dataclass
class RegistryFile:
    """``registry.json``, read again when it changes; while it cannot be read, what was in it last holds."""

    path: Path
    _known: Registry | None = None

    def __call__(self) -> Registry:
        """Who is enrolled now.

        Raises:
            SetupError: it was never readable.
        """
        try:
            self._known = Registry.load(self.path, self._known)
        except SetupError as error:
            if self._known is None:
                raise
            _log.error("%s; going on with what was in it before", error)
        return self._known


@dataclass(frozen=True)
class Admission:
    """Who is enrolled in which federation (its hex name)."""

    registry: Registry
    federation: str

    def check(self, certificate: bytes | None, hello: Hello, nonce: bytes) -> float:
        """Check a client that says hello after the challenge ``nonce``; gives when its certificate expires.

        Raises:
            LinkError: it may not come in, and why.
        """
        if hello.version != VERSION:
            raise LinkError(f"this server speaks version {VERSION} of the link", Reason.VERSION, REFUSED_FOR)
        shown = _shown(certificate)
        identity, key = self.identify(shown)
        if identity.name != hello.name:
            raise LinkError("the certificate is another device's", Reason.FOREIGN, REFUSED_FOR)
        expires = x509.load_der_x509_certificate(shown).not_valid_after_utc
        if expires <= datetime.now(UTC):  # a resumed TLS session does not look at it again
            text = f"the certificate of {hello.name} expired on {expires:%Y-%m-%d}"
            raise LinkError(text, Reason.EXPIRED, REFUSED_FOR)
        try:
            parts = hello_parts(self.federation, hello.name, nonce, identity.fingerprint, hello.version)
            verify(key, hello.signature, HELLO, *parts)
        except SignatureError as error:
            raise LinkError(str(error), Reason.SIGNATURE, REFUSED_FOR) from None
        return expires.timestamp()

    def identify(self, certificate: bytes | None) -> tuple[pki.Identity, bytes]:
        """Whose certificate (DER) this is, and the signing key that it is enrolled with.

        Raises:
            LinkError: there is none, it is no device's, or the device may not take part.
        """
        try:
            identity = pki.identity(_shown(certificate))
        except PayloadError as error:
            text = f"the certificate is no device's: {error}"
            raise LinkError(text, Reason.FOREIGN, REFUSED_FOR) from None
        return identity, self._enrolled(identity)

    def _enrolled(self, identity: pki.Identity) -> bytes:
        member = self.registry.members.get(identity.name)
        try:
            return self.registry.admit(identity, self.federation).signing
        except FedgeError as error:
            reason = Reason.FOREIGN
            if member is None and identity.federation == self.federation:
                reason = Reason.UNKNOWN
            elif member is not None and member.revoked:
                reason = Reason.REVOKED
            raise LinkError(str(error), reason, REFUSED_FOR) from None


def _shown(certificate: bytes | None) -> bytes:
    if certificate is None:
        raise LinkError("no client certificate was shown", Reason.FOREIGN, REFUSED_FOR)
    return certificate
