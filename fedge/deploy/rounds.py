"""The work of a deployed federation: prepare once, then rounds, from wherever the journal stands.

It is what a run does (``server_app``). A run is disposable, this is not: the journal in the state directory
holds what has been completed, and the next run goes on from there. The server has its own data only; scores
are what clients say of themselves.
"""

from fedge import plugins
from fedge.config import config_from
from fedge.deploy.deadlines import for_deployment
from fedge.deploy.deployment import Deployment
from fedge.deploy.federation import RELEASES, Federation
from fedge.deploy.open_run import opened
from fedge.deploy.own_data import read_data, server_data
from fedge.deploy.status_file import About
from fedge.federated.prepare import prepared_once
from fedge.federated.publish import Publisher
from fedge.federated.server import run_rounds
from fedge.federated.state import ClientRecord, FederationState
from fedge.flower.grid_clients import GridClients
from fedge.release.keys import OnlineKeys
from fedge.release.repository import Repository
from fedge.tasks import Task


def run(clients: GridClients, deployment: Deployment) -> None:
    """All rounds that are left.

    Raises:
        InputError: settings, data or the state directory cannot be used.
    """
    config = for_deployment(config_from(str(deployment.settings["config"])))
    federation = Federation.load(deployment.server)
    task: Task = plugins.load("task", config.task).TASK
    names = (federation.id, federation.name, config.scenario, config.task, task.metric)
    about = About(*names, planned=config.rounds.rounds)
    with opened(clients, deployment, federation, config, about, standing) as held:
        dataset = read_data(config, task)
        data = server_data(config, dataset)
        channels, classes = dataset.channels, len(dataset.classes)
        prepared = prepared_once(
            held.journal, config, task, data, classes, channels, held.observer, federation.id
        )
        repository = open_repository(deployment)
        publisher = Publisher(
            repository=repository,
            classes=dataset.classes,
            channels=dataset.channels,
            samples=data.labelled.x,
        )
        run_rounds(held.rounds(task, prepared, held.gathered(repository), publisher))


def open_repository(deployment: Deployment) -> Repository:
    """The releases in the state directory, begun with what ``fedge provision`` had signed.

    Raises:
        SetupError: keys or files cannot be read, or the folder cannot be written.
        ReleaseError: it holds another federation's releases, or is damaged.
    """
    folder = deployment.server / RELEASES
    repository = Repository(deployment.state / RELEASES, OnlineKeys.load(folder))
    repository.start({path.name: path.read_bytes() for path in sorted(folder.glob("*.json"))})
    return repository


def standing(state: bytes) -> tuple[int, dict[str, ClientRecord]]:
    """Rounds in a state of the journal, and how the clients stand.

    Raises:
        PayloadError: it is damaged.
    """
    read = FederationState.from_bytes(state)
    return read.round, dict(read.clients)
