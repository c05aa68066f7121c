"""The Ray engine: the same ServerApp and ClientApp on Flower's own simulation runtime, for clusters.

Ray starts on this machine, unless ``RAY_ADDRESS`` names a cluster. There every machine needs fedge and, at
the same path, the data.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from fedge.config import Config
from fedge.errors import FedgeError
from fedge.federated.client import Device
from fedge.federated.journal import Journal
from fedge.flower.client_app import make_client_app
from fedge.observe import Observer
from fedge.simulation.engines import cores
from fedge.simulation.folder import JOURNAL
from fedge.simulation.life import bind, live
from fedge.simulation.torch_settings import repeatable
from fedge.simulation.world import CONFIG, World, device_of, to_run_config

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray phones home by default; fedge does not
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


_LOOK = 0.05  # seconds between two looks for nodes


def simulate_on_ray(
    config: Config, world: World, out: Path, observer: Observer, workers: int | None
) -> dict[str, Any]:
    """The whole life, as ``life.simulate``; returns the report, which is also in ``out``.

    Args:
        config: the run's settings.
        world: built from them.
        out: a new folder.
        observer: is told what happens.
        workers: processes that run the clients, where Ray starts on this machine; ``None``: as many as cores.

    Raises:
        SetupError: the folder cannot be written.
    """
    result: list[dict[str, Any]] = []

    def server(grid: Grid) -> None:
        with Journal(out / JOURNAL) as journal:  # SQLite's connections belong to the thread that opened them
            bind(journal, config)
            result.append(live(grid, world, out, journal, observer, engine="ray"))

    on_ray(server, bound_app(config), len(world.roles.participants), workers)
    return result[0]


def bound_app(config: Config) -> ClientApp:
    """The ClientApp of the simulated clients with its settings: Flower's contexts have no run config here."""
    run_config = {CONFIG: to_run_config(config)}

    def device(context: Context) -> Device:
        own = Context(context.run_id, context.node_id, context.node_config, context.state, {**run_config})
        return device_of(own)

    return make_client_app(device)


def on_ray(
    server: Callable[[Grid], None], app: ClientApp, clients: int, workers: int | None, cores_each: int = 1
) -> None:
    """Run ``server`` in a thread, over a grid whose nodes run ``app`` in Ray's processes.

    Args:
        server: what it raises is raised here.
        app: is pickled by Ray, with what it refers to.
        clients: number of nodes.
        workers: cores that Ray has, where it starts on this machine; ``None``: all.
        cores_each: that each process takes; Flower's default is 2.

    Raises:
        FedgeError: Ray or Flower's runtime failed.
    """
    server_app, raised = ServerApp(), list[Exception]()

    @server_app.main()
    def main(grid: Grid, _context: Context) -> None:
        try:
            repeatable()  # some of torch's settings are a thread's own
            while len(list(grid.get_node_ids())) < clients:  # Flower makes them while this thread starts
                time.sleep(_LOOK)
            server(grid)
        except Exception as error:
            raised.append(error)

    own: dict[str, Any] = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": workers or cores()}
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    backend: dict[str, Any] = {
        "client_resources": {"num_cpus": cores_each, "num_gpus": 0.0},
        "init_args": {"logging_level": "ERROR", "log_to_driver": False, **own},
    }
    try:
        with _calm():
            run_simulation(server_app, app, clients, backend_config=backend)
    except RuntimeError as error:
        raise FedgeError(f"Flower's simulation runtime failed: {error.__cause__ or error}") from None
    if raised:
        raise raised[0]


@contextmanager
def _calm() -> Iterator[None]:
    """Flower's log without its warnings: that there will be another way to start a simulation some day."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
