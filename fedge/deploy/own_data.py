"""The server's own data, and which of them are held back to judge."""

from fedge.config import Config
from fedge.data import load
from fedge.data.roles import assign_roles
from fedge.data.types import Dataset, Windows
from fedge.errors import DataError
from fedge.federated.judges import held_back
from fedge.federated.server_data import ServerData
from fedge.tasks import Task


def read_data(config: Config, task: Task) -> Dataset:
    """The server's own data.

    Raises:
        DataError: they cannot be used.
    """
    settings = config.data
    return load(
        settings.source,
        window=settings.window,
        step=settings.step,
        target=task.target,
        key=settings.target,
        normal=settings.normal,
    )


def server_data(config: Config, dataset: Dataset) -> ServerData:
    """What the server learns from: of a built-in data set its part, of a file everything in it.

    Raises:
        ConfigError: ids that nobody has.
        DataError: nothing to learn from.
    """
    settings, everyone = config.data, dataset.clients
    names = list(everyone)
    if settings.server_clients or settings.source in ("watch", "digits"):
        roles = assign_roles(names, settings.server_clients, settings.unseen_clients)
        names = list(roles.server)
    judges = held_back(config, names)
    labelled = Windows.joined([everyone[c] for c in names if c not in judges]).to_train_on()
    if len(labelled) < 2:
        raise DataError("the server's own data hold fewer than two windows to learn from")
    return ServerData(labelled, None, {c: everyone[c].to_train_on() for c in judges})
