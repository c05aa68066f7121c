"""fedge's part of ``fedge bench round``: a server, and devices that answer without training.

``python -m fedge.bench._round_fedge server STATE PROVISIONED PORT SETTINGS`` is ``fedge server`` with
``work`` below in the place of its usual work; ``... device STATE BUNDLE PORT SETTINGS`` is ``fedge client``
with ``answer`` in the place of its training. Everything else is what runs in the field: TLS with certificates
of both ends, the gateway, Flower's SuperLink, signed updates, the round itself, its commit to the journal.
"""

import asyncio
import json
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedge.deploy.children import Log
from fedge.deploy.deployment import BELL, Deployment, say
from fedge.deploy.supervisor import Plan, supervise
from fedge.flower.grid_clients import GridClients

MARKS = "marks.json"
_WORK = "fedge.bench._round_fedge:work"


@dataclass(frozen=True)
class Settings:
    """What server and devices have to agree on.

    Attributes:
        clients: how many.
        rounds: to run, the first few to warm up.
        parameters: of the student.
        ping: seconds between two pings of an idle link.
    """

    clients: int
    rounds: int
    parameters: int
    ping: float


def command(part: str, state: Path, folder: Path, port: int, settings: Settings) -> list[str]:
    """The command line of a server or a device."""
    given = [part, str(state), str(folder), str(port), json.dumps(asdict(settings))]
    return [sys.executable, "-m", "fedge.bench._round_fedge", *given]


def work(clients: GridClients, deployment: Deployment) -> None:
    """Rounds; then ``marks.json`` says when each began and ended, and what was carried in it."""
    import torch

    from fedge.bench._synthetic import federation_of, prepared_of, settings, unwelcomed_state
    from fedge.deploy.federation import REGISTRY, Federation
    from fedge.deploy.open_run import Enrolled
    from fedge.federated.journal import Journal
    from fedge.federated.server import run_round

    torch.set_num_threads(1)
    given = Settings(**deployment.settings)
    config = settings(given.rounds + 1, given.clients)  # the last of a run's rounds would be another thing
    prepared = prepared_of(config, given.parameters, Federation.load(deployment.server).id)
    enrolled, marks = Enrolled(deployment.server / REGISTRY), []
    with Journal(deployment.state / "journal.sqlite") as journal:
        federation = federation_of(config, prepared, clients, enrolled, journal, present=clients.ids)
        state = unwelcomed_state(federation)
        while len(clients.ids()) < given.clients:
            time.sleep(0.05)
        for _ in range(given.rounds):
            began = time.monotonic()
            state = run_round(state, federation)
            marks.append([began, time.monotonic()])
        payload = [_carried(record) for record in journal.rounds()]
    say(deployment.state / MARKS, {"rounds": marks, "payload": payload})
    while True:  # until the server is stopped
        time.sleep(60)


def _carried(record: dict[str, Any]) -> int:
    ways = (record[way].values() for way in ("down", "up", "initial_down", "initial_up"))
    return sum(sum(way) for way in ways)


def _server(state: Path, folder: Path, port: int, settings: dict[str, Any]) -> int:
    def gateway(superlink: str) -> Sequence[str]:
        line = [sys.executable, "-m", "fedge.deploy.gateway_process", "--superlink", superlink]
        line += ["--state", str(state), "--server", str(folder)]
        return [*line, "--host", "127.0.0.1", "--port", str(port)]

    async def listening() -> None:
        while not (state / BELL).exists() or not listens(port):
            await asyncio.sleep(0.05)

    return asyncio.run(supervise(Plan(Deployment(state, folder, _WORK, settings), gateway, listening, Log())))


def listens(port: int) -> bool:
    """Whether something listens on this port of loopback."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _device(state: Path, bundle: Path, port: int, settings: Settings) -> None:
    from fedge.bench import _synthetic as synthetic
    from fedge.deploy import tls
    from fedge.deploy.device import LARGEST_TASK, identity_of, run_both
    from fedge.deploy.device_limits import ByteAccount, DeviceLimits
    from fedge.deploy.device_link import DeviceLink, Server
    from fedge.deploy.device_store import LinkStore
    from fedge.deploy.device_work import Worker
    from fedge.deploy.federation import Enrolment

    me = Enrolment.load(bundle)
    key, limits = me.signing_key(), DeviceLimits()
    config = synthetic.settings(settings.rounds + 1)
    plan = synthetic.prepared_of(config, settings.parameters, me.federation)
    (payload,) = synthetic.payloads_of(plan.plan.uplink, plan.support.shapes(), 1)
    files = LinkStore(state / "link", LARGEST_TASK)
    desk, _ = files.load()
    worker = Worker(
        lambda frame: synthetic.answer(frame, me.name, key, me.federation, payload),
        files,
        limits,
        lambda: None,
    )
    worker.reports = link = DeviceLink(
        Server("127.0.0.1", port),
        lambda: tls.device_context(bundle),
        identity_of(me, bundle),
        files,
        desk,
        worker,
        limits,
        ByteAccount(state / "bytes.json"),
        LARGEST_TASK,
        settings.ping,
    )
    run_both(worker, link, limits)


def _main(part: str, state: str, folder: str, port: str, settings: str) -> int:
    given = json.loads(settings)
    if part == "server":
        return _server(Path(state), Path(folder), int(port), given)
    _device(Path(state), Path(folder), int(port), Settings(**given))
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
