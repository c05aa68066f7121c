"""Who is enrolled, and who no longer is: ``registry.json``, written by the operator, read by the server."""

import hashlib
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedge.deploy import _files, _json, pki
from fedge.deploy.stock_node import POINT_BYTES, flower_pem
from fedge.errors import PayloadError, RefusedError, SetupError
from fedge.signing import PUBLIC_BYTES

MAX_MEMBERS = 65_536
MAX_REGISTRY_BYTES = 32 << 20
MAX_TAGS = 16
_SCHEMA = 1
_KEYS = ("signing", "certificate", "previous", "tags", "revoked", "node")
_TAG = re.compile(r"[A-Za-z0-9._-]{1,32}")
_RACY_SECONDS = 2.0  # a file younger than this may change again and keep its time


@dataclass(frozen=True)
class Member:
    """One device of a federation.

    Attributes:
        name: of the device.
        signing: its Ed25519 public key, 32 bytes: what it is known by.
        certificate: SHA-256 of its TLS certificate's DER, 32 bytes.
        previous: that of the certificate it had before the last renewal; both are good until they expire.
        tags: words the server may choose clients by.
        revoked: it is refused from now on, and its name is never given again.
        node: the public key of its stock SuperNode, a compressed point of P-384 (49 bytes), or None.
    """

    name: str
    signing: bytes
    certificate: bytes
    previous: bytes | None = None
    tags: tuple[str, ...] = ()
    revoked: bool = False
    node: bytes | None = None


@dataclass(frozen=True, eq=False)
class Registry:
    """The members of a federation, by name.

    ``load`` again with what was loaded before is cheap as long as the file has not changed.
    """

    members: Mapping[str, Member]
    _digest: bytes = field(default=b"", repr=False)
    _stamp: tuple[int, ...] | None = field(default=None, repr=False)
    _nodes: Mapping[bytes, str] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(
        members: Iterable[Member], digest: bytes = b"", stamp: tuple[int, ...] | None = None
    ) -> "Registry":
        """The registry of ``members``.

        Raises:
            PayloadError: a name, or a key or certificate, is there twice, or there are too many of them.
        """
        listed = list(members)
        if len(listed) > MAX_MEMBERS:
            raise PayloadError(f"more than {MAX_MEMBERS} devices are enrolled, the limit")
        _refuse_twice(listed)
        nodes = {m.node: m.name for m in listed if m.node is not None}
        return Registry({m.name: m for m in listed}, digest, stamp, nodes)

    @staticmethod
    def load(path: Path, known: "Registry | None" = None) -> "Registry":
        """Read ``registry.json``; gives ``known``, loaded from it before, if nothing in it has changed.

        A file whose time, size and inode are as before is not read again; one that has the same content is
        not parsed again.

        Raises:
            SetupError: it is missing, unreadable or damaged. A server goes on with what it knew.
        """
        stamp = _stamp(path)
        if known is not None and stamp is not None and stamp == known._stamp:
            return known
        content = _files.read(path, MAX_REGISTRY_BYTES)
        digest = hashlib.sha256(content).digest()
        if known is not None and digest == known._digest:
            return Registry(known.members, digest, stamp, known._nodes)
        try:
            return Registry.of(_parse(content), digest, stamp)
        except PayloadError as error:
            raise SetupError(f"{path} cannot be used: {error}") from None

    @staticmethod
    def parse(content: bytes) -> "Registry":
        """Read the content of ``registry.json``.

        Raises:
            PayloadError: it is malformed, of another format, or exceeds a limit.
        """
        return Registry.of(_parse(content))

    def encode(self) -> bytes:
        """As ``registry.json``: in the order of the names."""
        members = {name: _raw(self.members[name]) for name in sorted(self.members)}
        return _json.encode({"schema": _SCHEMA, "members": members})

    def with_member(self, member: Member) -> "Registry":
        """The same with ``member`` added, or in place of the one of this name.

        Raises:
            PayloadError: its key or certificate is another device's.
        """
        return Registry.of({**self.members, member.name: member}.values())

    def member(self, name: str) -> Member:
        """The device of this name, if it may take part.

        Raises:
            RefusedError: no such device is enrolled, or it was revoked.
        """
        found = self.members.get(name)
        if found is None:
            raise RefusedError(f"{name!r:.80} is not enrolled in this federation")
        if found.revoked:
            raise RefusedError(f"{name} has been revoked by the operator")
        return found

    def admit(self, identity: pki.Identity, federation: str) -> Member:
        """The device a certificate belongs to, once the TLS handshake has accepted it.

        Raises:
            RefusedError: it is of another federation, not enrolled, revoked, or replaced by a newer one.
        """
        if identity.federation != federation:
            raise RefusedError(f"{identity.name} is enrolled in another federation")
        found = self.member(identity.name)
        if identity.fingerprint not in (found.certificate, found.previous):
            raise RefusedError(f"this certificate of {identity.name} is not the one that is enrolled")
        return found

    def stock_node(self, point: bytes) -> Member:
        """The device whose stock SuperNode has this public key (``stock_node.point_of``).

        Raises:
            RefusedError: none has, or it was revoked.
        """
        name = self._nodes.get(point)
        if name is None:
            raise RefusedError("this SuperNode's key is not enrolled in this federation")
        return self.member(name)


def check_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """``tags`` in sorted order, each once.

    Raises:
        PayloadError: one has not 1 to 32 of ``A-Za-z0-9._-``, or there are more than 16.
    """
    found = tuple(sorted(set(tags)))
    if len(found) > MAX_TAGS:
        raise PayloadError(f"a device has at most {MAX_TAGS} tags")
    for tag in found:
        if not _TAG.fullmatch(tag):
            raise PayloadError(f"{tag!r:.80} is no tag: 1 to 32 of A-Z a-z 0-9 . _ -")
    return found


def _parse(content: bytes) -> list[Member]:
    raw = _json.load(content, "the registry", MAX_REGISTRY_BYTES)
    _json.schema(raw, "the registry", _SCHEMA)
    members = _json.keys(raw, "the registry", ("schema", "members"))["members"]
    if not isinstance(members, dict) or len(members) > MAX_MEMBERS:
        raise PayloadError(f"the registry's members must be an object of at most {MAX_MEMBERS}")
    return [_member(name, entry) for name, entry in members.items()]


def _member(name: str, raw: object) -> Member:
    entry = _json.keys(raw, f"the entry of {pki.check_name(name)}", _KEYS)
    revoked, node = entry["revoked"], entry["node"]
    if not isinstance(revoked, bool):
        raise PayloadError(f"'revoked' of {name} must be true or false")
    tags = [
        _json.text(tag, f"a tag of {name}", 32) for tag in _json.array(entry["tags"], "tags", 0, MAX_TAGS)
    ]
    return Member(
        name,
        _json.binary(entry["signing"], f"'signing' of {name}", PUBLIC_BYTES),
        _json.binary(entry["certificate"], f"'certificate' of {name}", 32),
        None if entry["previous"] is None else _json.binary(entry["previous"], f"'previous' of {name}", 32),
        check_tags(tags),
        revoked,
        None if node is None else _node(_json.binary(node, f"'node' of {name}", POINT_BYTES)),
    )


def _node(point: bytes) -> bytes:
    flower_pem(point)
    return point


def _raw(member: Member) -> dict[str, object]:
    return {
        "signing": member.signing.hex(),
        "certificate": member.certificate.hex(),
        "previous": None if member.previous is None else member.previous.hex(),
        "tags": list(member.tags),
        "revoked": member.revoked,
        "node": None if member.node is None else member.node.hex(),
    }


def _refuse_twice(members: list[Member]) -> None:
    """Names that differ in case only are refused too: they would be one folder on some disks."""
    seen: dict[object, Member] = {}
    for member in members:
        own = [member.name.lower(), ("signing", member.signing), ("certificate", member.certificate)]
        own += [("node", member.node)] if member.node is not None else []
        own += [("certificate", member.previous)] if member.previous not in (None, member.certificate) else []
        for key in own:
            other = seen.setdefault(key, member)
            if other is not member:
                what = "name but for its case" if isinstance(key, str) else str(key[0])
                names = f"{other.name} and {member.name}"
                raise PayloadError(f"{names} have the same {what}; each device has its own")


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What changes when the file does; None if it is so young that its time may not tell."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    if time.time() - status.st_mtime < _RACY_SECONDS:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns
