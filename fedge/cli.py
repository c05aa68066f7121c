"""The command line. Each command imports what it needs when it runs, so a device needs no torch for it."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fedge import __version__
from fedge.errors import FedgeError, InputError, SetupError

if TYPE_CHECKING:
    from fedge.config import Config
    from fedge.data.types import TargetKind

Command = Callable[[argparse.Namespace], int | None]

_TARGETS: "dict[str, TargetKind]" = {
    "activity": "class",
    "camera": "class",
    "anomaly": "anomaly",
    "remaining_life": "number",
}
"""Kinds of target by task, for a command that must not load torch to know them."""

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
    _add_simulate(commands)
    _add_report(commands)
    _add_data(commands)
    _add_bench(commands)
    for name, (text, module) in _ELSEWHERE.items():
        one = commands.add_parser(name, help=text, description=text.capitalize() + ".")
        if name == command:
            loaded = import_module(module)
            loaded.add_arguments(one)
            one.set_defaults(run=loaded.run)
    return parser


def _add_simulate(commands: Any) -> None:
    text = "run the whole life of a model on this machine"
    simulate = commands.add_parser("simulate", help=text, description=text.capitalize() + ".")
    _add_settings(simulate)
    simulate.add_argument("--clients", type=int, metavar="N", help="only the first N participants")
    simulate.add_argument(
        "--engine", choices=["local", "ray"], default="local", help="what runs the clients (default: local)"
    )
    simulate.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that run the clients; 0: this one does (default: as many as cores)",
    )
    simulate.add_argument("--seed", type=int, metavar="N", help="everything random follows from it")
    simulate.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (default: runs/SCENARIO-001)"
    )
    simulate.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=A,B,C",
        help="run each of these values of a setting, and each combination; goes on in --out DIR",
    )
    simulate.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    simulate.set_defaults(run=_simulate)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """What ``_config`` reads."""
    parser.add_argument(
        "scenario",
        nargs="?",
        help="a built-in name or a TOML file (default: watch, or the task's with --data)",
    )
    parser.add_argument("--task", metavar="NAME", help="what is learned (default: the scenario's)")
    parser.add_argument("--data", metavar="PATH", help="your own data: an .npz file or a folder")
    parser.add_argument("--rounds", type=int, metavar="N", help="number of rounds")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, such as local.epochs=3"
    )


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


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser(
        "bench", help="measure on this machine", description="Measure on this machine."
    )
    kinds = bench.add_subparsers(title="commands", metavar="COMMAND", required=True)
    text = "bytes, error, distance from the entropy and speed of the codecs"
    codec = kinds.add_parser("codec", help=text, description=text.capitalize() + ".")
    codec.set_defaults(run=_bench_codec)
    text = "score against bytes, beside Flower's FedAvg"
    communication = kinds.add_parser("communication", help=text, description=text.capitalize() + ".")
    communication.add_argument("--data", metavar="FILE.npz", help="your own data (default: that of watch)")
    communication.add_argument("--task", metavar="NAME", help="what is learned (default: the scenario's)")
    communication.add_argument(
        "--seeds", type=int, default=5, metavar="N", help="runs to average (default: 5)"
    )
    communication.add_argument("--rounds", type=int, metavar="N", help="number of rounds")
    communication.add_argument("--out", type=Path, metavar="DIR", help="where to write the plot")
    communication.set_defaults(run=_bench_communication)
    text = "re-distillation, distillation, int8 and cutting: what each does to the score"
    learning = kinds.add_parser("learning", help=text, description=text.capitalize() + ".")
    _add_settings(learning)
    learning.add_argument(
        "--split", choices=["natural", "skewed", "missing"], help="what data are taken away (data.split)"
    )
    learning.add_argument("--seeds", type=int, default=3, metavar="N", help="runs to average (default: 3)")
    learning.add_argument(
        "--folds", type=int, default=1, metavar="N", help="rotations of who is unseen (default: 1, as set)"
    )
    learning.add_argument(
        "--only", metavar="PARTS", help="such as modes,int8 (default: all that fit the task)"
    )
    learning.set_defaults(run=_bench_learning)
    text = "seconds and bytes of a round with no work, beside stock Flower"
    round_ = kinds.add_parser("round", help=text, description=text.capitalize() + ".")
    round_.add_argument("--rounds", type=int, default=60, metavar="N", help="of fedge (default: 60)")
    round_.add_argument(
        "--idle-seconds", type=float, default=300.0, metavar="S", help="of idling, at least (default: 300)"
    )
    round_.set_defaults(run=_bench_round)
    text = "updates a second through the server's checks, and its memory"
    server = kinds.add_parser("server", help=text, description=text.capitalize() + ".")
    server.add_argument(
        "--clients", type=int, default=10_000, metavar="N", help="synthetic ones (default: 10,000)"
    )
    server.set_defaults(run=_bench_server)
    text = "microseconds, memory and requests a second of what a device runs"
    edge = kinds.add_parser("edge", help=text, description=text.capitalize() + ".")
    edge.add_argument("--repeats", type=int, default=11, metavar="N", help="of each time (default: 11)")
    edge.add_argument("--only", default="", metavar="PARTS", help="of models,start,serve (default: all)")
    edge.set_defaults(run=_bench_edge)
    text = "what an engine of the simulation adds to the clients' own work, beside Flower + Ray"
    simulation = kinds.add_parser("simulation", help=text, description=text.capitalize() + ".")
    simulation.add_argument(
        "--clients", default="30,300,1000", metavar="N,N", help="without work (default: 30,300,1000)"
    )
    simulation.set_defaults(run=_bench_simulation)
    for each in (codec, communication, learning, round_, server, edge, simulation):
        each.add_argument("--json", action="store_true", help="print one JSON object on the last line")


def _config(
    options: argparse.Namespace, more: Mapping[str, Any], assignments: Sequence[str] = ()
) -> "Config":
    """The scenario, or the task's defaults for the user's own data, with everything that the options set.

    ``assignments`` (``key=value``) come after those of ``--set``.
    """
    from fedge.config import load_config

    own_data = options.data is not None and options.scenario is None
    scenario = None if own_data else options.scenario or "watch"
    if options.data == "":
        raise InputError("--data is empty; give an .npz file or a folder")
    keys = {"data.source": options.data, "rounds.rounds": options.rounds, **more}
    overrides = {key: value for key, value in keys.items() if value is not None}
    name = re.sub(r"[^\w.-]", "_", Path(options.data).stem)[:60] if own_data else "custom"
    return load_config(scenario, overrides, [*options.set, *assignments], options.task, name)


def _simulate(options: argparse.Namespace) -> None:
    if options.clients is not None and options.clients < 1:
        raise InputError(f"--clients {options.clients}: at least one client must take part")
    from fedge.simulation.engines import check_engine

    check_engine(options.engine, options.workers, resume=options.resume)
    overrides = {"data.clients": options.clients, "seed": options.seed}
    if options.sweep:
        _sweep(options, overrides)
        return
    config = _config(options, overrides)

    from fedge.simulation.run import run

    run(config, options.out, resume=options.resume, engine=options.engine, workers=options.workers)


def _sweep(options: argparse.Namespace, overrides: Mapping[str, Any]) -> None:
    if options.resume:
        raise InputError("--sweep goes on by itself: name its folder with --out, without --resume")
    from fedge.simulation.sweep import grid, run_sweep

    points = grid(options.sweep, lambda assignments: _config(options, overrides, assignments))
    run_sweep(points, options.out, engine=options.engine, workers=options.workers)


def _report(options: argparse.Namespace) -> None:
    from fedge.report import load_report, summary_lines, write_html

    report = load_report(options.folder)
    page = options.folder / "report.html"
    write_html(report, page)
    print("\n".join([*summary_lines(report), f"page: {page}"]))  # noqa: T201


def _split(options: argparse.Namespace) -> None:
    from fedge.data.export import split_to_files

    target = _TARGETS.get(options.task)
    if target is None:
        raise InputError(f"--task: unknown task {options.task!r}; known: {', '.join(_TARGETS)}")
    written = split_to_files(
        options.data, options.out, target=target, key=options.target, normal=options.normal
    )
    for client, path, windows in written:
        print(f"{client}: {windows} windows in {path}")  # noqa: T201


def _bench_codec(options: argparse.Namespace) -> None:
    from fedge.bench import codec

    _print_bench(codec.run(), codec.lines, as_json=options.json)


def _bench_communication(options: argparse.Namespace) -> None:
    if options.seeds < 1:
        raise InputError(f"--seeds {options.seeds}: give at least one")
    from fedge.bench import communication

    result = communication.run(options.data, options.task, options.seeds, options.rounds, options.out)
    _print_bench(result, communication.lines, as_json=options.json)


def _bench_learning(options: argparse.Namespace) -> None:
    config = _config(options, {"data.split": options.split})
    from fedge.bench import learning

    result = learning.run(config, options.seeds, options.folds, options.only)
    _print_bench(result, learning.lines, as_json=options.json)


def _bench_round(options: argparse.Namespace) -> None:
    if options.rounds < 1:
        raise InputError(f"--rounds {options.rounds}: give at least one")
    if not 1 <= options.idle_seconds <= 86_400:
        raise InputError(f"--idle-seconds {options.idle_seconds:g}: give 1 to 86400")
    from fedge.bench import round as bench

    _print_bench(bench.run(options.idle_seconds, options.rounds), bench.lines, as_json=options.json)


def _bench_server(options: argparse.Namespace) -> None:
    if not 200 <= options.clients <= 1_000_000:
        raise InputError(f"--clients {options.clients}: give 200 to 1000000")
    from fedge.bench import server

    _print_bench(server.run(options.clients), server.lines, as_json=options.json)


def _bench_simulation(options: argparse.Namespace) -> None:
    words = options.clients.split(",")
    if not all(re.fullmatch("[0-9]{1,6}", word) and int(word) for word in words):
        raise InputError(
            f"--clients {options.clients}: give numbers with commas between, such as 30,300,1000"
        )
    from fedge.bench import simulation

    result = simulation.run([int(word) for word in words])
    _print_bench(result, simulation.lines, as_json=options.json)


def _bench_edge(options: argparse.Namespace) -> None:
    if options.repeats < 1:
        raise InputError(f"--repeats {options.repeats}: give 1 or more")
    from fedge.bench import edge

    _print_bench(edge.run(options.repeats, options.only), edge.lines, as_json=options.json)


def _print_bench(
    result: Mapping[str, Any], lines: Callable[[Mapping[str, Any]], list[str]], *, as_json: bool
) -> None:
    if as_json:
        import json

        print(json.dumps(result))  # noqa: T201
    else:
        print("\n".join(lines(result)))  # noqa: T201
