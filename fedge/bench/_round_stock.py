"""Stock Flower's part of ``fedge bench round``: SuperLink, SuperNodes and ``flwr run``, as its manual has it.

TLS is on, and everything else as it is by default, but for two things in Flower's favour: it installs nothing
at run time, and it does not phone home.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from fedge.errors import FedgeError, SetupError

MARKS = "marks.json"
QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "PYTHONUNBUFFERED": "1"}
"""Keeps Flower from phoning home, and from holding back what it says."""
_PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "fedge-bench"
version = "1.0.0"
description = "Flower's FedAvg with clients that answer at once."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedge"
fab-include = ["bench_server.py", "bench_client.py"]

[tool.flwr.app.components]
serverapp = "bench_server:app"
clientapp = "bench_client:app"

[tool.flwr.app.config]
"""
_CONNECTION = """\
[superlink]
default = "bench"

[superlink.bench]
address = "127.0.0.1:{port}"
root-certificates = "{authority}"
"""


def environment(folder: Path) -> dict[str, str]:
    """Of every process of Flower."""
    beside = Path(sys.executable).parent
    path = f"{beside}:{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, **QUIET, "FLWR_HOME": str(folder / "home"), "PATH": path}


def write_app(folder: Path, settings: Mapping[str, int | str]) -> Path:
    """The app that ``flwr run`` gets; its code is that of the installed fedge."""
    app = folder / "app"
    app.mkdir()
    lines = "".join(f"{key} = {_toml(value)}\n" for key, value in settings.items())
    (app / "pyproject.toml").write_text(_PYPROJECT + lines)
    for part in ("server", "client"):
        code = f"from fedge.bench._stock_app import {part}_app\n\napp = {part}_app\n"
        (app / f"bench_{part}.py").write_text(code)
    return app


def write_connection(folder: Path, port: int, authority: Path) -> None:
    """Where ``flwr run`` finds the SuperLink."""
    (folder / "home").mkdir()
    (folder / "home" / "config.toml").write_text(_CONNECTION.format(port=port, authority=authority))


def superlink(provisioned: Path, port: int) -> list[str]:
    """The command line of a SuperLink with the certificate of a federation's server."""
    server = provisioned / "server"
    tls = ["--ssl-ca-certfile", str(server / "ca.pem"), "--ssl-certfile", str(server / "server.pem")]
    tls += ["--ssl-keyfile", str(server / "server.key")]
    where = ["--host", "127.0.0.1", "--port", str(port)]
    return [program("flower-superlink"), *tls, *where, "--disable-runtime-dependency-installation"]


def supernode(provisioned: Path, link: int, port: int) -> list[str]:
    """The command line of a SuperNode that reaches the SuperLink at port ``link``."""
    tls = ["--root-certificates", str(provisioned / "server" / "ca.pem")]
    own = ["--host", "127.0.0.1", "--port", str(port)]
    return [program("flower-supernode"), "--superlink", f"127.0.0.1:{link}", *tls, *own]


def start_run(app: Path, env: Mapping[str, str]) -> None:
    """``flwr run``.

    Raises:
        FedgeError: Flower refuses the app, or cannot be reached.
    """
    line = [program("flwr"), "run", str(app), "bench"]
    done = subprocess.run(line, env=dict(env), capture_output=True, text=True, timeout=120, check=False)  # noqa: S603
    if done.returncode:
        words = " ".join((done.stdout + done.stderr).split())
        raise FedgeError(f"flwr run failed: {words[-400:]}")


def program(name: str) -> str:
    """The path of one of Flower's programs.

    Raises:
        SetupError: it is not installed.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise SetupError(f"{name} is missing; install it: pip install 'fedge[server]'")
    return found


def _toml(value: int | str) -> str:
    return str(value) if isinstance(value, int) else f'"{value}"'
