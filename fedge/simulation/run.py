"""``fedge simulate``: everything is checked before the folder of the run is made."""

import os
from pathlib import Path

from fedge.config import Config
from fedge.federated.journal import Journal
from fedge.observe import JsonlSink, Tee, Terminal
from fedge.report import summary_lines
from fedge.simulation.folder import JOURNAL, check_fresh, fresh_folder, interrupted_folder
from fedge.simulation.life import simulate
from fedge.simulation.torch_settings import repeatable
from fedge.simulation.virtual import check_fleet
from fedge.simulation.world import build_world


def run(config: Config, wanted: Path | None, *, resume: bool) -> None:
    """Simulate ``config`` with the local engine, and say on the terminal what happens.

    Raises:
        InputError: something that the user gave is wrong; nothing has been written then.
        KeyboardInterrupt: interrupted; its text says how to go on.
    """
    repeatable()
    if not resume:
        check_fresh(wanted)
    world = build_world(config)
    check_fleet(world)
    out = interrupted_folder(wanted, config.scenario) if resume else fresh_folder(wanted, config.scenario)
    terminal = Terminal()
    with Journal(out / JOURNAL) as journal, JsonlSink(out / "metrics.jsonl") as sink:
        observer = Tee(terminal, sink)
        observer.event("start", scenario=config.scenario, seed=config.seed, pid=os.getpid(), resumed=resume)
        try:
            report = simulate(config, world, out, journal, observer, resume=resume)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"; go on with the same command and --resume --out {out}") from None
    for line in summary_lines(report):
        terminal.event("note", text=line)
    terminal.event("note", text=f"report: {out / 'report.html'}")
