"""``fedge release``: a repository of releases, and those on a device. Each action loads what it needs."""

import argparse
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedge.config import Release
from fedge.errors import InputError, ReleaseError, SetupError
from fedge.release.pointer import METADATA

if TYPE_CHECKING:
    from fedge.edge.home import Home

_MODULES = {
    "list": "release_list",
    "verify": "release_repository",
    "publish": "release_repository",
    "refresh": "release_repository",
    "renew": "release_repository",
    "fetch": "release_fetch",
}
"""Actions that load more than a device's home: where each is, as ``do_ACTION``."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions and their options, which :func:`run` reads."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True, dest="action")
    _add_looking(actions)
    _add_signing(actions)
    _add_on_device(actions)


def run(options: argparse.Namespace) -> int | None:
    """Do what was asked.

    Returns:
        1 where a device did not take a release; None otherwise.

    Raises:
        InputError: an option makes no sense, or a folder or a key is not what it should be.
        RefusedError: what lies there is refused.
    """
    action = options.action
    if action in _MODULES:
        module = import_module(f"fedge.edge.{_MODULES[action]}")
        code: int | None = getattr(module, f"do_{action}")(options)
        return code
    _on_device(options, action)
    return None


def home_at(path: Path) -> "Home":
    """The device's home at ``path``, or in the state folder of ``fedge client`` there.

    Raises:
        SetupError: there is none.
    """
    from fedge.edge.disk import FolderDisk
    from fedge.edge.home import STATE, Home

    for place in (path, path / "model"):
        if (place / STATE).is_file():
            return Home(FolderDisk(place))
    raise SetupError(f"{path} is no home of a device: it holds no {STATE}; fedge release fetch makes one")


def repository_at(path: Path) -> Path:
    """The repository at ``path``, or in the folder ``releases`` there.

    Raises:
        SetupError: there is none.
    """
    if ":/" in str(path):
        raise SetupError(f"{path} is no folder; fedge release verify and fetch read from web servers")
    for place in (path, path / "releases"):
        if (place / METADATA).is_dir():
            return place
    raise SetupError(f"{path} is no repository of releases: it holds no folder {METADATA}")


def say(line: str) -> None:
    """One line of the answer."""
    print(line)  # noqa: T201


def _add(actions: Any, name: str, text: str) -> argparse.ArgumentParser:
    about = f"{text[0].upper()}{text[1:]}."
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=about)
    return parser


def _add_looking(actions: Any) -> None:
    one = _add(actions, "list", "what a repository, or a device's home, holds")
    one.add_argument("path", type=Path, metavar="PATH", help="the folder of releases, or a device's home")
    one.add_argument("--json", action="store_true", help="print one JSON object")
    one = _add(actions, "verify", "verify a repository as a device would")
    one.add_argument("path", metavar="PATH|URL", help="the folder of releases, or where it is served")
    one.add_argument(
        "--root",
        type=Path,
        required=True,
        metavar="FILE",
        help="the trusted root: root.json of a bundle",
    )


def _add_signing(actions: Any) -> None:
    one = _add(actions, "publish", "promote a release with the offline key")
    _add_repository(one)
    one.add_argument("version", type=int, metavar="VERSION", help="which release")
    one.add_argument("--key", type=Path, required=True, metavar="FILE", help="targets.key")
    one.add_argument("--days", type=float, default=365.0, metavar="N", help="how long it is valid (365)")
    _add_online(one, "sign with the server's keys as well, where no server does it")
    one = _add(actions, "refresh", "sign again what expires soon, where no server does it")
    _add_repository(one)
    _add_online(one, "the server's keys", required=True)
    one = _add(actions, "renew", "the next root: valid for longer, or with other keys")
    _add_repository(one)
    one.add_argument(
        "--root-key", type=Path, required=True, metavar="FILE", help="root.key, as it is in force"
    )
    one.add_argument("--targets-key", type=Path, required=True, metavar="FILE", help="the one from now on")
    one.add_argument("--new-root-key", type=Path, metavar="FILE", help="what replaces root.key")
    one.add_argument("--days", type=float, default=730.0, metavar="N", help="how long it is valid (730)")
    _add_online(one, "new keys of the server, which replace the old ones")


def _add_repository(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="REPO", help="the folder of releases")


def _add_online(parser: argparse.ArgumentParser, text: str, *, required: bool = False) -> None:
    help_ = f"folder with snapshot.key, timestamp.key and rounds.key: {text}"
    parser.add_argument("--online", type=Path, required=required, metavar="DIR", help=help_)


def _add_on_device(actions: Any) -> None:
    one = _add(actions, "fetch", "take the newest release onto this device, if it passes the gate")
    one.add_argument("home", type=Path, metavar="HOME", help="the device's home; made if it is new")
    one.add_argument(
        "--from", dest="source", required=True, metavar="URL|DIR", help="a web server, a folder, a USB stick"
    )
    one.add_argument(
        "--bundle", type=Path, metavar="DIR", help="this device's enrolment bundle, a folder: whom to trust"
    )
    one.add_argument("--root", type=Path, metavar="FILE", help="without a bundle: its root.json")
    one.add_argument("--federation", metavar="HEX", help="without a bundle, for a new home: whose releases")
    one.add_argument(
        "--data", type=Path, metavar="PATH", help="this device's own data: what a release is tested on"
    )
    one.add_argument(
        "--margin",
        type=float,
        default=Release.margin,
        metavar="P",
        help=f"how much worse ({Release.margin:g})",
    )
    one.add_argument(
        "--budget-us", type=float, metavar="N", help="most microseconds for one window (default: any)"
    )
    one.add_argument("--promoted-only", action="store_true", help="take promoted releases only")
    one.add_argument(
        "--again",
        action="store_true",
        help="test the release once more, if it was refused or taken back here",
    )
    one = _add(actions, "rollback", "go back to the earlier release on this device")
    one.add_argument("home", type=Path, metavar="HOME", help="the device's home")
    one.add_argument("--to", type=int, metavar="N", help="to this version of those that are here")
    one = _add(actions, "pin", "run one release on this device, and take no other")
    one.add_argument("home", type=Path, metavar="HOME", help="the device's home")
    one.add_argument("version", type=int, nargs="?", metavar="VERSION", help="one that is here")
    one.add_argument("--unpin", action="store_true", help="take releases again")


def _on_device(options: argparse.Namespace, action: str) -> None:
    try:
        _change(options, action, home_at(options.home))
    except ReleaseError as error:  # what was asked for is not here, or is damaged
        raise InputError(str(error)) from error


def _change(options: argparse.Namespace, action: str, home: "Home") -> None:
    if action == "rollback":
        say(f"release {home.rollback(options.to)} runs here now; the one that was left is not taken again")
    elif options.unpin:
        if options.version is not None:
            raise InputError("give a VERSION to pin, or --unpin, not both")
        home.unpin()
        say("releases are taken again")
    else:
        if options.version is None:
            raise InputError("give the VERSION to pin, or --unpin")
        home.pin(options.version)
        say(f"release {options.version} runs here now, and no other is taken until --unpin")
