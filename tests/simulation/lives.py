"""Whole runs for tests to compare: in this folder everyone lives them in the same way."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from federated.build import Recorder

from fedge.federated.journal import Journal
from fedge.simulation.folder import JOURNAL
from fedge.simulation.life import simulate
from fedge.simulation.world import World

Report = dict[str, Any]
Stop = Callable[[str, Mapping[str, object]], None]


def timeless(report: Report) -> Report:
    """The report as JSON holds it, without what was measured with a clock."""
    report = json.loads(json.dumps(report))
    del report["latency_us"]
    for row in report["rounds_log"]:
        del row["seconds"]
    return report


def live(world: World, out: Path, stop: Stop = lambda _k, _f: None, workers: int = 0) -> Report:
    """A run, or the rest of one; ``stop`` is told what happens, and may raise."""
    out.mkdir(exist_ok=True)
    with Journal(out / JOURNAL) as journal:
        return simulate(world.config, world, out, journal, Recorder(stop), workers=workers)
