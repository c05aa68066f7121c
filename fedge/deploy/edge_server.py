"""The work of an edge server: to its own devices a server, to the server above it a device.

It is what a run does (``server_app``) where ``fedge provision --parent`` made the federation. It holds a link
to the parent as ``fedge client`` does, and answers each task with what its own devices make of it
(``fedge.federated.tier``). It learns nothing itself and needs no data. It never ends by itself: the parent
knows when all is done.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedge.config import config_from
from fedge.deploy import tls
from fedge.deploy.deadlines import for_edge
from fedge.deploy.deployment import Deployment
from fedge.deploy.device import LARGEST_TASK, identity_of
from fedge.deploy.device_limits import ByteAccount, DeviceLimits
from fedge.deploy.device_link import DeviceLink, Server
from fedge.deploy.device_store import LinkStore
from fedge.deploy.device_work import Worker
from fedge.deploy.federation import PARENT, RELEASES, Enrolment, Federation, split_address
from fedge.deploy.open_run import opened
from fedge.deploy.status_file import About
from fedge.federated.federation import Federation as Rounds
from fedge.federated.prepare import Prepared
from fedge.federated.state import ClientRecord
from fedge.federated.tier import EdgeServer
from fedge.federated.tier_state import EdgeState
from fedge.flower.grid_clients import GridClients
from fedge.release.mirror import Mirror
from fedge.tasks import Task

_ABOVE = "above"  # in the state directory: the link's files


def run(clients: GridClients, deployment: Deployment) -> None:
    """Answer the parent until this process is ended.

    Raises:
        InputError: the settings, the bundle or the state directory cannot be used.
    """
    config = for_edge(config_from(str(deployment.settings["config"])))
    federation, above = Federation.load(deployment.server), parent_of(deployment)
    about = About(federation.id, federation.name, "edge server", f"what {above} says", "score", 0)
    logging.getLogger("fedge.client").setLevel(logging.INFO)
    with opened(clients, deployment, federation, config, about, _standing) as held:
        bundle = Enrolment.load(deployment.server / PARENT)
        mirror = Mirror(deployment.state / RELEASES, bundle.root())
        look = held.gathered()

        def members(prepared: Prepared, task: Task) -> Rounds:
            return held.rounds(task, prepared, look, None)

        server = EdgeServer(bundle.name, bundle.signing_key(), held.journal, members, mirror)
        _answer(server, bundle, above, deployment.state, idle=look)


def _answer(server: EdgeServer, bundle: Enrolment, above: Server, state: Path, idle: Any) -> None:
    """Hold the link to the parent, and do what comes over it."""
    files = LinkStore(state / _ABOVE, LARGEST_TASK)
    desk, held = files.load()
    limits = DeviceLimits()
    worker = Worker(server, files, limits, lambda: None, idle=idle)
    link = DeviceLink(
        above,
        lambda: tls.device_context(bundle.folder),
        identity_of(bundle, bundle.folder),
        files,
        desk,
        worker,
        limits,
        ByteAccount(state / f"{_ABOVE}.json"),
        LARGEST_TASK,
    )
    worker.reports = link
    if held is not None:
        worker.begin(held.id, held.frame, None)
    link.start()
    worker.run()


def parent_of(deployment: Deployment) -> Server:
    """Where the parent is: as the command line said, or as its bundle says.

    Raises:
        SetupError: there is no bundle, or it is damaged.
        PayloadError: the address is malformed.
    """
    bundle = Enrolment.load(deployment.server / PARENT)
    if given := str(deployment.settings.get("parent") or ""):
        return Server(*split_address(given))
    return Server(bundle.host, bundle.port)


def _standing(state: bytes) -> tuple[int, Mapping[str, ClientRecord]]:
    read = EdgeState.from_bytes(state)
    return read.rounds, read.below.clients
