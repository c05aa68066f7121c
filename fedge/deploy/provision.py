"""``fedge provision``: make a federation, enrol and revoke devices, renew certificates."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from fedge.errors import ConfigError

_ACTIONS = ("add", "revoke", "list", "request", "renew_server", "make_request", "accept")
_TAKES = {
    None: {"server_name", "port", "name", "devices", "tags", "stock", "days", "parent"},
    "add": {"tags", "stock", "days"},
    "revoke": set(),
    "list": {"json"},
    "request": {"tags", "days"},
    "renew_server": {"days"},
    "make_request": {"out", "stock"},
    "accept": {"out"},
}
_ON_DEVICE = ("make_request", "accept")
_OPTIONS = ("server_name", "port", "name", "devices", "tags", "stock", "days", "out", "json", "parent")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that :func:`run` reads."""
    parser.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="the federation's folder")
    make = parser.add_argument_group("to make a federation")
    make.add_argument("--server-name", metavar="HOST,...", help="names and IP addresses of the server")
    make.add_argument("--port", type=int, metavar="N", help="where it listens (default: 8443)")
    make.add_argument("--name", metavar="TEXT", help="what to call it (default: the folder's name)")
    make.add_argument(
        "--parent",
        type=Path,
        metavar="BUNDLE",
        help="of an edge server: the bundle that it was enrolled with by the server above it",
    )
    make.add_argument("--devices", metavar="NAME,...", help="devices to enrol at once")
    group = parser.add_argument_group("to change one").add_mutually_exclusive_group()
    group.add_argument("--add", metavar="NAME,...", help="enrol devices")
    group.add_argument("--revoke", metavar="NAME,...", help="refuse devices from now on, for good")
    group.add_argument("--list", action="store_true", help="who is enrolled")
    group.add_argument("--request", type=Path, metavar="FILE", help="enrol a device that made its own keys")
    group.add_argument("--renew-server", action="store_true", help="a new certificate for the server")
    group.add_argument("--make-request", metavar="NAME", help="on a device: make its keys and a request")
    group.add_argument("--accept", type=Path, metavar="FILE", help="on a device: unpack NAME.fedge")
    parser.add_argument("--out", type=Path, metavar="DIR", help="on a device: where its keys lie")
    parser.add_argument("--tags", metavar="TAG,...", help="words the server may choose clients by")
    parser.add_argument("--stock", action="store_true", help="with a key for a stock flower-supernode")
    parser.add_argument(
        "--days", type=int, metavar="N", help="how long certificates are valid (default: 730)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, with --list")


def run(options: argparse.Namespace) -> None:
    """Do what was asked and say so.

    Raises:
        ConfigError: options that do not go together, or are out of range.
        FedgeError: whatever went wrong.
    """
    action = next((a for a in _ACTIONS if getattr(options, a)), None)
    given = {name for name in _OPTIONS if getattr(options, name) not in (None, False)}
    if wrong := sorted(given - _TAKES[action]):
        asked = "a new federation" if action is None else _flag(action)
        raise ConfigError(f"{_flag(wrong[0])} does not go with {asked}")
    if action in _ON_DEVICE:
        if options.folder is not None or options.out is None:
            raise ConfigError(
                f"{_flag(str(action))} is for a device: it takes --out DIR, and no other folder"
            )
    elif options.folder is None:
        raise ConfigError("which federation? give its folder: fedge provision DIR")
    if options.days is not None and not 1 <= options.days <= 7300:
        raise ConfigError("--days must be from 1 to 7300")
    _RUN[action](options)


def _create(options: argparse.Namespace) -> None:
    from fedge.deploy import enrol, federation, pki

    if not options.server_name:
        hint = "fedge provision DIR --server-name HOST"
        raise ConfigError(f"by which names or addresses do devices reach the server? {hint}")
    port = federation.DEFAULT_PORT if options.port is None else options.port
    days = options.days or pki.CERTIFICATE_DAYS
    name = options.name or options.folder.resolve().name or "fedge"
    servers = _words(options.server_name)
    if len(set(servers)) != len(servers):
        raise ConfigError("--server-name has a name twice")
    parent = None if options.parent is None else federation.bundle_files(options.parent)
    made = enrol.create(
        options.folder, name, servers, port, _devices(options, options.devices), time.time(), days, parent
    )
    count = len(_words(options.devices))
    _say(f"made federation {made.id[:8]} in {options.folder}: server {made.address}, {count} devices")
    _say(f"to the server machine: {options.folder / 'server'}")
    if count:
        _say(f"to each device, by a way that you trust: {options.folder / 'devices'}/NAME.fedge")
    if parent is None:
        _say(f"keep safe, and off both: {options.folder / 'ca.key'} and {options.folder / 'offline'}")
    else:
        _say(
            f"an edge server of the federation above it; keep safe, and off both: {options.folder / 'ca.key'}"
        )


def _add(options: argparse.Namespace) -> None:
    from fedge.deploy import enrol

    devices = _devices(options, options.add)
    enrol.add(options.folder, devices, time.time())
    for device in devices:
        _say(f"enrolled {device.name}: {options.folder / 'devices' / device.name}.fedge")
    _remind(options)


def _revoke(options: argparse.Namespace) -> None:
    from fedge.deploy import enrol

    enrol.revoke(options.folder, _words(options.revoke))
    _say(f"revoked {', '.join(_words(options.revoke))}")
    _remind(options)


def _request(options: argparse.Namespace) -> None:
    from fedge.deploy import _files, enrol, pki
    from fedge.deploy.signing_request import MAX_REQUEST_BYTES
    from fedge.signing import fingerprint

    content = _files.read(options.request, MAX_REQUEST_BYTES)
    days = options.days or pki.CERTIFICATE_DAYS
    signed = enrol.sign(options.folder, content, _words(options.tags), time.time(), days)
    _say(f"enrolled {signed.name}, signing key {fingerprint(signed.signing)}: did the device show the same?")
    _say(f"back to the device: {options.folder / 'devices' / signed.name}.fedge")
    _remind(options)


def _renew_server(options: argparse.Namespace) -> None:
    from fedge.deploy import enrol, pki

    enrol.renew_server(options.folder, time.time(), options.days or pki.CERTIFICATE_DAYS)
    _say(f"renewed {options.folder / 'server' / 'server.pem'}; start the server again with it")


def _make_request(options: argparse.Namespace) -> None:
    from fedge.deploy import own_keys

    shown = own_keys.make_request(options.make_request, options.out, stock=options.stock)
    _say(f"the keys stay in {options.out}; the signing key is {shown}")
    _say(f"to the operator: {options.out / own_keys.REQUEST}")


def _accept(options: argparse.Namespace) -> None:
    from fedge.deploy import own_keys

    enrolment = own_keys.accept(options.accept, options.out)
    where = f"{options.out} is the bundle of {enrolment.name}"
    _say(f"{where} in federation {enrolment.federation[:8]}, server {enrolment.host}")


def _list(options: argparse.Namespace) -> None:
    from fedge.deploy.federation import Federation, Registry

    own = Federation.load(options.folder)
    place = options.folder / "server" / "registry.json"
    registry = Registry.load(place if place.exists() else options.folder / "registry.json")
    rows = [_row(options.folder, registry.members[name]) for name in sorted(registry.members)]
    if options.json:
        _say(json.dumps({"federation": own.id, "server": own.address, "devices": rows}))
        return
    _say(f"federation {own.id[:8]} ({own.name}), server {own.address}, {len(rows)} devices")
    width = max([len(row["name"]) for row in rows], default=0)
    for row in rows:
        left = "" if row["days_left"] is None else f"{row['days_left']} days left"
        words = [row["state"], row["signing"], left, "stock" if row["stock"] else "", ",".join(row["tags"])]
        _say(f"{row['name']:<{width}}  " + "  ".join(word for word in words if word))


def _row(folder: Path, member: Any) -> dict[str, Any]:
    from fedge.deploy import federation, pki
    from fedge.errors import SetupError
    from fedge.signing import fingerprint

    try:
        certificate = federation.load_certificate(folder / "devices" / member.name / "client.pem")
        left = int(pki.days_left(certificate, time.time()) // 1)
    except SetupError:  # handed over and deleted here
        left = None
    return {
        "name": member.name,
        "state": "revoked" if member.revoked else "enrolled",
        "signing": fingerprint(member.signing),
        "days_left": left,
        "stock": member.node is not None,
        "tags": list(member.tags),
    }


def _devices(options: argparse.Namespace, names: str | None) -> list[Any]:
    from fedge.deploy import pki
    from fedge.deploy.issue import Device

    days = options.days or pki.CERTIFICATE_DAYS
    return [Device(name, tuple(_words(options.tags)), options.stock, days) for name in _words(names)]


def _words(text: str | None) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()] if text else []


def _remind(options: argparse.Namespace) -> None:
    registry = options.folder / "server" / "registry.json"
    _say(f"a server that runs from this folder has noticed; to one elsewhere, copy {registry}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _say(line: str) -> None:
    print(line)  # noqa: T201


_RUN = {
    None: _create,
    "add": _add,
    "revoke": _revoke,
    "list": _list,
    "request": _request,
    "renew_server": _renew_server,
    "make_request": _make_request,
    "accept": _accept,
}
