"""How a device speaks to people and to systemd: log lines, plain reasons, readiness."""

import contextlib
import errno
import json
import logging
import os
import socket
import ssl
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fedge.link.frames import LinkError, Reason

_AGAIN = 3600.0  # seconds until the same trouble is named again
_CLOCK_SECONDS = 60
_NOT_YET_VALID, _EXPIRED, _WRONG_HOST = 9, 10, (62, 64)  # OpenSSL's X509_V_ERR_...
_REASONS: Mapping[Reason, str] = {
    Reason.LATER: "the server asks to come back later",
    Reason.BUSY: "the server is busy",
    Reason.VERSION: "this fedge and its server speak different versions: update the older one",
    Reason.UNKNOWN: "this device is not enrolled: ask the operator for a new bundle",
    Reason.REVOKED: "this device has been revoked by the operator",
    Reason.EXPIRED: "this device's certificate has expired: ask the operator for a new bundle",
    Reason.FOREIGN: "this device's certificate is not of this federation, or not the one enrolled",
    Reason.SIGNATURE: "this device's signing key is not the one enrolled",
    Reason.REPLACED: "another process uses this device's enrolment: stop one of them",
}
_ALERTS = {
    "CERTIFICATE_EXPIRED": "the server says that this device's certificate has expired, or has a wrong clock",
    "UNKNOWN_CA": "the server does not know this device's certificate: it is of another federation",
    "CERTIFICATE_REQUIRED": "the server wants a client certificate and saw none",
    "BAD_CERTIFICATE": "the server does not accept this device's certificate",
    "PROTOCOL_VERSION": "the server speaks another version of TLS",
}


class TroubleError(Exception):
    """Something is in the way of the link. ``kind`` tells one trouble from another."""

    def __init__(self, kind: str, text: str, seconds: int = 0) -> None:
        super().__init__(text)
        self.kind, self.seconds = kind, seconds


def trouble(error: Exception, server: str) -> TroubleError:
    """What went wrong, in words that say what to do."""
    if isinstance(error, TroubleError):
        return error
    if isinstance(error, LinkError):
        words = _REASONS.get(error.reason)
        text = f"{words} ({error})" if words else f"{server}: {error}"
        return TroubleError(error.reason.name.lower(), text, error.seconds)
    if isinstance(error, ssl.SSLCertVerificationError):
        return TroubleError(f"certificate-{error.verify_code}", _certificate(error, server))
    if isinstance(error, ssl.SSLError):
        return _tls(error, server)
    if isinstance(error, OSError):
        return _system(error, server)
    return TroubleError(type(error).__name__, f"an error that nobody expected: {error!r}")


def _tls(error: ssl.SSLError, server: str) -> TroubleError:
    name = error.reason or ""
    for alert, words in _ALERTS.items():
        if alert in name:
            return TroubleError(alert.lower(), words)
    return TroubleError("tls", f"TLS with {server} failed: {name.replace('_', ' ').lower() or error}")


def _system(error: OSError, server: str) -> TroubleError:
    if isinstance(error, socket.gaierror):
        return TroubleError(
            "name", f"the name in {server} cannot be resolved: no network, or a wrong address"
        )
    if isinstance(error, TimeoutError):
        return TroubleError("timeout", f"{server} does not answer")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TroubleError("disk", "the disk is full: the state of this client cannot be written")
    return TroubleError(f"os-{error.errno}", f"{server} cannot be reached: {error.strerror or error}")


def _certificate(error: ssl.SSLCertVerificationError, server: str) -> str:
    now = f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC"
    if error.verify_code == _NOT_YET_VALID:
        return f"the certificate of {server} is not valid yet: this device's clock ({now}) may be behind"
    if error.verify_code == _EXPIRED:
        return f"the certificate of {server} has expired, or this device's clock ({now}) is ahead"
    if error.verify_code in _WRONG_HOST:
        return f"the certificate of {server} is for another name: provision the server with this one"
    return f"{server} is not the server of this federation: {error.verify_message}"


def clock_words(offset: float) -> str | None:
    """What to say of a clock that is ``offset`` seconds ahead of the server's; ``None`` if it is near."""
    if abs(offset) < _CLOCK_SECONDS:
        return None
    side = "ahead of" if offset > 0 else "behind"
    return f"this device's clock is {abs(offset):.0f} s {side} the server's"


@dataclass
class Complaints:
    """Says each trouble once, and again every hour while it lasts."""

    say: Callable[[int, str], None]
    now: Callable[[], float] = time.monotonic
    _said: dict[str, float] = field(default_factory=dict)

    def about(self, kind: str, text: str, level: int = logging.WARNING) -> None:
        """There is this trouble."""
        now = self.now()
        if now - self._said.get(kind, -_AGAIN) >= _AGAIN:
            self._said[kind] = now
            self.say(level, text)

    def over(self, text: str) -> None:
        """The troubles of the link are over; said if there were any."""
        if self._said:
            self._said.clear()
            self.say(logging.INFO, text)


class JsonLines(logging.Formatter):
    """One JSON object a line: time (Unix seconds), level, logger, message, error."""

    def format(self, record: logging.LogRecord) -> str:
        """As JSON."""
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": " ".join(record.getMessage().split()),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = repr(record.exc_info[1])
        return json.dumps(line)


def log_to_stderr(style: str) -> None:
    """Set up logging, ``human`` or ``json``, on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%S")
    handler.setFormatter(JsonLines() if style == "json" else plain)
    logger = logging.getLogger("fedge")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def notify(state: str) -> None:
    """Tell systemd, where it asked (``NOTIFY_SOCKET``); see sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address or address[0] not in "/@":
        return
    path = "\0" + address[1:] if address[0] == "@" else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.sendto(state.encode(), path)


def watchdog_seconds() -> float | None:
    """How often systemd wants a sign of life, halved; ``None`` if it does not."""
    raw, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", str(os.getpid()))
    return int(raw) / 2e6 if raw.isdecimal() and pid == str(os.getpid()) else None
