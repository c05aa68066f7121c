"""``fedge doctor``: what this machine has, what is missing for which role, and the command to get it."""

import argparse
import json
import re
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from fedge.deploy import doctor_checks as checks
from fedge.deploy.doctor_checks import ROLES, Finding
from fedge.errors import ConfigError, FedgeError, SetupError

_CONNECT_SECONDS = 5.0
_CLOCK_SECONDS = 60.0
_SOON_DAYS = 30.0
_MARKS = {"ok": "ok", "warning": "!", "missing": "MISSING"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that :func:`run` reads."""
    parser.add_argument("--role", choices=ROLES, help="what this machine is to be (default: each)")
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="a device's enrolment bundle")
    parser.add_argument("--server", type=Path, metavar="DIR", help="a server's provisioned folder")
    parser.add_argument("--json", action="store_true", help="one JSON object")


def run(options: argparse.Namespace) -> None:
    """Print what was found.

    Raises:
        ConfigError: a folder of another role was given.
        SetupError: something is missing for the role that was asked for, or for every role.
    """
    role = options.role or ("client" if options.bundle else "server" if options.server else None)
    wrong = {"bundle": ("server", "simulation"), "server": ("device", "client", "simulation")}
    if any(getattr(options, folder) and role in roles for folder, roles in wrong.items()):
        raise ConfigError(f"a machine in the role {role} has no such folder: leave out --role")
    found = examine(options.bundle, options.server, time.time())
    able = {r: [f for f in found if f.state == "missing" and r in f.roles] for r in ROLES}
    if options.json:
        _say(json.dumps(_as_json(found, able, role)))
    else:
        _say("\n".join(table([f for f in found if role is None or role in f.roles])))
        for each in (role,) if role else ROLES:
            lacks = ", ".join(f.what for f in able[each])
            _say(f"{each}: {'missing: ' + lacks if lacks else 'can run'}")
    wanted = (role,) if role else ROLES
    if all(able[r] for r in wanted):
        first = able[wanted[0]][0]
        remedy = f": {first.remedy}" if first.remedy else ""
        raise SetupError(f"this machine cannot be a {wanted[0]}: {first.what}: {first.found}{remedy}")


def examine(bundle: Path | None, server: Path | None, now: float) -> list[Finding]:
    """Everything ``fedge doctor`` looks at, the server of ``bundle`` included; ``now`` in Unix seconds."""
    found = [checks.python(), *checks.packages(), checks.cpu(), checks.cores(), checks.memory()]
    found += [checks.disk(bundle or server or Path()), checks.clock(now)]
    found += _bundle(bundle, now) if bundle else []
    found += _server(server, now) if server else [checks.port(8443)]
    return found


def table(found: Sequence[Finding]) -> list[str]:
    """The findings as aligned lines of text."""
    rows = [("", "what", "found", "to do")]
    rows += [(_MARKS[f.state], f.what, f.found, _remedy(f)) for f in found]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return [
        "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]).rstrip() for row in rows
    ]


def _remedy(finding: Finding) -> str:
    if finding.state == "ok" or not finding.remedy:
        return ""
    roles = "" if finding.roles == ROLES else f"({', '.join(finding.roles)}) "
    return roles + finding.remedy


def _bundle(folder: Path, now: float) -> list[Finding]:
    from fedge.deploy.federation import Enrolment, load_certificate
    from fedge.deploy.tls import device_context

    roles = ("client",)

    def enrolment() -> Finding:
        mine = Enrolment.load(folder)
        mine.signing_key()
        return Finding("bundle", f"{mine.name} in federation {mine.federation[:8]}", "ok", roles)

    def certificate() -> Finding:
        device_context(folder, now)
        return _expiry("certificate", load_certificate(folder / "client.pem"), now, roles)

    found = [_tried("bundle", roles, enrolment), _tried("certificate", roles, certificate)]
    if all(f.state != "missing" for f in found):
        mine = Enrolment.load(folder)
        found += ask_server(mine.host, mine.port, device_context(folder, now), now)
    return found


def _server(folder: Path, now: float) -> list[Finding]:
    from fedge.deploy.federation import RELEASES, Federation, Registry, load_certificate
    from fedge.deploy.tls import server_context
    from fedge.release.keys import OnlineKeys

    roles = ("server",)
    folder = folder / "server" if (folder / "server").is_dir() else folder

    def federation() -> Finding:
        own = Federation.load(folder)
        OnlineKeys.load(folder / RELEASES)
        return Finding("federation", f"{own.name} ({own.id[:8]}), {own.address}", "ok", roles)

    def registry() -> Finding:
        members = Registry.load(folder / "registry.json").members.values()
        revoked = sum(m.revoked for m in members)
        return Finding("registry", f"{len(members)} devices, {revoked} revoked", "ok", roles)

    def certificate() -> Finding:
        server_context(folder, now=now)
        return _expiry("certificate", load_certificate(folder / "server.pem"), now, roles)

    found = [
        _tried("federation", roles, federation),
        _tried("registry", roles, registry),
        _tried("certificate", roles, certificate),
    ]
    number = 8443 if found[0].state == "missing" else Federation.load(folder).port
    return [*found, checks.port(number)]


def ask_server(host: str, port: int, context: ssl.SSLContext, now: float) -> list[Finding]:
    """Whether the server answers, takes this device's certificate, and has the same time."""
    from fedge.deploy.federation import join_address

    what, roles = f"server {join_address(host, port)}", ("client",)
    try:
        plain = socket.create_connection((host, port), _CONNECT_SECONDS)
        with plain, context.wrap_socket(plain, server_hostname=host) as link:
            answer = _first_answer(link, host)
    except ssl.SSLCertVerificationError as error:
        hint = "is this bundle of another federation, or a clock wrong?"
        return [Finding(what, f"its certificate is refused: {error.verify_message}", "missing", roles, hint)]
    except ssl.SSLError as error:
        hint = "ask the operator: fedge provision DIR --list"
        return [Finding(what, f"refuses this device: {error.reason or error}", "missing", roles, hint)]
    except OSError as error:
        reason = error.strerror or str(error)
        return [
            Finding(what, f"no answer: {reason}", "warning", roles, "is it running, and this address right?")
        ]
    return [Finding(what, "answers", "ok", roles), *_compare_clocks(answer, now)]


def _first_answer(link: ssl.SSLSocket, host: str) -> bytes:
    """The head of the answer to a plain request. With TLS 1.3 a refused certificate shows only here."""
    link.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("ascii"))
    try:
        return link.recv(4096)
    except TimeoutError:
        return b""


def _compare_clocks(answer: bytes, now: float) -> list[Finding]:
    match = re.search(rb"\r\nDate: ([ -~]{1,64})\r\n", answer, re.IGNORECASE)
    try:
        there = parsedate_to_datetime(match[1].decode("ascii")).timestamp() if match else None
    except (ValueError, TypeError, OverflowError):
        there = None
    if there is None:
        return []
    off = now - there
    if abs(off) <= _CLOCK_SECONDS:
        return [Finding("clock and server", "agree", "ok", ("client",))]
    way = "ahead of" if off > 0 else "behind"
    text = f"this clock is {abs(off):.0f} s {way} the server's"
    return [Finding("clock and server", text, "warning", ("client",), "sudo timedatectl set-ntp true")]


def _expiry(what: str, certificate: Any, now: float, roles: tuple[str, ...]) -> Finding:
    from fedge.deploy.pki import days_left

    left = days_left(certificate, now)
    text = f"{left:.0f} days left"
    return Finding(
        what, text, "warning" if left < _SOON_DAYS else "ok", roles, "renew it: docs/provisioning.md"
    )


def _tried(what: str, roles: tuple[str, ...], check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except FedgeError as error:
        return Finding(what, str(error), "missing", roles)


def _as_json(found: Sequence[Finding], able: dict[str, list[Finding]], role: str | None) -> dict[str, Any]:
    rows = [
        {"what": f.what, "found": f.found, "state": f.state, "roles": list(f.roles), "remedy": f.remedy}
        for f in found
    ]
    return {"role": role, "can_run": {r: not able[r] for r in ROLES}, "findings": rows}


def _say(text: str) -> None:
    print(text)  # noqa: T201
