"""``python -m fedge.deploy.gateway_process``: the gateway's process, started and watched by the supervisor.

One event loop: the device link, the door for stock nodes, the fleet of Flower nodes behind both, and the bell
to the round loop. It holds nothing that has to survive.
"""

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

from fedge.deploy.bell import BellServer
from fedge.deploy.deployment import BELL
from fedge.deploy.federation import REGISTRY, RELEASES, Federation
from fedge.deploy.fleet import FleetUpstream
from fedge.deploy.flower_door import FlowerDoor
from fedge.deploy.flower_internals.nodes import Nodes
from fedge.deploy.gateway import Gateway
from fedge.deploy.gateway_admission import RegistryFile
from fedge.deploy.tls import server_context
from fedge.errors import FedgeError


async def serve(options: argparse.Namespace) -> None:
    """Until SIGTERM.

    Raises:
        SetupError: a port or a file cannot be had.
    """
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    federation, registry = Federation.load(options.server), RegistryFile(options.server / REGISTRY)
    fleet = FleetUpstream(Nodes(options.superlink), linger=0.0)  # the gateway lingers itself
    bell = BellServer(options.state / BELL, fleet.ring, fleet.verify)
    fleet.teller = bell
    context = server_context(options.server, "required")
    gateway = Gateway(fleet, registry, context, federation.id, releases=options.state / RELEASES)
    door = FlowerDoor(options.superlink, registry, server_context(options.server, "none"), fleet.stock)
    await gateway.start(options.host, options.port)
    if options.door is not None:
        await door.start(options.host, options.door)
    await bell.start()  # last: the supervisor takes it for the sign that devices can connect
    chores = asyncio.ensure_future(fleet.run())
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait([chores, stopped], return_when=asyncio.FIRST_COMPLETED)
        if chores.done():
            chores.result()
    finally:
        chores.cancel()
        await gateway.close()
        await door.close()
        await bell.close()
        await fleet.close()


def main() -> int:
    """The process; returns its exit code."""
    parser = argparse.ArgumentParser(prog="fedge gateway")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--server", type=Path, required=True)
    parser.add_argument("--superlink", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--door", type=int)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        asyncio.run(serve(parser.parse_args()))
    except FedgeError as error:
        print(f"error: {error}", flush=True)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
