"""``fedge simulate``: its options. What takes long to load is loaded once they are known to be sound."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedge.config.options import add_settings, config_from_options
from fedge.errors import InputError
from fedge.simulation.engines import check_engine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What ``run`` reads."""
    add_settings(parser)
    parser.add_argument("--clients", type=int, metavar="N", help="only the first N participants")
    parser.add_argument(
        "--engine", choices=["local", "ray"], default="local", help="what runs the clients (default: local)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that run the clients; 0: this one does (default: as many as cores)",
    )
    parser.add_argument("--seed", type=int, metavar="N", help="everything random follows from it")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: runs/SCENARIO-001)")
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=A,B,C",
        help="run each of these values of a setting, and each combination; goes on in --out DIR",
    )
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run")


def run(options: argparse.Namespace) -> None:
    """Simulate, or refuse before anything is written."""
    if options.clients is not None and options.clients < 1:
        raise InputError(f"--clients {options.clients}: at least one client must take part")
    check_engine(options.engine, options.workers, resume=options.resume)
    overrides = {"data.clients": options.clients, "seed": options.seed}
    if options.sweep:
        _sweep(options, overrides)
        return
    config = config_from_options(options, overrides)

    from fedge.simulation.run import run as simulate

    simulate(config, options.out, resume=options.resume, engine=options.engine, workers=options.workers)


def _sweep(options: argparse.Namespace, overrides: Mapping[str, Any]) -> None:
    if options.resume:
        raise InputError("--sweep goes on by itself: name its folder with --out, without --resume")
    from fedge.simulation.sweep import grid, run_sweep

    points = grid(options.sweep, lambda assignments: config_from_options(options, overrides, assignments))
    run_sweep(points, options.out, engine=options.engine, workers=options.workers)
