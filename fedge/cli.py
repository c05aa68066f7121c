"""The command line. Each command imports what it needs when it runs, so a device needs no torch for it."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fedge import __version__
from fedge.errors import FedgeError, InputError, SetupError

if TYPE_CHECKING:
    from fedge.data.types import TargetKind

Command = Callable[[argparse.Namespace], int | None]

_EXTRAS = {
    "torch": "simulation",
    "flwr": "simulation",
    "onnx": "simulation",
    "rich": "simulation",
    "pyarrow": "simulation",
    "safetensors": "server",
    "sklearn": "simulation",
    "websockets": "client",
}


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see: {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    _quiet_flower()
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        options = _parser(given[0] if given else None).parse_args(given)
        return options.run(options) or 0
    except FedgeError as error:
        return _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        return _fail(*_missing(error))
    except KeyboardInterrupt as stop:
        return _fail(f"interrupted{stop}", 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(f"{error.strerror or error}: {error.filename}" if error.filename else str(error), 2)


def _fail(message: str, code: int) -> int:
    print("fedge: error: " + " ".join(message.split()), file=sys.stderr)  # noqa: T201
    return code


def _missing(error: ModuleNotFoundError) -> tuple[str, int]:
    package = (error.name or "").partition(".")[0]
    if package not in _EXTRAS:
        raise error
    hint = f"pip install 'fedge[{_EXTRAS[package]}]'"
    return str(SetupError(f"this command needs {package}, which is not installed: {hint}")), 2


def _quiet_flower() -> None:
    """Flower phones home by default; fedge does not, unless the user has set these."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")


_ELSEWHERE = {
    "simulate": ("run the whole life of a model on this machine", "fedge.simulation.command"),
    "bench": ("measure on this machine", "fedge.bench.command"),
    "provision": ("make a federation: certificates, keys, one bundle per device", "fedge.deploy.provision"),
    "server": ("serve a federation: rounds with devices, over TLS", "fedge.deploy.server_cli"),
    "client": ("take part in a federation, on a device", "fedge.deploy.device"),
    "doctor": ("what this machine has and lacks for each role", "fedge.deploy.doctor"),
    "release": ("publish, list, verify, fetch, pin and roll back releases", "fedge.edge.release_command"),
    "infer": ("answer windows from a file, a folder or a live stream", "fedge.serving.devices_command"),
    "serve": ("answer windows over HTTP (Open Inference Protocol)", "fedge.serving.command"),
}
"""Commands with their options elsewhere: what they do, and the module with ``add_arguments`` and ``run``."""


def _parser(command: str | None) -> argparse.ArgumentParser:
    """All commands; of those in ``_ELSEWHERE`` only ``command`` has its options: nothing else is loaded."""
    parser = _Parser(prog="fedge", description="Federated learning for edge devices.")
    parser.add_argument("--version", action="version", version=f"fedge {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, (text, module) in _ELSEWHERE.items():
        one = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name == command:
            loaded = import_module(module)
            loaded.add_arguments(one)
            one.set_defaults(run=loaded.run)
    _add_report(commands)
    _add_data(commands)
    return parser


def _add_report(commands: Any) -> None:
    text = "summarise a finished run and write its page again"
    report = commands.add_parser("report", help=text, description=text.capitalize() + ".")
    report.add_argument("folder", type=Path, metavar="DIR", help="the folder of a run")
    report.set_defaults(run=_report)


def _add_data(commands: Any) -> None:
    data = commands.add_parser("data", help="work on data sets", description="Work on data sets.")
    kinds = data.add_subparsers(title="commands", metavar="COMMAND", required=True)
    text = "one data set into one file per client, as devices would hold it"
    split = kinds.add_parser("split", help=text, description=text.capitalize() + ".")
    split.add_argument("data", metavar="DATA", help="an .npz file, or 'watch' or 'digits'")
    split.add_argument("--task", default="activity", metavar="NAME", help="what is learned from it")
    split.add_argument("--target", default="y", metavar="ARRAY", help="which array is to be learned")
    split.add_argument("--normal", default="", metavar="RULE", help="anomalies: such as 'rul > 100'")
    split.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    split.set_defaults(run=_split)


def _report(options: argparse.Namespace) -> None:
    from fedge.report import load_report, summary_lines, write_html

    report = load_report(options.folder)
    page = options.folder / "report.html"
    write_html(report, page)
    print("\n".join([*summary_lines(report), f"page: {page}"]))  # noqa: T201


def _split(options: argparse.Namespace) -> None:
    from fedge import plugins
    from fedge.data.export import split_to_files

    if options.task not in (known := plugins.names("task")):
        raise InputError(f"--task: unknown task {options.task!r}; known: {', '.join(known)}")
    target: TargetKind = plugins.load("task", options.task).TASK.target
    written = split_to_files(
        options.data, options.out, target=target, key=options.target, normal=options.normal
    )
    for client, path, windows in written:
        print(f"{client}: {windows} windows in {path}")  # noqa: T201
