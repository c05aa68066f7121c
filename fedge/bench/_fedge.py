"""fedge itself on the local grid: the rounds that ``fedge simulate`` runs, scored and counted."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedge.bench._curves import Curve
from fedge.bench._shared import Bench, own_score_after_local_epochs
from fedge.errors import FedgeError
from fedge.federated.journal import Journal
from fedge.federated.server import Federation, run_rounds
from fedge.flower.client_app import ContextStore, make_client_app
from fedge.flower.grid_clients import GridClients
from fedge.observe import silent
from fedge.simulation.local import LocalGrid


def fedge(bench: Bench, folder: Path) -> Curve:
    """Run the rounds of ``bench.config``; bytes are whole frames as handed to Flower.

    Raises:
        FedgeError: a client's answer was refused, so that the run says nothing about communication.
    """
    world, prepared = bench.world, bench.prepared
    participants = world.roles.participants
    app = make_client_app(lambda c: world.device(int(c.node_config["partition-id"]), ContextStore(c)))
    with (
        Journal(folder / "journal.sqlite") as journal,
        LocalGrid(app, len(participants), {}, folder / "clients.sqlite") as grid,
    ):
        state = run_rounds(
            Federation(
                config=bench.config,
                task=world.task,
                prepared=prepared,
                clients=GridClients(grid),
                enrolled={c: world.key(c).public for c in participants},
                publisher=None,
                journal=journal,
                observer=silent,
                score=bench.scorer,
            )
        )
        records = journal.rounds()
    before = bench.scores(prepared.weights, judge=False)
    return Curve(
        **_traffic(records, len(participants)),
        clients=(before.clients, *(r["scores"]["clients"] for r in records)),
        unseen=(before.unseen, *(r["scores"]["unseen"] for r in records)),
        judge=(),
        tuned=own_score_after_local_epochs(bench, state.weights, prepared.support),
    )


def _traffic(records: list[dict[str, Any]], clients: int) -> dict[str, Any]:
    """Bytes per client when the weights of round ``r`` have arrived.

    Those of round ``r`` come down with the task of round ``r + 1``; after the last round in a task of their
    own. The last record counts both, so the last round but one is charged for an update too many. The answer
    to the welcome counts as uplink of the first round.
    """
    if refused := [name for r in records for name in r["refused"]]:
        raise FedgeError(f"an answer of client {refused[0]} was refused")
    up = [_sum([r["up"], r["initial_up"]]) / clients for r in records]
    down = [_sum([r["down"]]) / clients for r in records]
    last = len(records)
    return {
        "initial": sum(_sum([r["initial_down"]]) for r in records) / clients,
        "uplink": tuple(sum(up[:r]) for r in range(last + 1)),
        "downlink": tuple(0.0 if r == 0 else sum(down[: r + 1]) for r in range(last + 1)),
    }


def _sum(traffic: Iterable[dict[str, int]]) -> int:
    return sum(sum(t.values()) for t in traffic)
