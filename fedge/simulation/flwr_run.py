"""Started by Flower itself (``flwr run .``): settings come from the run config, progress goes to its log."""

from collections.abc import Mapping
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


def serve(grid: Grid, run_config: Mapping[str, Any]) -> None:
    """The whole life of a model over ``grid``.

    Run config: ``scenario``, any setting as a dotted key (``rounds.rounds = 5``), and ``out``, a folder.

    Raises:
        ConfigError: Flower was started with another number of nodes than the scenario has clients.
    """
    repeatable()
    config = config_of(run_config)
    world = build_world(config)
    nodes, clients = len(list(grid.get_node_ids())), len(world.roles.participants)
    if nodes != clients:
        raise ConfigError(
            f"Flower simulates {nodes} nodes, the scenario has {clients} clients that take part; "
            f"set the federation's number of SuperNodes to {clients}"
        )
    out = fresh_folder(Path(str(run_config["out"])) if "out" in run_config else None, config.scenario)
    with Journal(out / JOURNAL) as journal, JsonlSink(out / "metrics.jsonl") as sink:
        bind(journal, config, resume=False)
        live(grid, world, out, journal, Tee(Terminal(), sink), engine="flower")
