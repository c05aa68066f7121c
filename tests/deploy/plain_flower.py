"""Plain Flower under attack: its own ``FedAvg``, honest nodes, and one that answers what it likes.

``app`` is an ordinary ServerApp with nothing of fedge in it: for each attack one ``FedAvg.start`` of one
round, and a line in a file about what came of it.
"""

import json
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

NODES, SIZE, WINDOWS, TIMEOUT = 3, 5, 10, 5.0
HONEST = 1.0
"""What honest nodes answer in every entry; the model that they get is zero."""
OWN = 1.25
"""What the attacker answers where the attack is in how it is sent; nobody else sends that."""


def reply(values: object, windows: int = WINDOWS, key: str = "0") -> RecordDict:
    """An answer as ``FedAvg`` wants it."""
    arrays = ArrayRecord({key: Array(np.asarray(values))})
    return RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": windows})})


def full(value: float, size: int = SIZE) -> np.ndarray:
    """Entries that are all the same."""
    return np.full(size, value, np.float32)


def bomb() -> RecordDict:
    """An array of 200 MB that travels as 0.5 MB: its list of chunks names one chunk 400 times."""
    made = reply(np.zeros(500_000, np.uint8))
    array = made.array_records["arrays"]["0"]
    array.__dict__["_chunks"] = array.slice_array() * 400
    return made


CONTENT: dict[str, Callable[[], RecordDict]] = {
    "garbage": lambda: RecordDict({"fedge": ConfigRecord({"frame": b"\x02garbage"})}),
    "wrong-keys": lambda: reply(full(HONEST), key="another"),
    "wrong-shape": lambda: reply(full(HONEST, SIZE + 1)),
    "wrong-dtype": lambda: reply(["text"] * SIZE),
    "nan": lambda: reply(full(np.nan)),
    "infinity": lambda: reply(full(np.inf)),
    "huge-norm": lambda: reply(full(1e6)),
    "negative-weight": lambda: reply(full(HONEST), -2 * WINDOWS),
    "huge-weight": lambda: reply(full(9.0), 10**12),
    "stale": lambda: reply(full(0.0)),
}
"""Attacks by what is said. ``stale`` is wrong round, wrong base and replay: an answer that was trained on
other weights, or was given before. It says nothing of either, so there is nothing to check."""

WIRE = ("garbage-object", "forged-sender", "repeated-chunk", "withheld-chunk")
"""Attacks by how it is said; the last goes on for minutes."""

ATTACKS = (*CONTENT, *WIRE)


@dataclass(frozen=True)
class Played:
    """What came of one round with one attack in it.

    Attributes:
        attack: its name.
        error: that ended ``start``, which ends the run; empty if there was none.
        low: lowest entry of the new global weights (NaN if one is), or of the old ones without new ones.
        high: highest.
        senders: whom the answers were taken to come from.
        seconds: of the round.
        memory: most bytes resident so far.
    """

    attack: str
    error: str
    low: float
    high: float
    senders: tuple[int, ...]
    seconds: float
    memory: int

    @property
    def outcome(self) -> str:
        """In one word what it did to the run: it failed, or the model is poisoned, nonsense or moved."""
        if self.error:
            return "failed"
        if not np.isfinite([self.low, self.high]).all():
            return "poisoned"
        if max(abs(self.low - HONEST), abs(self.high - HONEST)) > 2 * HONEST:
            return "taken over"
        return "stood" if self.low == self.high == HONEST else "moved"


class Overheard(FedAvg):
    """``FedAvg`` as it is; the senders of what it gets are noted."""

    senders: tuple[int, ...] = ()

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        self.senders = tuple(r.metadata.src_node_id for r in replies)
        return super().aggregate_train(server_round, replies)


def play(grid: Grid, attack: str) -> Played:
    """One round."""
    strategy = Overheard(fraction_evaluate=0.0, min_train_nodes=NODES, min_available_nodes=NODES)
    start, error, entries = time.monotonic(), "", np.zeros(1)
    try:
        result = strategy.start(grid, ArrayRecord([full(0.0)]), num_rounds=1, timeout=TIMEOUT)
        if result.arrays:
            entries = np.concatenate([np.ravel(a) for a in result.arrays.to_numpy_ndarrays()])
    except Exception as caught:  # whatever Flower does not catch ends a run
        error = f"{type(caught).__name__}: {caught}"[:200]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    took = round(time.monotonic() - start, 2)
    return Played(attack, error, float(entries.min()), float(entries.max()), strategy.senders, took, memory)


app = ServerApp()


@app.main()
def _main(grid: Grid, context: Context) -> None:
    path = Path(str(context.run_config["out"]))
    for attack in str(context.run_config["attacks"]).split():
        note(path, {"begins": attack})
        played = play(grid, attack)
        note(path, asdict(played) | {"outcome": played.outcome})


def note(path: Path, what: dict[str, object]) -> None:
    """A line in the file."""
    with path.open("a") as file:
        file.write(json.dumps(what) + "\n")
