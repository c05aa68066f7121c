"""What a run of a deployed federation is told, and the files of the state directory that belong to it.

No Flower here: the supervisor reads and writes these while Flower is still being imported.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fedge.durable import replace_file
from fedge.errors import SetupError

CONFIG = "config"
"""The one key of the run config: the path of a ``Deployment``."""
APP, BELL, RUN, OUTCOME, VOICE = "flower-app", "gateway.sock", "run.json", "outcome.json", "run.out"
_MAX_BYTES = 1 << 20
_PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "fedge-server"
version = "1.0.0"
description = "Names the ServerApp of the installed fedge."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedge"
fab-include = ["fedge_server_app.py", "fedge_client_app.py"]

[tool.flwr.app.components]
serverapp = "fedge_server_app:app"
clientapp = "fedge_client_app:app"

[tool.flwr.app.config]
config = ""
"""
_MODULES = {
    "fedge_server_app.py": "from fedge.deploy.server_app import app as app\n",
    "fedge_client_app.py": "from fedge.deploy.stock_client import app as app\n",
}


@dataclass(frozen=True)
class Deployment:
    """What a run needs to know.

    Attributes:
        state: the state directory.
        server: the folder that ``fedge provision`` made for the server.
        work: ``module:function``, called with the clients and this; it returns when all is done.
        settings: for the work.
    """

    state: Path
    server: Path
    work: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        raw = asdict(self) | {"state": str(self.state), "server": str(self.server)}
        replace_file(path, json.dumps(raw, indent=1).encode())

    @staticmethod
    def load(path: Path) -> "Deployment":
        """Read it.

        Raises:
            SetupError: it is not there or damaged.
        """
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise SetupError(f"{path} is too large")
            raw = json.loads(path.read_bytes())
            return Deployment(
                Path(raw["state"]), Path(raw["server"]), str(raw["work"]), dict(raw["settings"])
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SetupError(f"{path} cannot be used: {error}") from None


def write_app(state: Path) -> Path:
    """Write the Flower app into the state directory; returns its folder."""
    folder = state / APP
    folder.mkdir(exist_ok=True)
    replace_file(folder / "pyproject.toml", _PYPROJECT.encode())
    for name, content in _MODULES.items():
        replace_file(folder / name, content.encode())
    return folder


def say(path: Path, what: Mapping[str, Any]) -> None:
    """Write a small file of the state directory, whole or not at all."""
    replace_file(path, json.dumps(what).encode())


def heard(path: Path) -> dict[str, Any]:
    """What ``say`` wrote; empty if there is nothing that makes sense."""
    try:
        said = json.loads(path.read_bytes()) if path.stat().st_size <= _MAX_BYTES else None
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def started(pid: int) -> int | None:
    """When a process started, in clock ticks since boot: with its id, it names one process and no other."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[19])
