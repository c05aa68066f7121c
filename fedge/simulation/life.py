"""The life of a model, in order: prepare, rounds through a Flower ``Grid``, releases, report."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedge.config import Config, difference
from fedge.errors import SetupError
from fedge.federated.journal import Journal
from fedge.federated.prepare import Prepared, prepared_once
from fedge.federated.publish import Publisher
from fedge.federated.server import Federation, run_rounds
from fedge.flower.client_app import make_client_app
from fedge.flower.grid_clients import GridClients
from fedge.flower.robust import robust
from fedge.observe import Observer, silent
from fedge.release.repository import Repository
from fedge.simulation.flower_internals import own_run
from fedge.simulation.folder import JOURNAL
from fedge.simulation.local import LocalGrid
from fedge.simulation.scoring import Scorer
from fedge.simulation.summary import Run, make_report, write_report
from fedge.simulation.tiers import keys, placed
from fedge.simulation.torch_settings import repeatably
from fedge.simulation.workers import Workers, some_workers
from fedge.simulation.world import BEGINNING, CONFIG, FOREVER, World, device_of, to_run_config

WITHOUT = "without-redistillation"
_CONTROL_RUN = 1
_STATES = "clients"


@repeatably()
def simulate(
    config: Config,
    world: World,
    out: Path,
    journal: Journal,
    observer: Observer,
    *,
    workers: int = 0,
) -> dict[str, Any]:
    """The whole life with the local engine; returns the report, which is also in ``out``.

    Args:
        config: the run's settings.
        world: built from them.
        out: an existing folder: new, or that of an interrupted run.
        journal: of that folder; what it holds is not done again.
        observer: is told what happens.
        workers: processes that run the clients; 0 runs them in this one. The report is the same.

    Raises:
        SetupError: the folder holds another run or is damaged, or it cannot be written.
    """
    bind(journal, config)
    states = out / _STATES
    if journal.state() is not None and not states.exists():
        raise SetupError(f"{states} is gone, and with it what the clients hold; start the run anew")
    result: list[dict[str, Any]] = []
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _context: Context) -> None:
        result.append(live(grid, world, out, journal, observer, crew=crew))

    run_config: UserConfig = {CONFIG: to_run_config(config)}
    clients = len(world.roles.participants)
    with (
        some_workers(_CLIENT_APP, run_config, clients, workers, observer) as crew,
        LocalGrid(crew or client_app, clients, run_config, states) as grid,
    ):
        app(grid, Context(grid.run.run_id, 1, {}, RecordDict(), run_config))
    return result[0]


client_app: ClientApp = make_client_app(device_of)
"""The ClientApp of every simulated client; ``clients/app.py`` names it for Flower."""

_CLIENT_APP = "fedge.simulation.life:client_app"


def bind(journal: Journal, config: Config) -> None:
    """Tie a journal to these settings, or check that it is tied to them.

    A journal that is tied to none is that of a run which was killed before it began.

    Raises:
        SetupError: the journal belongs to other settings.
    """
    saved = journal.meta(CONFIG)
    if saved is None:
        journal.set_meta(CONFIG, to_run_config(config))
    elif changed := difference(saved, config):
        raise SetupError(f"this folder holds a run with other settings: {changed}")


def live(
    grid: Grid,
    world: World,
    out: Path,
    journal: Journal,
    observer: Observer,
    engine: str = "local",
    crew: Workers | None = None,
) -> dict[str, Any]:
    """What the ServerApp does: everything, talking to clients through ``grid`` only.

    The same rounds without re-distillation, if they are run, have clients of their own, which ``crew`` runs.
    """
    channels, classes = world.dataset.channels, len(world.dataset.classes)
    prepared = prepared_once(
        journal, world.config, world.task, world.server_data(), classes, channels, observer
    )
    scorer = Scorer.of(world, prepared.plan)
    repository = Repository(
        out / "releases", world.release_keys().online, clock=lambda: BEGINNING, days=FOREVER
    )
    repository.start(world.trust())
    publisher = Publisher(
        repository=repository,
        classes=world.dataset.classes,
        channels=world.dataset.channels,
        samples=world.server_data().labelled.x,
    )
    federation = Federation(
        config=world.config,
        task=world.task,
        prepared=prepared,
        clients=GridClients(grid),
        enrolled=keys(world),
        publisher=publisher,
        journal=journal,
        observer=observer,
        score=scorer,
        robust=robust(world.config),
    )
    observer.event("note", text=_initial_line(scorer, prepared))
    with placed(federation, world, out) as whole:
        state = run_rounds(whole)
    without = _without_redistillation(federation, world, out, crew)
    with observer.stage("report") as stage:
        run = Run(world, prepared, state, journal.rounds(), without, scorer, out, engine)
        report = make_report(run)
        write_report(report, out)
        stage.result = f"{out / 'report.html'}"
    return report


def _initial_line(scorer: Scorer, prepared: Prepared) -> str:
    first = scorer(prepared.weights)
    return f"the student as first sent: {_shown(first)}"


def _shown(scores: Mapping[str, Any]) -> str:
    known = [(who, scores[who]) for who in ("clients", "unseen")]
    return ", ".join(f"{who} {'not defined' if s is None else f'{s:.3f}'}" for who, s in known)


def _without_redistillation(
    federation: Federation, world: World, out: Path, crew: Workers | None
) -> list[dict[str, Any]] | None:
    """The same rounds without any re-distillation, if one was accepted; else they are the same rounds."""
    records = federation.journal.rounds()
    if not any(r["redistillation"] and r["redistillation"]["accepted"] for r in records):
        return None
    config = federation.config
    config = replace(config, redistill=replace(config.redistill, mode="none"))
    folder = out / WITHOUT
    folder.mkdir(exist_ok=True)
    with federation.observer.stage("the same rounds without re-distillation") as stage:
        with _control(folder, federation, world, config, crew) as control:
            run_rounds(control)
            rounds = control.journal.rounds()
        shutil.rmtree(folder)
        last = rounds[-1]["scores"]
        stage.result = _shown(last)
    return rounds


@contextmanager
def _control(
    folder: Path, federation: Federation, world: World, config: Config, crew: Workers | None
) -> Iterator[Federation]:
    """The federation once more, with clients of its own; they split their data as in the main run."""
    run_config: UserConfig = {CONFIG: to_run_config(federation.config)}
    with (
        own_run(_CONTROL_RUN),
        Journal(folder / JOURNAL) as journal,
        LocalGrid(crew or client_app, len(world.roles.participants), run_config, folder / _STATES) as grid,
    ):
        clients = GridClients(grid)
        control = replace(
            federation, config=config, clients=clients, publisher=None, journal=journal, observer=silent
        )
        with placed(control, world, folder) as whole:
            yield whole
