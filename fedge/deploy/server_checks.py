"""What is found out before a server is started.

No torch here: the supervisor that asks lives for weeks, and 200 MB would stay with it.
"""

from importlib.util import find_spec
from pathlib import Path

from fedge import plugins
from fedge.config import Config
from fedge.deploy import tls
from fedge.deploy.federation import PARENT, Enrolment, split_address
from fedge.deploy.own_data import read_data, server_data
from fedge.errors import ConfigError, DataError, PayloadError, SetupError
from fedge.tasks import Task

_NEEDED = ("torch", "flwr", "onnx", "safetensors", "websockets")


def check_installed() -> None:
    """Find out before anything is started whether the packages are there that a run will import.

    Raises:
        ModuleNotFoundError: one is not, as an import of it would.
    """
    for package in _NEEDED:
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


def check(config: Config) -> None:
    """Find out before anything is started whether settings and data can be used.

    Raises:
        InputError: they cannot.
    """
    task: Task = plugins.load("task", config.task).TASK
    data = server_data(config, read_data(config, task))
    if task.target == "class" and len(set(data.labelled.y.tolist())) < 2:
        raise DataError("the server's own data hold one class only; a teacher needs two")


def check_edge(server: Path, parent: str | None) -> bool:
    """Whether ``server`` is an edge server's folder; found out before anything is started.

    Args:
        server: the folder that ``fedge provision`` made for the server.
        parent: the address that the command line gives, if it does.

    Raises:
        SetupError: the bundle in it cannot be used, or there is none and an address is given.
        ConfigError: the address is malformed.
    """
    if not (server / PARENT).is_dir():
        if parent is None:
            return False
        raise SetupError(
            f"{server} was not made for an edge server; fedge provision DIR --parent BUNDLE makes one, from "
            "the bundle that it was enrolled with above"
        )
    bundle = Enrolment.load(server / PARENT)
    bundle.signing_key()
    tls.device_context(bundle.folder)
    if parent is not None:
        try:
            split_address(parent)
        except PayloadError as error:
            raise ConfigError(f"--parent: {error}") from None
    return True
