"""The Flower app of ``fedge bench round``: Flower's ``FedAvg`` as it is, clients that only answer."""

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fedge.durable import replace_file

server_app = ServerApp()
client_app = ClientApp()

WINDOWS = 64


@client_app.train()
def _train(message: Message, context: Context) -> Message:
    """Other arrays than those that came: what Flower has already it does not send again."""
    del context
    record = message.content["arrays"]
    assert isinstance(record, ArrayRecord)  # noqa: S101  (says so to the type checker)
    arrays = ArrayRecord([array + 1 for array in record.to_numpy_ndarrays()])
    metrics = MetricRecord({"num-examples": WINDOWS, "loss": 0.5})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@client_app.evaluate()
def _evaluate(message: Message, context: Context) -> Message:
    del context
    metrics = MetricRecord({"num-examples": WINDOWS, "score": 0.5})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


@server_app.main()
def _main(grid: Grid, context: Context) -> None:
    """Rounds; the file ``marks`` says when each ended, when its training did, and the size of the arrays."""
    settings = context.run_config
    arrays = ArrayRecord([np.zeros(int(settings["parameters"]), np.float32)])
    ends: list[float] = []
    trained: list[float] = []

    def train_ended(replies: list[RecordDict], weighted_by: str) -> MetricRecord:
        del replies, weighted_by
        trained.append(time.monotonic())
        return MetricRecord()

    def round_ended(number: int, now: ArrayRecord) -> None:
        del number
        ends.append(time.monotonic())
        marks = {"ends": ends, "trained": trained, "arrays": now.count_bytes()}
        replace_file(Path(str(settings["marks"])), json.dumps(marks).encode())

    clients = int(settings["clients"])
    strategy = FedAvg(
        min_train_nodes=clients,
        min_evaluate_nodes=clients,
        min_available_nodes=clients,
        train_metrics_aggr_fn=train_ended,
    )
    strategy.start(grid, arrays, num_rounds=int(settings["rounds"]), evaluate_fn=round_ended)
