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
from fedge.deploy.federation import PARENT, REGISTRY, RELEASES, Enrolment, Federation, split_address
from fedge.deploy.rounds import Enrolled, gather, looked_at
from fedge.deploy.state_directory import JOURNAL, METRICS, bind
from fedge.deploy.status_file import About
from fedge.deploy.status_writer import Status
from fedge.errors import PayloadError
from fedge.federated.federation import Federation as Rounds
from fedge.federated.journal import Journal
from fedge.federated.prepare import Prepared
from fedge.federated.tier import EdgeServer
from fedge.federated.tier_state import EdgeState
from fedge.flower.grid_clients import GridClients
from fedge.flower.robust import robust
from fedge.observe import JsonlSink, Tee, Terminal
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
    clients.keep_late(config.rounds.deadline_seconds if config.rounds.late == "count" else None)
    enrolled = Enrolled(deployment.server / REGISTRY)
    logging.getLogger("fedge.client").setLevel(logging.INFO)
    with (
        _Told(deployment.state / JOURNAL) as journal,
        JsonlSink(deployment.state / METRICS) as sink,
    ):
        bind(journal, config, federation.id)
        about = About(federation.id, federation.name, "edge server", f"what {above} says", "score", 0)
        status = Status(deployment.state, about)
        journal.show(status)
        look = looked_at(clients, enrolled, status)
        observer = Tee(Terminal(), sink, status)

        def members(prepared: Prepared, task: Task) -> Rounds:
            return Rounds(
                config=config,
                task=task,
                prepared=prepared,
                clients=clients,
                enrolled=enrolled,
                publisher=None,
                journal=journal,
                observer=observer,
                score=lambda _weights: {},
                present=look,
                tags={m.name: m.tags for m in enrolled.registry().members.values()},
                robust=robust(config),
            )

        bundle = Enrolment.load(deployment.server / PARENT)
        mirror = Mirror(deployment.state / RELEASES, bundle.root())
        server = EdgeServer(bundle.name, bundle.signing_key(), journal, members, mirror)
        gather(look, enrolled, config.rounds.gather_seconds)
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


class _Told(Journal):
    """A journal that tells ``status.json`` of each round once it is committed."""

    status: Status | None = None

    def commit_round(self, number: int, record: Mapping[str, Any], state: bytes) -> None:
        """As in any journal, and tell."""
        super().commit_round(number, record, state)
        if self.status is not None:
            self.status.committed(record, EdgeState.from_bytes(state).below.clients)

    def show(self, status: Status) -> None:
        """From now on in ``status``, which is brought to where this journal stands."""
        try:
            saved = self.state()
            status.resume(0 if saved is None else EdgeState.from_bytes(saved).rounds, self.rounds)
        except PayloadError as error:
            raise self.damaged(error) from None
        self.status = status
