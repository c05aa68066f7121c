"""Started by Flower itself (``flwr run .``): settings come from the run config, progress goes to its log."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fedge.errors import ConfigError
from fedge.federated.journal import Journal
from fedge.observe import JsonlSink, Tee, Terminal
from fedge.simulation.folder import JOURNAL, fresh_folder
from fedge.simulation.life import bind, live
from fedge.simulation.torch_settings import repeatable
from fedge.simulation.world import build_world, config_of

_LOOK = 0.5  # seconds between two looks for nodes


def serve(grid: Grid, run_config: Mapping[str, Any]) -> None:
    """The whole life of a model over ``grid``.

    Where Flower simulates fewer nodes than there are clients, the first of them take part, as with
    ``fedge simulate --clients``. Run config: ``scenario``, ``seed`` or any other setting as a dotted key,
    ``set`` (settings as ``--set`` takes them, with spaces between), and ``out``, a folder.

    Raises:
        ConfigError: Flower was started with more nodes than the scenario has clients.
    """
    repeatable()
    config, terminal = config_of(run_config), Terminal()
    world, nodes = build_world(config), _nodes(grid)
    clients = len(world.roles.participants)
    if nodes > clients:
        raise ConfigError(f"Flower simulates {nodes} nodes; {clients} clients take part in the scenario")
    if nodes < clients:
        config = replace(config, data=replace(config.data, clients=nodes))
        world = build_world(config)
        text = f"{nodes} of {clients} clients take part; --federation-config 'num-supernodes={clients}': all"
        terminal.event("note", text=text)
    out = fresh_folder(Path(str(run_config["out"])) if run_config.get("out") else None, config.scenario)
    with Journal(out / JOURNAL) as journal, JsonlSink(out / "metrics.jsonl") as sink:
        bind(journal, config)
        live(grid, world, out, journal, Tee(terminal, sink), engine="ray")


def _nodes(grid: Grid) -> int:
    """How many nodes there are: Flower makes them while the ServerApp starts, so wait until it is done."""
    before, now = 0, len(list(grid.get_node_ids()))
    while not now or now != before:
        time.sleep(_LOOK)
        before, now = now, len(list(grid.get_node_ids()))
    return now
