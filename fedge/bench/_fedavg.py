"""Flower's own FedAvg on the local grid, with fp32 weights or with changes in fewer bits.

Every client trains with the same code and the same random numbers as under fedge, but all of its weights:
the zeros of a pruned student may come back to life.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedge.bench._curves import Curve
from fedge.bench._shared import Bench, Scores, own_score_after_local_epochs
from fedge.errors import FedgeError
from fedge.federated.coding import Arrays, Support, Weights
from fedge.federated.training import fine_tune
from fedge.seeding import derive
from fedge.simulation.local import LocalGrid

Pack = Callable[[Weights], ArrayRecord]
Unpack = Callable[[ArrayRecord], Arrays]

ARRAYS, METRICS, WINDOWS = "arrays", "metrics", "num-examples"
_LEVELS, _ZERO = 127, 128


@dataclass(frozen=True)
class Wire:
    """How arrays become a record. ``plain``: whole weights both ways, as FedAvg does it.

    Otherwise the server keeps fp32 weights, and clients send the change to what they received.
    """

    pack: Pack
    unpack: Unpack
    plain: bool


def _numpy(record: ArrayRecord, dtype: str) -> Arrays:
    arrays = {name: array.numpy() for name, array in record.items()}
    if wrong := [name for name, a in arrays.items() if a.dtype != np.dtype(dtype)]:
        raise FedgeError(f"{wrong[0]} travels as {arrays[wrong[0]].dtype}, not {dtype}")
    return {name: a.astype(np.float32) for name, a in arrays.items()}


def _floats(dtype: str) -> Wire:
    def pack(weights: Weights) -> ArrayRecord:
        return ArrayRecord({n: Array(np.asarray(w, dtype)) for n, w in weights.items()})

    return Wire(pack, lambda record: _numpy(record, dtype), plain=dtype == "float32")


_SCALES = "scales"


def _pack_uint8(weights: Weights) -> ArrayRecord:
    """Levels -127..127 plus 128 in a uint8 array each, and one fp32 scale per tensor in one array."""
    scales = {n: max(float(np.abs(w).max(initial=0)) / _LEVELS, 1e-12) for n, w in weights.items()}
    levels = {n: (np.rint(w / scales[n]) + _ZERO).astype(np.uint8) for n, w in weights.items()}
    scale = Array(np.asarray(list(scales.values()), np.float32))
    return ArrayRecord({**{n: Array(v) for n, v in levels.items()}, _SCALES: scale})


def _unpack_uint8(record: ArrayRecord) -> Arrays:
    scales, names = record[_SCALES].numpy(), [n for n in record if n != _SCALES]
    levels = {n: record[n].numpy().astype(np.float32) - _ZERO for n in names}
    return {n: levels[n] * np.float32(s) for n, s in zip(names, scales, strict=True)}


WIRES = {
    "float32": _floats("float32"),
    "float16": _floats("float16"),
    "uint8": Wire(_pack_uint8, _unpack_uint8, plain=False),
}


class Coded(FedAvg):
    """FedAvg whose server keeps fp32 weights, sends them packed, and adds the mean of packed changes."""

    def __init__(self, wire: Wire, who: "Everyone") -> None:
        super().__init__(**who)
        self._wire = wire
        self._held: Arrays = {}

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the weights packed."""
        self._held = _numpy(arrays, "float32")
        return super().configure_train(server_round, self._wire.pack(self._held), config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Unpack the changes, let FedAvg average them, and add the mean."""
        unpacked = list(replies)
        for reply in unpacked:
            change = self._wire.unpack(reply.content.array_records[ARRAYS])
            reply.content[ARRAYS] = WIRES["float32"].pack(change)
        change_record, metrics = super().aggregate_train(server_round, unpacked)
        if change_record is None:
            return None, metrics
        total = {n: self._held[n] + c.numpy() for n, c in change_record.items()}
        return WIRES["float32"].pack(total), metrics


class Everyone(TypedDict):
    """Settings of FedAvg with which all clients train in every round, and none evaluates."""

    fraction_evaluate: float
    min_train_nodes: int
    min_evaluate_nodes: int
    min_available_nodes: int


def _everyone(clients: int) -> Everyone:
    return Everyone(
        fraction_evaluate=0.0, min_train_nodes=clients, min_evaluate_nodes=0, min_available_nodes=clients
    )


class CountingGrid(LocalGrid):
    """Counts the bytes of the arrays in every message, and lets no failure of a client pass."""

    def __init__(self, app: ClientApp, nodes: int, path: Path) -> None:
        """As the local grid; ``traffic`` is bytes up and down over all clients, per exchange."""
        super().__init__(app, nodes, {}, path)
        self.traffic: list[tuple[int, int]] = []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """As the local grid does, in the order of the nodes: Flower shuffles them, and sums would differ.

        Raises:
            FedgeError: a client failed.
        """
        sent = sorted(messages, key=lambda message: message.metadata.dst_node_id)
        replies = list(super().send_and_receive(sent, timeout=timeout))
        for reply in replies:
            if reply.has_error():
                raise FedgeError(f"a client of the baseline failed: {reply.error.reason}")
        if sent:
            self.traffic.append((_bytes(replies), _bytes(sent)))
        return replies


def _bytes(messages: list[Message]) -> int:
    return sum(r.count_bytes() for m in messages for r in m.content.array_records.values())


def fedavg(
    bench: Bench, start: Weights, wire: Wire, rate: float, epochs: int, rounds: int, folder: Path
) -> Curve:
    """Run FedAvg from ``start`` and score the weights as the clients hold them after each round.

    Args:
        bench: data, student and settings.
        start: fp32 weights.
        wire: how they travel.
        rate: of local SGD, in every round.
        epochs: passes of a client over its windows in a round.
        rounds: how many.
        folder: for the grid's file.
    """
    participants = bench.world.roles.participants
    everyone = _everyone(len(participants))
    app = _client_app(bench, wire, rate, epochs)
    points: list[Scores] = []
    held: Arrays = {}

    def evaluate(_number: int, arrays: ArrayRecord) -> None:
        held.update(wire.unpack(wire.pack(_numpy(arrays, "float32"))))
        points.append(bench.scores(held, judge=True))

    with quiet_flower(), CountingGrid(app, len(participants), folder / "fedavg.sqlite") as grid:
        strategy = FedAvg(**everyone) if wire.plain else Coded(wire, everyone)
        strategy.start(grid, WIRES["float32"].pack(start), rounds, evaluate_fn=evaluate)
    up, down = (tuple(t[i] / len(participants) for t in grid.traffic) for i in (0, 1))
    alive = Support({n: np.ones(w.shape, bool) for n, w in start.items()})
    return Curve(
        initial=down[0],
        uplink=_running(up),
        downlink=_running((*down[1:], down[-1])),  # the weights of the last round go down as well
        clients=tuple(p.clients for p in points),
        unseen=tuple(p.unseen for p in points),
        judge=tuple(p.judge for p in points),
        tuned=own_score_after_local_epochs(bench, held, alive),
    )


def _running(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(float(sum(values[:r])) for r in range(len(values) + 1))


def _client_app(bench: Bench, wire: Wire, rate: float, epochs: int) -> ClientApp:
    """A plain client: unpack, fine-tune, pack. The data of all clients are closed over."""
    app = ClientApp()
    plan = replace(bench.plan, training=replace(bench.plan.training, epochs=epochs))
    data = [bench.training_data(c) for c in bench.world.roles.participants]

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        number = int(message.content.config_records["config"]["server-round"])  # type: ignore[arg-type] # an int
        held = wire.unpack(message.content.array_records[ARRAYS])
        x, y = data[partition]
        alive = Support({n: np.ones(w.shape, bool) for n, w in held.items()})
        trained = held
        if len(x):
            seed = derive(bench.device_seed(partition), "local", number)
            trained, _ = fine_tune(plan, bench.world.task, held, alive, (x, y), rate, seed)
        answer = trained if wire.plain else {n: trained[n] - held[n] for n in held}
        metrics = MetricRecord({WINDOWS: len(x)})
        return Message(RecordDict({ARRAYS: wire.pack(answer), METRICS: metrics}), reply_to=message)

    return app


def random_start(bench: Bench) -> Arrays:
    """Weights that have learned nothing: He initialisation for ReLU, biases of zero."""
    generator = torch.Generator().manual_seed(derive(bench.config.seed, "random start"))
    weights: Arrays = {}
    for name, shape in bench.plan.spec.shapes().items():
        value = torch.zeros(shape)
        if len(shape) > 1:
            torch.nn.init.kaiming_normal_(value, nonlinearity="relu", generator=generator)
        weights[name] = value.numpy()
    return weights


@contextmanager
def quiet_flower() -> Iterator[None]:
    """Flower logs every round; here nobody reads it."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
