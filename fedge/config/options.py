"""Options of the command line that say which settings a run has."""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedge.config import Config, load_config
from fedge.errors import InputError


def add_settings(parser: argparse.ArgumentParser) -> None:
    """What ``config_from_options`` reads."""
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


def config_from_options(
    options: argparse.Namespace, more: Mapping[str, Any], assignments: Sequence[str] = ()
) -> Config:
    """The scenario, or the task's defaults for the user's own data, with everything that the options set.

    ``assignments`` (``key=value``) come after those of ``--set``.

    Raises:
        InputError: a setting is not known or out of range, or settings contradict each other.
    """
    own_data = options.data is not None and options.scenario is None
    scenario = None if own_data else options.scenario or "watch"
    if options.data == "":
        raise InputError("--data is empty; give an .npz file or a folder")
    keys = {"data.source": options.data, "rounds.rounds": options.rounds, **more}
    overrides = {key: value for key, value in keys.items() if value is not None}
    name = re.sub(r"[^\w.-]", "_", Path(options.data).stem)[:60] if own_data else "custom"
    return load_config(scenario, overrides, [*options.set, *assignments], options.task, name)
