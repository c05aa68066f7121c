"""A Flower app of a few NumPy arrays: every client pulls the weights towards an optimum of its own."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from numpy.typing import NDArray

from fedge.flower import compression_mod
from fedge.simulation.local import LocalGrid

Named = dict[str, NDArray[Any]]
SHAPES = {"conv.weight": (16, 3, 5), "fc.weight": (40, 30), "fc.bias": (40,)}
RATE = 0.1
"""How far a client goes towards its optimum in one round."""


def initial(seed: int = 0) -> Named:
    """Float32 weights."""
    rng = np.random.default_rng(seed)
    return {n: rng.normal(0, 0.1, s).astype(np.float32) for n, s in SHAPES.items()}


def optimum(partition: int, weights: Named) -> Named:
    """Where client ``partition`` wants ``weights`` to be."""
    rng = np.random.default_rng(100 + partition)
    return {n: (0.5 + rng.normal(0, 0.2, w.shape)).astype(np.float32) for n, w in weights.items()}


def record(arrays: Named) -> ArrayRecord:
    return ArrayRecord({n: Array(np.asarray(a)) for n, a in arrays.items()})


def named(arrays: ArrayRecord | None) -> Named:
    assert arrays is not None
    return {n: a.numpy() for n, a in arrays.items()}


def towards(partition: int, weights: Named, rate: float = RATE) -> Named:
    """One local round."""
    goal = optimum(partition, weights)
    return {n: (w + rate * (goal[n] - w)).astype(w.dtype) for n, w in weights.items()}


Local = Callable[[int, Named], Named]
Change = Callable[[Message, Context], None]


def make_app(
    mods: list[Mod] | None = None, local: Local = towards, meddle: Change | None = None
) -> ClientApp:
    """Trains with ``local``; evaluates to the first weight; ``meddle`` changes finished answers."""

    def last(message: Message, context: Context, call_next: Any) -> Message:
        reply: Message = call_next(message, context)
        if meddle is not None:
            meddle(reply, context)
        return reply

    app = ClientApp(mods=[last, *([compression_mod()] if mods is None else mods)])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        arrays = message.content["arrays"]
        assert isinstance(arrays, ArrayRecord)
        trained = local(partition, named(arrays))
        metrics = MetricRecord({"num-examples": partition + 1, "loss": 0.5})
        return Message(RecordDict({"arrays": record(trained), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, _context: Context) -> Message:
        arrays = message.content["arrays"]
        assert isinstance(arrays, ArrayRecord)
        first = float(next(iter(named(arrays).values())).reshape(-1)[0])
        metrics = MetricRecord({"num-examples": 1, "first": first})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


class Engine(LocalGrid):
    """Keeps what it carried, loses answers on request, and can forget all of a node but its stored bytes.

    ``fresh`` gives every message a context with only what was stored, as a fresh process would have.
    """

    def __init__(self, app: ClientApp, nodes: int, path: Path, *, fresh: bool = False) -> None:
        super().__init__(app, nodes, {}, path)
        self._fresh, self.nodes = fresh, nodes
        self.lose: Callable[[Message], bool] = lambda _reply: False
        self.twice = False
        self.carried: list[tuple[str, int, RecordDict]] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        kept = list(messages)
        self.carried += [("down", m.metadata.dst_node_id, m.content) for m in kept]
        return super().push_messages(kept)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        if self._fresh:
            self._contexts = {i + 2: self._context(i, self.nodes, {}) for i in range(self.nodes)}
        replies = list(super().pull_messages(message_ids))
        self.carried += [("up", r.metadata.src_node_id, r.content) for r in replies if r.has_content()]
        return [r for r in replies if not self.lose(r)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        replies = list(super().send_and_receive(messages, timeout=timeout))
        if not self.twice:
            return replies
        return replies + [Message(RecordDict({**r.content}), metadata=r.metadata) for r in replies]

    def forget(self, node: int) -> None:
        """As a SuperNode that was restarted."""
        self._contexts[node].state = RecordDict()

    def memory(self, node: int) -> RecordDict:
        return self._contexts[node].state


def frame_in(content: RecordDict) -> bytes:
    """The frame in a message's content."""
    found = [r["fedge-frame"] for r in content.config_records.values() if "fedge-frame" in r]
    assert len(found) == 1
    assert isinstance(found[0], bytes)
    return found[0]


def set_frame(content: RecordDict, frame: bytes) -> None:
    """Replace it."""
    for name, r in content.config_records.items():
        if "fedge-frame" in r:
            content[name] = ConfigRecord({"fedge-frame": frame})
