"""When a release may be taken: the rules, without any IO or clock. Bytes go in, errors come out.

The order is that of trust: the signature first, then what was signed, then what it says about the
model. Nothing of the manifest is parsed before its signature verified.
"""

import hashlib
from dataclasses import dataclass, replace

from fedge.errors import ReleaseError, SignatureError
from fedge.release.manifest import MAX_MANIFEST_BYTES, Manifest, parse
from fedge.signing import SigningKey, verify

PURPOSE = "fedge release"


def sign_release(key: SigningKey, manifest: bytes) -> bytes:
    """The signature of a release: 64 bytes. The manifest names the model by its hash."""
    return key.sign(PURPOSE, manifest)


@dataclass(frozen=True)
class ReleaseRules:
    """What a device knows before it looks at a release.

    Attributes:
        federation: the federation that this device belongs to, in hex.
        trusted: public keys (32 bytes each); the signature of any one of them is enough.
        current: the highest version that this device ever accepted; 0 for none. Going back to an
            older model that the device still holds does not lower it.
    """

    federation: str
    trusted: tuple[bytes, ...]
    current: int = 0

    def accept(self, manifest: bytes, signature: bytes, model: bytes, now: int) -> Manifest:
        """Check a release that arrived, ``now`` being Unix time in seconds.

        Raises:
            SignatureError: no trusted key made this signature.
            ReleaseError: the manifest is malformed, of another federation, not newer than what was
                accepted before (a rollback or a replay), or expired; or the model is not the one it names.
        """
        if len(manifest) > MAX_MANIFEST_BYTES:
            raise ReleaseError(f"the manifest has {len(manifest)} bytes; the limit is {MAX_MANIFEST_BYTES}")
        self._check_signature(manifest, signature)
        release = parse(manifest)
        self._check_place(release, now)
        check_model(release, model)
        return release

    def after(self, release: Manifest) -> "ReleaseRules":
        """The rules once ``release`` has been accepted."""
        return replace(self, current=max(self.current, release.version))

    def _check_signature(self, manifest: bytes, signature: bytes) -> None:
        refusal = SignatureError("no key is trusted to sign releases here: add the server's public key")
        for public in self.trusted:
            try:
                return verify(public, signature, PURPOSE, manifest)
            except SignatureError as error:
                refusal = error
        raise refusal

    def _check_place(self, release: Manifest, now: int) -> None:
        """The federation, the version and the time."""
        if release.federation != self.federation:
            theirs, ours = release.federation, self.federation
            raise ReleaseError(f"the release belongs to federation {theirs}, not {ours}")
        if release.version <= self.current:
            raise ReleaseError(
                f"the release has version {release.version}, not above {self.current}: a rollback or a replay"
            )
        if now >= release.expires:
            late = now - release.expires
            raise ReleaseError(f"release {release.version} expired {late} s ago; ask for a newer one")


def check_model(release: Manifest, model: bytes) -> None:
    """Check that ``model`` is the one that ``release`` names.

    Raises:
        ReleaseError: its size or its SHA-256 is another.
    """
    if len(model) != release.model.size:
        raise ReleaseError(f"the model has {len(model)} bytes; its manifest says {release.model.size}")
    if hashlib.sha256(model).hexdigest() != release.model.sha256:
        raise ReleaseError("the model is not the one its manifest names: its SHA-256 differs")
