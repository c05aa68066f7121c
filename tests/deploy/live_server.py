"""A server with real Flower under it, for ``test_supervisor``: ``python -m deploy.live_server ...``.

``server STATE ROUNDS`` is the supervisor; ``gateway STATE SUPERLINK`` a gateway with two clients in it that
answer at once; ``work`` is what the run does: rounds, each one committed to a file.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fedge.deploy.bell import BellServer
from fedge.deploy.children import Log
from fedge.deploy.deployment import BELL, Deployment
from fedge.deploy.fleet import FleetUpstream
from fedge.deploy.flower_internals.nodes import Nodes
from fedge.deploy.supervisor import Plan, supervise
from fedge.errors import ConfigError, FedgeError
from fedge.flower.grid_clients import GridClients

CLIENTS = ("a", "b")


def committed(state: Path) -> list[dict[str, str]]:
    """The rounds that are done."""
    path = state / "rounds.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def work(clients: GridClients, deployment: Deployment) -> None:
    """Rounds, from the first that is not committed."""
    if deployment.settings["rounds"] < 0:
        raise ConfigError("a number of rounds below zero")
    done = len(committed(deployment.state))
    print(f"goes on with round {done}")  # noqa: T201
    while done < deployment.settings["rounds"]:
        tasks = {c: f"round {done} for {c}".encode() for c in CLIENTS if c in clients.ids()}
        answers = dict(clients.ask(tasks, deadline=20.0))
        if set(answers) == set(CLIENTS) and all(isinstance(a, bytes) for a in answers.values()):
            said = {c: a.decode() for c, a in answers.items() if isinstance(a, bytes)}
            with (deployment.state / "rounds.jsonl").open("a") as file:
                file.write(json.dumps(said) + "\n")
            done += 1


async def _client(fleet: FleetUpstream, name: str) -> None:
    await fleet.join(name)
    while True:
        task = await fleet.next_task(name)
        try:
            await fleet.answer(name, task.id, b"answer to " + task.frame)
        except FedgeError as error:
            print(error, flush=True)  # noqa: T201


async def _gateway(state: Path, superlink: str) -> None:
    fleet = FleetUpstream(Nodes(superlink))
    bell = BellServer(state / BELL, fleet.ring, fleet.verify)
    fleet.teller = bell
    await bell.start()
    await asyncio.gather(fleet.run(), *(_client(fleet, name) for name in CLIENTS))


def _plan(state: Path, rounds: int) -> Plan:
    server = state / "provisioned"
    server.mkdir(parents=True, exist_ok=True)
    (server / "registry.json").write_text('{"schema": 1, "members": {}}')

    def gateway(superlink: str) -> Sequence[str]:
        return [sys.executable, "-m", "deploy.live_server", "gateway", str(state), superlink]

    async def listening() -> None:
        while not (state / BELL).exists():
            await asyncio.sleep(0.05)

    return Plan(
        Deployment(state, server, "deploy.live_server:work", {"rounds": rounds}),
        gateway,
        listening,
        Log("json"),
    )


if __name__ == "__main__":
    part, folder, last = sys.argv[1:]
    if part == "gateway":
        asyncio.run(_gateway(Path(folder), last))
    try:
        sys.exit(asyncio.run(supervise(_plan(Path(folder), int(last)))))
    except FedgeError as error:
        sys.exit(f"fedge: error: {error}")
