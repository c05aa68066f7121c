"""The ``ServerApp`` of a deployed federation: finds its configuration by path and hands over to the work.

Flower installs an app by copying it; ours is two lines, written into the state directory, that name this
module of the installed fedge. A run of it is disposable: whatever kills it, the supervisor starts another,
and the work goes on from what it has committed.
"""

import importlib
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedge.deploy.bell import Bell
from fedge.deploy.deployment import BELL, CONFIG, OUTCOME, RUN, VOICE, Deployment, say, started
from fedge.deploy.flower_internals.replies import BoundedPull, run_id_of, stock_nodes
from fedge.deploy.registry import Registry
from fedge.deploy.stock_node import flower_pem
from fedge.deploy.tied import tie
from fedge.errors import ConfigError, InputError
from fedge.flower.grid_clients import GridClients

MAX_FRAME = 64 << 20
"""Bytes of the largest answer that is looked at."""

_GATEWAY = 30.0  # seconds in which the gateway has to be there
_SWEEP_STOCK, _SWEEP_ALL = 0.25, 10.0  # seconds between two looks at messages that nobody announced
_SWEEPS = 50.0  # such looks per second, at most

Work = Callable[[GridClients, Deployment], None]


class GatewayFleet:
    """``Fleet`` of ``GridClients``: clients behind the gateway announce themselves, stock ones are sought."""

    def __init__(self, bell: Bell, stock: Callable[[], Mapping[str, int]]) -> None:
        """The gateway behind ``bell``, and what finds the stock nodes that are there."""
        self._bell, self._stock = bell, stock
        self._parts: tuple[Mapping[str, int], Mapping[str, int]] = ({}, {})
        self._known: dict[str, int] = {}
        self._looked = self._swept = self._swept_all = float("-inf")
        self._answered: Collection[str] = ()

    def nodes(self) -> Mapping[str, int]:
        """As the gateway says, and what stock nodes Flower knows; the same object until that changes."""
        announced, stock = self._bell.nodes(), self._parts[1]
        if time.monotonic() - self._looked > _SWEEP_STOCK * 4:
            found = self._stock()
            stock, self._looked = stock if found == stock else found, time.monotonic()
        if announced is not self._parts[0] or stock is not self._parts[1]:
            self._parts, self._known = (announced, stock), {**stock, **announced}
        return self._known

    def fetch(self, clients: Iterable[str]) -> None:
        """Tell the gateway."""
        self._bell.fetch(clients)

    def whole(self, message: str) -> bool:
        """Whether the gateway said just now that the answer to a message lies at Flower, all of it."""
        return message in self._answered

    def wait(self, waiting: Mapping[str, str], seconds: float) -> Collection[str]:
        """What the gateway says was answered; of the rest, some from time to time."""
        self._answered = answered = self._bell.wait(seconds) & waiting.keys()
        now, stock = time.monotonic(), self._parts[1]
        if now - self._swept_all > max(_SWEEP_ALL, len(waiting) / _SWEEPS):
            self._swept = self._swept_all = now
            return list(waiting)
        if stock and now - self._swept > max(_SWEEP_STOCK, len(stock) / _SWEEPS):
            self._swept = now
            return answered | {m for m, client in waiting.items() if client in stock}
        return answered


def serve(grid: Grid, run_config: Mapping[str, Any]) -> None:
    """One run: connect to the gateway, do the work, and say how it ended.

    Wrong input ends the run without a traceback: the supervisor finds in ``outcome.json`` what to say.
    """
    deployment = Deployment.load(Path(str(run_config[CONFIG])))
    run = run_id_of(grid)
    tie(os.getppid())
    _speak(deployment.state / VOICE)
    say(deployment.state / RUN, {"run": run, "pid": os.getpid(), "started": started(os.getpid())})
    bell = Bell(deployment.state / BELL)
    try:
        _await_gateway(bell)
        fleet = GatewayFleet(bell, _stock_finder(grid, deployment))
        clients = GridClients(grid, fleet=fleet, pull=BoundedPull(grid, MAX_FRAME, fleet.whole))
        _work(deployment.work)(clients, deployment)
    except InputError as error:
        say(deployment.state / OUTCOME, {"run": run, "exit": error.exit_code, "why": str(error)})
    else:
        say(deployment.state / OUTCOME, {"run": run, "exit": 0, "why": "all rounds are done"})
    finally:
        bell.close()


def _speak(path: Path) -> None:
    """Let this process be heard: SuperExec drops its output, and Flower keeps a copy in memory for ever."""
    with suppress(OSError):  # no supervisor listens
        pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        os.set_blocking(pipe, True)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(pipe, 1)
        os.dup2(pipe, 2)
        os.close(pipe)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def _await_gateway(bell: Bell) -> None:
    end = time.monotonic() + _GATEWAY
    while not bell.connected:
        bell.wait(0.2)
        if time.monotonic() > end:
            raise ConnectionError("the gateway is not there")
    bell.wait(0.5)  # it says at once who is there


def _stock_finder(grid: Grid, deployment: Deployment) -> Callable[[], Mapping[str, int]]:
    """Looks for the enrolled stock nodes, by public key: Flower's node id is never an identity."""
    path = deployment.server / "registry.json"
    registry: Registry | None = None

    def find() -> Mapping[str, int]:
        nonlocal registry
        registry = Registry.load(path, registry)
        stock = {
            flower_pem(m.node): m.name
            for m in registry.members.values()
            if m.node is not None and not m.revoked
        }
        return {stock[k]: n for k, n in stock_nodes(grid).items() if k in stock} if stock else {}

    return find


def _work(name: str) -> Work:
    module, _, function = name.partition(":")
    try:
        work: Work = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"the work {name!r} cannot be found: {error}") from None
    return work


app = ServerApp()


@app.main()
def _main(grid: Grid, context: Context) -> None:
    serve(grid, context.run_config)
