"""From the options of ``fedge server`` to a supervised server."""

import argparse
import asyncio
import ipaddress
import logging
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress

from fedge.deploy.children import Log
from fedge.deploy.deployment import BELL, Deployment
from fedge.deploy.federation import REGISTRY, Federation
from fedge.deploy.registry import Registry
from fedge.deploy.status import serve_status
from fedge.deploy.supervisor import Plan, supervise
from fedge.deploy.tls import server_context
from fedge.errors import SetupError

WORK = "fedge.deploy.rounds:run"
"""What a run does, unless told otherwise."""


def run(
    options: argparse.Namespace, settings: dict[str, object] | None = None, work: str | None = None
) -> int:
    """Run the server until its work is done or SIGTERM comes; returns the exit code.

    ``work`` is what a run does, ``WORK`` unless given.

    Everything that can be wrong with the folders and the ports is found before anything is started.

    Raises:
        SetupError: a folder, a certificate, the registry or a port cannot be used.
        FedgeError: something dies again and again.
    """
    federation = Federation.load(options.server)
    server_context(options.server)
    Registry.load(options.server / REGISTRY)
    port = federation.port if options.port is None else options.port
    for wanted in (port, options.flower_door):
        if wanted is not None:
            _check_free(options.host, wanted)
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    given = settings or {}
    return asyncio.run(
        _serve(_plan(options, port, given, work or WORK), int(str(given.get("status_port", 0))))
    )


async def _serve(plan: Plan, status_port: int) -> int:
    async with serve_status(plan.deployment.state, status_port):
        return await supervise(plan)


def _plan(options: argparse.Namespace, port: int, settings: dict[str, object], work: str) -> Plan:
    state, server = options.state.resolve(), options.server.resolve()
    (state / BELL).unlink(missing_ok=True)  # of a server that was killed

    def gateway(superlink: str) -> Sequence[str]:
        line = [sys.executable, "-m", "fedge.deploy.gateway_process", "--superlink", superlink]
        line += ["--state", str(state), "--server", str(server), "--host", options.host, "--port", str(port)]
        return line if options.flower_door is None else [*line, "--door", str(options.flower_door)]

    async def listening() -> None:
        while True:
            with suppress(OSError):
                _, writer = await asyncio.open_connection(_reachable(options.host), port)
                writer.close()
                if (state / BELL).exists():
                    return
            await asyncio.sleep(0.1)

    return Plan(Deployment(state, server, work, settings), gateway, listening, Log(options.log))


def _reachable(host: str) -> str:
    """An address of this machine at which ``host`` listens."""
    with suppress(ValueError):
        if (address := ipaddress.ip_address(host)).is_unspecified:
            return "::1" if address.version == 6 else "127.0.0.1"
    return host


def _check_free(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            end.bind((host, port))
        except OSError as error:
            raise SetupError(
                f"cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}"
            ) from None
