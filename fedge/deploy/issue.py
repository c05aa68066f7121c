"""What enrolment makes before anything is written: keys, certificates, and the files that hold them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedge.deploy import bundle_file, federation, pki, stock_node
from fedge.deploy.federation import Enrolment, Federation
from fedge.deploy.registry import Member, check_tags
from fedge.errors import PayloadError
from fedge.release import offline as offline_work
from fedge.release.keys import ONLINE, Keys
from fedge.signing import SigningKey

ROOT = "1.root.json"
"""The root of trust of releases, in the server's folder of releases."""


@dataclass(frozen=True)
class Device:
    """How a device is to be enrolled.

    Attributes:
        name: 1 to 64 of ``A-Za-z0-9._-``, not starting with a dot.
        tags: words the server may choose clients by.
        stock: give it the key of a stock Flower SuperNode, too.
        days: how long its certificate is valid.
    """

    name: str
    tags: tuple[str, ...] = ()
    stock: bool = False
    days: int = pki.CERTIFICATE_DAYS


def new_device(
    own: Federation, authority: pki.Authority, root: bytes, device: Device, now: float
) -> tuple[dict[str, bytes], Member]:
    """A whole bundle, private keys included, and its entry in the registry."""
    key = pki.new_key()
    certificate = pki.issue_device(authority, key.public_key(), own.id, device.name, now, device.days)
    files = public_files(own, authority, root, device.name, certificate)
    signing = SigningKey.generate()
    files |= {bundle_file.KEY: pki.key_pem(key), bundle_file.SIGNING: signing.pem()}
    node = None
    if device.stock:
        files[bundle_file.NODE], files[bundle_file.NODE_PUBLIC] = stock_node.new_node_key()
        node = stock_node.point_of(files[bundle_file.NODE_PUBLIC])
    print_ = pki.fingerprint(certificate)
    return files, Member(device.name, signing.public, print_, None, check_tags(device.tags), False, node)


def public_files(
    own: Federation,
    authority: pki.Authority,
    root: bytes,
    name: str,
    certificate: pki.Certificate,
) -> dict[str, bytes]:
    """The files of a bundle that are no secret."""
    enrolment = Enrolment(Path(), own.id, name, own.server_names[0], own.port)
    return {
        bundle_file.DEVICE: enrolment.encode(),
        bundle_file.AUTHORITY: pki.certificate_pem(authority.certificate),
        bundle_file.CERTIFICATE: pki.certificate_pem(certificate),
        bundle_file.ROOT: root,
    }


def release_files(now: float) -> dict[str, bytes]:
    """Keys for releases, and what the offline ones have signed to begin with."""
    keys = Keys.generate()
    offline = {f"{federation.OFFLINE}/{n}.key": getattr(keys, n).pem() for n in ("root", "targets")}
    here = f"{federation.SERVER}/{federation.RELEASES}"
    online = {f"{here}/{n}.key": getattr(keys.online, n).pem() for n in ONLINE}
    signed = offline_work.create(now, offline_work.ROOT_DAYS, offline_work.TARGETS_DAYS, keys)
    return offline | online | {f"{here}/{name}": content for name, content in signed.items()}


def own_bundle(files: Mapping[str, bytes]) -> Enrolment:
    """What an edge server's bundle says, if it has its keys.

    Raises:
        PayloadError: it has not, or is malformed.
    """
    if missing := sorted({bundle_file.KEY, bundle_file.SIGNING} - files.keys()):
        raise PayloadError(
            f"the parent's bundle has no {' and no '.join(missing)}: after --accept, give the folder"
        )
    return Enrolment.parse(files[bundle_file.DEVICE])


def parent_files(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """An edge server's own bundle, and whose releases its devices believe."""
    here = f"{federation.SERVER}/{federation.RELEASES}"
    own = {f"{federation.SERVER}/{federation.PARENT}/{name}": content for name, content in files.items()}
    return own | {f"{here}/{ROOT}": files[bundle_file.ROOT]}


def server_files(own: Federation, authority: pki.Authority, now: float, days: int) -> dict[str, bytes]:
    """Everything but the registry, the devices and what is for releases."""
    key = pki.new_key()
    certificate = pki.issue_server(authority, key.public_key(), own.server_names, now, days)
    above = pki.certificate_pem(authority.certificate)
    server = {
        federation.FEDERATION: own.encode(),
        federation.AUTHORITY: above,
        federation.SERVER_CERTIFICATE: pki.certificate_pem(certificate),
        federation.SERVER_KEY: pki.key_pem(key),
    }
    return {
        federation.FEDERATION: own.encode(),
        federation.AUTHORITY: above,
        federation.AUTHORITY_KEY: pki.key_pem(authority.key),
        **{f"{federation.SERVER}/{name}": content for name, content in server.items()},
    }
