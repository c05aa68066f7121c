"""What the operator does to a federation: make it, enrol devices, revoke them, renew certificates.

A change takes effect when ``server/registry.json`` is replaced. Before that everything lies in folders called
``.unfinished-NAME``; after it they are renamed. So whatever a killed call left is either finished or cleared
away by the next one, and a device is never enrolled without its keys having been written.
"""

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fedge.deploy import _files, bundle_file, federation, issue, pki
from fedge.deploy.federation import Federation
from fedge.deploy.issue import Device
from fedge.deploy.registry import Member, Registry, check_tags
from fedge.deploy.signing_request import SigningRequest, parse_request
from fedge.durable import flush_folder, replace_file
from fedge.errors import PayloadError, RefusedError, SetupError


@dataclass(frozen=True, eq=False)
class _Open:
    """A federation whose folder is held by this process."""

    folder: Path
    federation: Federation
    registry: Registry

    def authority(self) -> pki.Authority:
        """What signs certificates; a revocation needs none."""
        return federation.authority(self.folder)

    def root(self) -> bytes:
        """The root of trust that devices are enrolled with."""
        path = self.folder / federation.SERVER / federation.RELEASES / issue.ROOT
        return _files.read(path, bundle_file.MAX_FILE_BYTES)


def create(
    folder: Path,
    name: str,
    server_names: Sequence[str],
    port: int,
    devices: Sequence[Device],
    now: float,
    days: int = pki.CERTIFICATE_DAYS,
    parent: Mapping[str, bytes] | None = None,
) -> Federation:
    """Make a federation in ``folder`` (new, or empty until now), whole or not at all.

    Args:
        folder: where to.
        name: for people.
        server_names: hosts and IP addresses by which the server is reached; devices use the first.
        port: where the server listens for devices.
        devices: whom to enrol at once.
        now: Unix seconds.
        days: how long the server's certificate is valid.
        parent: the bundle of this edge server, as a device of the server above it: then the federation is
            the parent's, under the same id, and its releases are believed, not any of this server's.

    Raises:
        PayloadError: a name is malformed or given twice, or the bundle is.
        SetupError: the folder is in the way or cannot be written.
    """
    folder = folder.resolve()
    if (folder / federation.FEDERATION).exists():
        raise SetupError(f"{folder} is a federation already; to enrol a device in it: --add NAME")
    own_id = (
        secrets.token_hex(pki.FEDERATION_BYTES) if parent is None else issue.own_bundle(parent).federation
    )
    made = Federation(own_id, name, tuple(server_names), port, int(now))
    made = Federation.parse(made.encode())
    _check_new(Registry.of([]), devices)
    authority = pki.new_authority(made.id, now)
    releases = issue.release_files(now) if parent is None else issue.parent_files(parent)
    root = releases[f"{federation.SERVER}/{federation.RELEASES}/{issue.ROOT}"]
    issued = [issue.new_device(made, authority, root, device, now) for device in devices]
    files = issue.server_files(made, authority, now, days) | releases
    files[f"{federation.SERVER}/{federation.REGISTRY}"] = Registry.of(m for _, m in issued).encode()
    for bundle, member in issued:
        files |= {f"{federation.DEVICES}/{member.name}/{file}": content for file, content in bundle.items()}
        files[f"{federation.DEVICES}/{member.name}.fedge"] = bundle_file.pack(bundle)
    _files.create_folder(folder, files)
    return made


def add(folder: Path, devices: Sequence[Device], now: float) -> None:
    """Enrol ``devices``: all of them or, if this is killed before the registry is written, none.

    Raises:
        PayloadError: a name or tag is malformed, or a name given twice.
        SetupError: a name is taken, a folder in the way, or something cannot be read or written.
    """
    with _opened(folder) as home:
        _check_new(home.registry, devices)
        for device in devices:
            _refuse_folder(home.folder, device.name)
        authority, root = home.authority(), home.root()
        issued = [issue.new_device(home.federation, authority, root, device, now) for device in devices]
        for bundle, member in issued:
            _files.fill(_files.staging(_place(home.folder, member.name)), bundle)
        registry = Registry.of([*home.registry.members.values(), *(member for _, member in issued)])
        _commit(home.folder, registry)


def sign(folder: Path, request: bytes, tags: Sequence[str], now: float, days: int) -> SigningRequest:
    """Enrol the device that made ``request``, or renew its certificate if its signing key is enrolled.

    The bundle holds no keys: they never left the device. After a renewal the old certificate stays good until
    it expires.

    Raises:
        PayloadError, SignatureError: the request is malformed or not genuine.
        RefusedError: the name is another device's, or was revoked.
        SetupError: something cannot be read or written.
    """
    asked = parse_request(request)
    with _opened(folder) as home:
        known = home.registry.members.get(asked.name)
        if known is None:
            _check_new(home.registry, [Device(asked.name)])
            _refuse_folder(home.folder, asked.name)
        elif home.registry.member(asked.name).signing != asked.signing:
            raise RefusedError(f"{asked.name} is enrolled with another signing key; take another name")
        own, authority, root = home.federation, home.authority(), home.root()
        certificate = pki.issue_device(authority, asked.public, own.id, asked.name, now, days)
        bundle = issue.public_files(own, authority, root, asked.name, certificate)
        print_ = pki.fingerprint(certificate)
        if known is None:
            member = Member(asked.name, asked.signing, print_, None, check_tags(tags), False, asked.node)
        else:
            kept = check_tags(tags) or known.tags
            member = replace(known, certificate=print_, previous=known.certificate, tags=kept)
            member = replace(member, node=asked.node or known.node)
        registry = home.registry.with_member(member)
        _files.fill(_files.staging(_place(home.folder, asked.name)), bundle)
        _commit(home.folder, registry)
    return asked


def revoke(folder: Path, names: Sequence[str]) -> None:
    """Refuse these devices from now on. Their names are never given again.

    Raises:
        SetupError: no such device is enrolled; none of ``names`` is revoked then.
    """
    with _opened(folder) as home:
        registry = home.registry
        for name in names:
            if name not in registry.members:
                raise SetupError(f"{name!r:.80} is not enrolled in {folder} (see: --list)")
            registry = registry.with_member(replace(registry.members[name], revoked=True))
        _commit(home.folder, registry)


def renew_server(folder: Path, now: float, days: int) -> None:
    """Give the server's key a new certificate for the same names.

    Raises:
        SetupError: something cannot be read or written, or the authority expires before.
    """
    with _opened(folder) as home:
        path = home.folder / federation.SERVER / federation.SERVER_CERTIFICATE
        public = pki.public_of(federation.load_certificate(path).public_key())
        fresh = pki.issue_server(home.authority(), public, home.federation.server_names, now, days)
        _replace(path, pki.certificate_pem(fresh))


@contextmanager
def _opened(folder: Path) -> Iterator[_Open]:
    """Hold the federation in ``folder``, and finish or clear away what a killed call left in it."""
    folder = folder.resolve()
    found = Federation.load(folder)
    with _files.locked(folder):
        server = folder / federation.SERVER
        registry = Registry.load(server / federation.REGISTRY)
        try:
            (folder / federation.DEVICES).mkdir(mode=0o700, exist_ok=True)
            flush_folder(folder)
            _recover(folder, registry)
        except OSError as error:
            raise SetupError(f"cannot finish what was left in {folder}: {error.strerror}") from None
        try:
            yield _Open(folder, found, registry)
        except OSError as error:
            raise SetupError(f"cannot write to {folder}: {error.strerror}") from None


def _commit(folder: Path, registry: Registry) -> None:
    """From here on the change is made; what follows is done again after a kill."""
    _replace(folder / federation.SERVER / federation.REGISTRY, registry.encode())
    _recover(folder, registry)


def _recover(folder: Path, registry: Registry) -> None:
    """Publish the bundles that the registry knows, clear away the others that were begun."""
    devices = folder / federation.DEVICES
    for staged in sorted(devices.glob(f"{_files.UNFINISHED}*")):
        name = staged.name.removeprefix(_files.UNFINISHED)
        member = registry.members.get(name)
        if member is not None and _is_of(staged, member):
            _publish(staged, devices / name)
        else:
            shutil.rmtree(staged)
    flush_folder(devices)


def _is_of(staged: Path, member: Member) -> bool:
    try:
        return federation.fingerprint_of(federation.read_bundle(staged)) == member.certificate
    except (SetupError, PayloadError, KeyError):
        return False


def _publish(staged: Path, place: Path) -> None:
    """A new bundle takes its place; a renewed one puts its files beside the keys that are there."""
    fresh = federation.read_bundle(staged)
    whole = {**federation.read_bundle(place), **fresh}
    replace_file(place.parent / f"{place.name}.fedge", bundle_file.pack(whole))
    if not place.exists():
        os.rename(staged, place)
        return
    for name, content in fresh.items():
        replace_file(place / name, content)
    shutil.rmtree(staged)


def _check_new(registry: Registry, devices: Sequence[Device]) -> None:
    taken = {name.lower(): name for name in registry.members}
    for device in devices:
        pki.check_name(device.name)
        check_tags(device.tags)
        if device.name in registry.members:
            gone = registry.members[device.name].revoked
            why = "has been revoked, and its name is not given again" if gone else "is enrolled already"
            raise SetupError(f"{device.name} {why}; take another name")
        if other := taken.get(device.name.lower()):
            raise SetupError(f"{device.name} and {other} are one name, or differ in case only")
        taken[device.name.lower()] = device.name


def _refuse_folder(folder: Path, name: str) -> None:
    place = _place(folder, name)
    for path in (place, place.parent / f"{name}.fedge"):
        if path.exists():
            hint = "the registry may be older than it: put the right one back, or move this away"
            raise SetupError(f"{path} is there, but {name} is not enrolled; {hint}")


def _place(folder: Path, name: str) -> Path:
    return folder / federation.DEVICES / name


def _replace(path: Path, content: bytes) -> None:
    try:
        replace_file(path, content)
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror}") from None
