"""A node's key, and the signature that Flower wants with every call of a node."""

import threading
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

_SIGNED_FOR = 60.0  # seconds for which one signature serves; Flower takes it for 300


@dataclass
class NodeKey:
    """A node's key pair and its current signature; Flower signs the time and nothing else."""

    private: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP256R1())
    )
    _headers: dict[str, str] = field(default_factory=dict)
    _until: float = 0.0

    @property
    def public(self) -> bytes:
        """The public key as Flower wants it: PEM."""
        kinds = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        return self.private.public_key().public_bytes(*kinds)

    def headers(self) -> dict[str, str]:
        """What proves to Flower that a call is this node's."""
        if time.monotonic() >= self._until:
            stamp = datetime.now(UTC).isoformat()
            signature = self.private.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
            self._headers = {
                "flwr-public-key": b64encode(self.public).decode(),
                "flwr-timestamp": stamp,
                "flwr-signature": b64encode(signature).decode(),
            }
            self._until = time.monotonic() + _SIGNED_FOR
        return self._headers


class Sign:
    """Signs each call with the key of the node that the calling thread stands for just now."""

    def __init__(self) -> None:
        self._as = threading.local()

    @contextmanager
    def of(self, key: NodeKey) -> Iterator[None]:
        """The calls of this thread are this node's."""
        self._as.key = key
        try:
            yield
        finally:
            del self._as.key

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Put the signature into a call that is about to be sent (Flower's interceptor)."""
        context.request.headers.update(self._as.key.headers())
        return call_next(context)
