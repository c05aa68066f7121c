"""Federations for tests, made in a moment, and a real TLS connection between two folders."""

import socket
import ssl
import threading
from pathlib import Path

from fedge.deploy import enrol, pki
from fedge.deploy.federation import Federation
from fedge.deploy.issue import Device

NOW = 1_790_000_000.0
"""Unix seconds, in September 2026: when everything in these tests is made."""


def make_federation(folder: Path, *names: str, now: float = NOW, days: int = 730) -> Federation:
    devices = [Device(name, days=days) for name in names]
    return enrol.create(folder, "test", ("localhost", "127.0.0.1"), 8443, devices, now, days)


def shake_hands(server: ssl.SSLContext, device: ssl.SSLContext, host: str = "localhost") -> bytes:
    """Connect over loopback and send one byte each way; gives the device's certificate (DER, or nothing).

    Raises:
        ssl.SSLError, ConnectionError: one end refused the other.
    """
    found: list[bytes | BaseException] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_serve, args=(listener, server, found))
        thread.start()
        try:
            plain = socket.create_connection(listener.getsockname(), 10)
            with plain, device.wrap_socket(plain, server_hostname=host) as link:
                link.sendall(b"?")
                if link.recv(1) != b"!":
                    raise ConnectionError("the server hung up")
        finally:
            thread.join(10)
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _serve(listener: socket.socket, context: ssl.SSLContext, found: list[bytes | BaseException]) -> None:
    try:
        plain, _ = listener.accept()
        plain.settimeout(10)
        with plain, context.wrap_socket(plain, server_side=True) as link:
            link.recv(1)
            found.append(link.getpeercert(binary_form=True) or b"")
            link.sendall(b"!")
    except (OSError, ssl.SSLError) as error:
        found.append(error)


def admitted(folder: Path, der: bytes, own: Federation) -> str:
    """The name under which the server in ``folder`` lets this certificate in."""
    from fedge.deploy.federation import Registry

    registry = Registry.load(folder / "server" / "registry.json")
    return registry.admit(pki.identity(der), own.id).name
