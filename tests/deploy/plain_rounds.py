"""Rounds without torch over the whole deployed stack: ``python -m deploy.plain_rounds server|client ...``.

``server FEDERATION STATE [--door PORT] [KEY=VALUE ...]`` is ``fedge server`` with other work: each round
sends ``size`` bytes to everyone who is there and waits for as many back from all but ``spare`` of them; a
round with fewer than ``least`` such answers is tried again. ``client BUNDLE STATE PORT SECONDS`` is a device
that answers.
"""

import argparse
import hashlib
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from fedge.deploy import server_command
from fedge.deploy.deployment import Deployment
from fedge.errors import FedgeError
from fedge.flower.grid_clients import GridClients

SETTINGS = {"rounds": 10**6, "size": 100, "least": 1, "deadline": 120.0, "spare": 0}


def content(number: int, client: str, size: int) -> bytes:
    """A task: bytes that no compression shortens, and another for each round and client."""
    return hashlib.shake_128(f"{number} {client}".encode()).digest(size)


def answer(task: bytes) -> bytes:
    """What a device makes of it: as long, and as incompressible."""
    return hashlib.shake_128(b"answer" + task).digest(len(task))


def committed(state: Path) -> list[dict[str, Any]]:
    """The rounds that are done: ``{"round", "clients", "seconds"}``."""
    path = state / "rounds.jsonl"
    whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
    return [json.loads(line) for line in whole.splitlines()]


def work(clients: GridClients, deployment: Deployment) -> None:
    """Rounds, from the first that is not committed."""
    done, wanted = len(committed(deployment.state)), deployment.settings
    while done < wanted["rounds"]:
        if len(there := clients.ids()) < wanted["least"]:
            time.sleep(0.02)
            continue
        start = time.monotonic()
        tasks = {c: content(done, c, int(wanted["size"])) for c in there}
        answers = clients.ask(tasks, float(wanted["deadline"]), len(tasks) - int(wanted["spare"]))
        sound = sorted(client for client, said in answers if said == answer(tasks[client]))
        if len(sound) >= wanted["least"]:
            record = {"round": done, "clients": sound, "seconds": round(time.monotonic() - start, 3)}
            with (deployment.state / "rounds.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
            done += 1


def _server(options: argparse.Namespace) -> int:
    given = dict(text.split("=") for text in options.settings)
    server_command.WORK = "deploy.plain_rounds:work"
    options.host, options.port, options.log, options.flower_door = "127.0.0.1", None, "human", options.door
    options.server = options.federation / "server"
    return server_command.run(options, {k: type(v)(given.get(k, v)) for k, v in SETTINGS.items()})


def _client(options: argparse.Namespace) -> int:
    from deploy.link_lab import Lab

    def slowly(task: bytes) -> bytes:
        print("works", flush=True)  # noqa: T201
        time.sleep(options.seconds)
        print("worked", flush=True)  # noqa: T201
        return answer(task)

    with Lab(options.bundle, options.state, options.port, work=slowly):
        signal.pause()
    return 0


def _main() -> int:
    parser = argparse.ArgumentParser()
    which = parser.add_subparsers(dest="which", required=True)
    server, client = which.add_parser("server"), which.add_parser("client")
    server.add_argument("federation", type=Path)
    server.add_argument("state", type=Path)
    server.add_argument("settings", nargs="*")
    server.add_argument("--door", type=int)
    client.add_argument("bundle", type=Path)
    client.add_argument("state", type=Path)
    client.add_argument("port", type=int)
    client.add_argument("seconds", type=float)
    options = parser.parse_args()
    return _server(options) if options.which == "server" else _client(options)


if __name__ == "__main__":
    try:
        sys.exit(_main())
    except FedgeError as error:
        sys.exit(f"fedge: error: {error}")
