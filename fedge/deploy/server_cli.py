"""``fedge server``: its options, and what it says of itself (``status``, ``rounds``, ``clients``)."""

import argparse
from collections.abc import Callable
from pathlib import Path

from fedge.config import config_text, load_config
from fedge.errors import ConfigError, InputError

EDGE_WORK = "fedge.deploy.edge_server:run"
"""What a run of an edge server does."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``fedge server``."""
    parser.add_argument(
        "show", nargs="?", choices=("status", "rounds", "clients"), help="say how it is, instead of serving"
    )
    parser.add_argument(
        "--federation",
        type=Path,
        default=Path("federation"),
        metavar="DIR",
        help="what `fedge provision` made, or the folder `server` of it (default: federation)",
    )
    parser.add_argument(
        "--state",
        type=Path,
        default=Path("server-state"),
        metavar="DIR",
        help="where it keeps what it knows (default: server-state)",
    )
    parser.add_argument("--scenario", metavar="NAME", help="a built-in name or a TOML file (default: watch)")
    parser.add_argument("--task", metavar="NAME", help="what is learned (default: the scenario's)")
    parser.add_argument("--data", metavar="PATH", help="the server's own data: an .npz file or a folder")
    parser.add_argument("--rounds", type=int, metavar="N", help="number of rounds")
    parser.add_argument(
        "--parent",
        metavar="HOST:PORT",
        help="be an edge server of the server there (default: as its bundle says, if provisioned as one)",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="everything random follows from it")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any setting, such as local.epochs=3"
    )
    parser.add_argument("--host", default="0.0.0.0", help="where to listen (default: everywhere)")  # noqa: S104
    parser.add_argument("--port", type=int, help="for devices (default: as provisioned)")
    parser.add_argument("--flower-door", type=int, metavar="PORT", help="let stock flower-supernodes in here")
    parser.add_argument(
        "--status-port", type=int, default=8099, metavar="PORT", help="page and metrics on loopback; 0: none"
    )
    parser.add_argument("--log", choices=("human", "json"), default="human")


def run(options: argparse.Namespace) -> int:
    """Serve until all rounds are done or SIGTERM comes, or say how it is.

    Raises:
        InputError: folders, settings, data or ports cannot be used.
    """
    if options.show is not None:
        return _shown(options)
    from fedge.deploy import server_command
    from fedge.deploy.deadlines import for_deployment, for_edge
    from fedge.deploy.federation import Federation
    from fedge.deploy.server_checks import check, check_edge, check_installed
    from fedge.deploy.state_directory import check_state

    check_installed()
    options.server = options.federation
    if (options.federation / "server").is_dir():
        options.server = options.federation / "server"
    keys = {"data.source": options.data, "rounds.rounds": options.rounds, "seed": options.seed}
    own = options.data is not None and options.scenario is None
    config = load_config(
        None if own else options.scenario or "watch",
        {key: value for key, value in keys.items() if value is not None},
        options.set,
        options.task,
    )
    settings = {"config": config_text(config), "status_port": options.status_port, "parent": options.parent}
    own_id = Federation.load(options.server).id
    if check_edge(options.server, options.parent):
        _refuse_learning(options)
        check_state(options.state, for_edge(config), own_id)
        return server_command.run(options, settings, EDGE_WORK)
    check_state(options.state, for_deployment(config), own_id)
    check(config)
    return server_command.run(options, settings)


def _refuse_learning(options: argparse.Namespace) -> None:
    """An edge server learns what its parent says, with data of its devices only."""
    for name in ("data", "task", "rounds"):
        if getattr(options, name) is not None:
            raise ConfigError(f"--{name} is the parent's affair; an edge server passes its tasks on")


def _shown(options: argparse.Namespace) -> int:
    from fedge.deploy import status

    ways: dict[str, Callable[[Path], list[str]]] = {
        "status": status.status_lines,
        "rounds": status.round_lines,
        "clients": status.client_lines,
    }
    if not options.state.is_dir():
        raise InputError(f"there is no state directory {options.state}; name it with --state")
    print("\n".join(ways[options.show](options.state)))  # noqa: T201
    return 0
