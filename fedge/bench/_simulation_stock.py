"""Flower's own ``FedAvg`` as it comes, on its simulation runtime, with clients that do nothing."""

import time
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedge.bench import _synthetic as synthetic
from fedge.bench._simulation_engines import Played
from fedge.simulation.ray_engine import on_ray

FLOWERS_CORES = 2
"""Cores that Flower gives a client unless it is told otherwise."""


def stock_on_ray(clients: int, parameters: int, rounds: int) -> Played:
    """Arrays out, the same arrays back, then the evaluation that ``FedAvg`` does by default."""
    played, began = list[Played](), time.perf_counter()

    def server(grid: Grid) -> None:
        start, ends = time.perf_counter() - began, list[float]()

        def scored(_number: int, _arrays: ArrayRecord) -> None:
            ends.append(time.perf_counter())  # before the first round, and after each

        FedAvg(min_train_nodes=clients, min_evaluate_nodes=clients, min_available_nodes=clients).start(
            grid=grid,
            initial_arrays=_arrays_of(synthetic.shapes_of(parameters)),
            num_rounds=rounds + 1,
            evaluate_fn=scored,
        )
        played.append(Played(start, [after - before for before, after in pairwise(ends)][1:]))

    on_ray(server, _echo(), clients, None, FLOWERS_CORES)
    return played[0]


def _arrays_of(shapes: Mapping[str, tuple[int, ...]]) -> ArrayRecord:
    return ArrayRecord({n: Array(np.zeros(s, np.float32)) for n, s in shapes.items()})


def _echo() -> ClientApp:
    app, counted = ClientApp(), {"num-examples": synthetic.WINDOWS, "loss": 0.5}

    @app.train()
    def train(message: Message, _context: Context) -> Message:
        content = {"arrays": message.content["arrays"], "metrics": MetricRecord(dict(counted))}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, _context: Context) -> Message:
        return Message(RecordDict({"metrics": MetricRecord(dict(counted))}), reply_to=message)

    return app
