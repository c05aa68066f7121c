"""``fedge simulate``: everything is checked before the folder of the run is made."""

import gc
import os
from pathlib import Path
from typing import Any

from fedge.config import Config
from fedge.federated.journal import Journal
from fedge.observe import JsonlSink, Observer, Tee, Terminal
from fedge.report import summary_lines
from fedge.simulation.engines import cores
from fedge.simulation.folder import JOURNAL, check_fresh, fresh_folder, interrupted_folder
from fedge.simulation.life import simulate
from fedge.simulation.torch_settings import repeatably
from fedge.simulation.virtual import check_fleet
from fedge.simulation.world import World, build_world


@repeatably()
def run(
    config: Config, wanted: Path | None, *, resume: bool, engine: str = "local", workers: int | None = None
) -> None:
    """Simulate ``config``, and say on the terminal what happens.

    Args:
        config: the run's settings.
        wanted: the run's folder; ``None``: the next free one, or with ``resume`` the newest interrupted one.
        resume: go on with an interrupted run.
        engine: ``local`` or ``ray``.
        workers: processes that run the clients; ``None``: as many as cores; 0: this one (``local`` only).

    Raises:
        InputError: something that the user gave is wrong; nothing has been written then.
        KeyboardInterrupt: interrupted; its text says how to go on.
    """
    if not resume:
        check_fresh(wanted)
    world = build_world(config)
    check_fleet(world)
    out = interrupted_folder(wanted, config.scenario) if resume else fresh_folder(wanted, config.scenario)
    terminal = Terminal()
    if engine == "ray":
        report = _on_ray(config, world, out, terminal, workers)
    else:
        report = _here(config, world, out, terminal, resume=resume, workers=workers)
    for line in summary_lines(report):
        terminal.event("note", text=line)
    terminal.event("note", text=f"report: {out / 'report.html'}")


def _here(
    config: Config, world: World, out: Path, terminal: Terminal, *, resume: bool, workers: int | None
) -> dict[str, Any]:
    """With the local engine. On a single core, workers would have nothing beside which to run."""
    count = (cores() if cores() > 1 else 0) if workers is None else workers
    with Journal(out / JOURNAL) as journal, JsonlSink(out / "metrics.jsonl") as sink:
        observer = _started(terminal, sink, config, resume=resume)
        gc.collect()
        gc.freeze()  # or a full collection now and then takes 0.1 s over what has been imported
        try:
            return simulate(config, world, out, journal, observer, workers=count)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"; go on with the same command and --resume --out {out}") from None
        finally:
            gc.unfreeze()


def _on_ray(
    config: Config, world: World, out: Path, terminal: Terminal, workers: int | None
) -> dict[str, Any]:
    from fedge.simulation.ray_engine import simulate_on_ray

    with JsonlSink(out / "metrics.jsonl") as sink:
        observer = _started(terminal, sink, config, resume=False)
        return simulate_on_ray(config, world, out, observer, workers)


def _started(terminal: Terminal, sink: JsonlSink, config: Config, *, resume: bool) -> Observer:
    observer = Tee(terminal, sink)
    observer.event("start", scenario=config.scenario, seed=config.seed, pid=os.getpid(), resumed=resume)
    return observer
