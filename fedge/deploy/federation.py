"""The folders of a federation: what the operator and the server hold, what a device holds, who is enrolled.

DIR/federation.json, ca.pem, ca.key     the operator's; ca.key signs new devices and is needed nowhere else
DIR/offline/                            root.key and targets.key, for releases: keep them off every network
DIR/server/                             the server machine's; server/releases/ has its keys for releases
DIR/server/parent/                      of an edge server: its own bundle, as a device of the server above it
DIR/devices/NAME/, NAME.fedge           one enrolment bundle per device, as a folder and as one file
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fedge.deploy import _files, _json, bundle_file, pki
from fedge.deploy.registry import Member as Member
from fedge.deploy.registry import Registry as Registry
from fedge.errors import PayloadError, SetupError
from fedge.signing import SigningKey, load_key

FEDERATION, REGISTRY = "federation.json", "registry.json"
AUTHORITY, AUTHORITY_KEY = "ca.pem", "ca.key"
SERVER, SERVER_CERTIFICATE, SERVER_KEY = "server", "server.pem", "server.key"
RELEASES, OFFLINE = "releases", "offline"
PARENT = "parent"  # in the server's folder, of an edge server: its bundle as a device of the server above
DEVICES = "devices"
DEFAULT_PORT = 8443
MAX_SERVER_NAMES = 16
MAX_JSON_BYTES = 16_384
_SCHEMA = 1
_T = TypeVar("_T")


@dataclass(frozen=True)
class Federation:
    """What a federation is.

    Attributes:
        id: 32 hex digits, drawn when it was made.
        name: for people.
        server_names: hosts and IP addresses of the server; devices connect to the first.
        port: where the server listens for devices.
        created: Unix seconds.
    """

    id: str
    name: str
    server_names: tuple[str, ...]
    port: int
    created: int

    @property
    def address(self) -> str:
        """``host:port`` for a device; an IPv6 address stands in brackets."""
        return join_address(self.server_names[0], self.port)

    def encode(self) -> bytes:
        """As ``federation.json``."""
        return _json.encode(
            {
                "schema": _SCHEMA,
                "id": self.id,
                "name": self.name,
                "server_names": list(self.server_names),
                "port": self.port,
                "created": self.created,
            }
        )

    @staticmethod
    def parse(content: bytes) -> "Federation":
        """Read ``federation.json``.

        Raises:
            PayloadError: it is malformed, or of another format.
        """
        raw = _json.load(content, FEDERATION, MAX_JSON_BYTES)
        _json.schema(raw, FEDERATION, _SCHEMA)
        raw = _json.keys(raw, FEDERATION, ("schema", "id", "name", "server_names", "port", "created"))
        names = _json.array(raw["server_names"], "server_names", 1, MAX_SERVER_NAMES)
        return Federation(
            _json.binary(raw["id"], "id", pki.FEDERATION_BYTES).hex(),
            _json.text(raw["name"], "name", 64),
            tuple(pki.check_host(_json.text(n, "a server name", 253)) for n in names),
            _json.integer(raw["port"], "port", 1, 65_535),
            _json.integer(raw["created"], "created", 0, 1 << 40),
        )

    @staticmethod
    def load(folder: Path) -> "Federation":
        """Read the federation in ``folder``: the operator's, or its ``server`` folder.

        Raises:
            SetupError: there is none, or it is damaged.
        """
        path = folder / FEDERATION
        if not path.exists():
            raise SetupError(f"{folder} is no federation: it has no {FEDERATION} (make one: fedge provision)")
        return _loaded(path, Federation.parse, _files.read(path, MAX_JSON_BYTES))


@dataclass(frozen=True)
class Enrolment:
    """What a device knows of the federation it belongs to.

    Attributes:
        folder: where its bundle lies.
        federation: 32 hex digits.
        name: its own name.
        host: the server's, a name or an IP address.
        port: the server's.
    """

    folder: Path
    federation: str
    name: str
    host: str
    port: int

    def encode(self) -> bytes:
        """As ``device.json``."""
        return _json.encode(
            {
                "schema": _SCHEMA,
                "federation": self.federation,
                "name": self.name,
                "server": join_address(self.host, self.port),
            }
        )

    @staticmethod
    def parse(content: bytes, folder: Path = Path()) -> "Enrolment":
        """Read ``device.json``; ``folder`` is where it came from.

        Raises:
            PayloadError: it is malformed, or of another format.
        """
        raw = _json.load(content, bundle_file.DEVICE, MAX_JSON_BYTES)
        _json.schema(raw, bundle_file.DEVICE, _SCHEMA)
        raw = _json.keys(raw, bundle_file.DEVICE, ("schema", "federation", "name", "server"))
        host, port = split_address(_json.text(raw["server"], "server", 261))
        return Enrolment(
            folder,
            _json.binary(raw["federation"], "federation", pki.FEDERATION_BYTES).hex(),
            pki.check_name(_json.text(raw["name"], "name", 64)),
            host,
            port,
        )

    @staticmethod
    def load(folder: Path) -> "Enrolment":
        """Read the bundle in ``folder`` and check that its certificate is this device's.

        Keys and dates are checked by :func:`fedge.deploy.tls.device_context` and :meth:`signing_key`.

        Raises:
            SetupError: it is missing, damaged, or put together from files of two devices.
        """
        path = folder / bundle_file.DEVICE
        found = _loaded(path, lambda c: Enrolment.parse(c, folder), _files.read(path, MAX_JSON_BYTES))
        check_owner(found, load_certificate(folder / bundle_file.CERTIFICATE), str(folder))
        return found

    def root(self) -> bytes:
        """The root of trust of the federation's releases (``1.root.json``).

        Raises:
            SetupError: it is missing.
        """
        return _files.read(self.folder / bundle_file.ROOT, bundle_file.MAX_FILE_BYTES)

    def signing_key(self) -> SigningKey:
        """The device's private signing key, from ``signing.key``.

        Raises:
            SetupError: it is missing, open to others, or no Ed25519 key.
        """
        return load_key(self.folder / bundle_file.SIGNING)


def check_owner(enrolment: Enrolment, certificate: pki.Certificate, what: str) -> None:
    """Check that the certificate is the enrolled device's.

    Raises:
        SetupError: it is another one's.
    """
    try:
        owner = pki.identity(pki.certificate_der(certificate))
    except PayloadError:
        raise SetupError(f"{what}: {bundle_file.CERTIFICATE} is not the certificate of a device") from None
    if (owner.federation, owner.name) != (enrolment.federation, enrolment.name):
        mine = f"{enrolment.name} in federation {enrolment.federation[:8]}"
        theirs = f"{owner.name} in federation {owner.federation[:8]}"
        raise SetupError(f"{what} is of {mine}, but its certificate of {theirs}")


def load_certificate(path: Path) -> pki.Certificate:
    """The certificate in a file.

    Raises:
        SetupError: it is missing, or no certificate.
    """
    return _loaded(path, lambda c: pki.parse_certificate(c, path.name), _files.read(path, pki.MAX_PEM_BYTES))


def load_private(path: Path) -> pki.Key:
    """The TLS key in a file.

    Raises:
        SetupError: it is missing, open to others than its owner, or no such key.
    """
    pem = _files.read(path, pki.MAX_PEM_BYTES, private=True)
    return _loaded(path, lambda c: pki.parse_key(c, path.name), pem)


def read_bundle(folder: Path) -> dict[str, bytes]:
    """The files of the enrolment bundle in ``folder``, by name."""
    present = [name for name in bundle_file.NAMES if (folder / name).exists()]
    return {name: _files.read(folder / name, bundle_file.MAX_FILE_BYTES) for name in present}


def bundle_files(bundle: Path) -> dict[str, bytes]:
    """The files of an enrolment bundle, a folder or one file ``NAME.fedge``, by name.

    Raises:
        SetupError: there is none, or it cannot be read.
        PayloadError: it is damaged.
    """
    if bundle.is_dir():
        return read_bundle(bundle)
    return bundle_file.unpack(_files.read(bundle, bundle_file.MAX_BUNDLE_BYTES))


def join_address(host: str, port: int) -> str:
    """``host:port``, with an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``host:port``.

    Raises:
        PayloadError: it is malformed.
    """
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]") and ":" in host:
        host = host[1:-1]
    elif ":" in host:
        raise PayloadError(f"{address!r:.80}: an IPv6 address stands in brackets")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65_535):
        raise PayloadError(f"{address!r:.80} is not host:port")
    return pki.check_host(host), int(port)


def _loaded(path: Path, parse: Callable[[bytes], _T], content: bytes) -> _T:
    """What ``parse`` makes of a file of our own folders: there, a damaged one is the environment's fault."""
    try:
        return parse(content)
    except PayloadError as error:
        raise SetupError(f"{path} cannot be used: {error}") from None


def authority(folder: Path) -> pki.Authority:
    """The operator's signing authority.

    Raises:
        SetupError: a file of it is missing, damaged or open to others, or the two do not belong together.
    """
    certificate = load_certificate(folder / AUTHORITY)
    key = load_private(folder / AUTHORITY_KEY)
    pki.check_pair(certificate, key, str(folder / AUTHORITY))
    return pki.Authority(certificate, key)


def fingerprint_of(files: Mapping[str, bytes]) -> bytes:
    """SHA-256 of the client certificate among a bundle's files."""
    return pki.fingerprint(pki.parse_certificate(files[bundle_file.CERTIFICATE], bundle_file.CERTIFICATE))
