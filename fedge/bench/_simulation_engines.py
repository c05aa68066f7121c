"""The same rounds on the local engine and on Flower's with Ray, for ``fedge bench simulation``."""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from fedge.errors import FedgeError
from fedge.federated.federation import Clients, Federation
from fedge.federated.journal import Journal
from fedge.federated.server import run_round
from fedge.federated.state import FederationState
from fedge.flower.grid_clients import GridClients
from fedge.simulation.local import LocalGrid
from fedge.simulation.workers import Workers

Begin = Callable[[Clients, Journal], tuple[Federation, FederationState]]
"""Makes a federation over some clients, and its state before the first round."""


@dataclass(frozen=True)
class Played:
    """Some rounds.

    Attributes:
        start: seconds until the engine could begin with the first of them.
        rounds: seconds of each; one more, before them, is not counted.
    """

    start: float
    rounds: list[float]


@dataclass(frozen=True)
class Case:
    """What is to be run.

    Attributes:
        app: the ClientApp, ``module:attribute``, for the local engine.
        run_config: its run config.
        bound: the same ClientApp with its settings, for Ray.
        clients: how many there are.
        begin: makes the federation.
    """

    app: str
    run_config: Mapping[str, Any]
    bound: Callable[[], ClientApp]
    clients: int
    begin: Begin

    def on_local(self, rounds: int, workers: int) -> Played:
        """With worker processes."""
        began = time.perf_counter()
        with (
            tempfile.TemporaryDirectory(prefix="fedge-bench-") as folder,
            Workers(self.app, self.run_config, self.clients, workers) as crew,
            LocalGrid(crew, self.clients, {}, Path(folder) / "clients") as grid,
        ):
            return self._over(grid, began, rounds)

    def on_ray(self, rounds: int, cores_each: int) -> Played:
        """With Ray's processes, so many cores each; Ray's own start counts as start."""
        from fedge.simulation.ray_engine import on_ray

        played, began = list[Played](), time.perf_counter()

        def server(grid: Grid) -> None:
            played.append(self._over(grid, began, rounds))

        on_ray(server, self.bound(), self.clients, None, cores_each)
        return played[0]

    def _over(self, grid: Grid, began: float, rounds: int) -> Played:
        clients = GridClients(grid)
        return self.over(clients, time.perf_counter() - began, rounds)

    def over(self, clients: Clients, start: float, rounds: int) -> Played:
        """The rounds over any clients, with a journal in a temporary folder.

        Raises:
            FedgeError: not every client's update counted.
        """
        seconds = []
        with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal.sqlite") as journal:
            federation, state = self.begin(clients, journal)
            for _ in range(rounds + 1):
                began = time.perf_counter()
                state = run_round(state, federation)
                seconds.append(time.perf_counter() - began)
            counted = [len(record["counted"]) for record in journal.rounds()]
        if set(counted) != {self.clients}:
            raise FedgeError(f"{counted} of {self.clients} updates were counted: this measures nothing")
        return Played(start, seconds[1:])
