"""``fedge bench``: its options. Each benchmark loads what it needs when it runs."""

import argparse
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedge.config.options import add_settings, config_from_options
from fedge.errors import InputError

Lines = Callable[[Mapping[str, Any]], list[str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One command for each benchmark."""
    kinds = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def kind(
        name: str, text: str, measure: Callable[[argparse.Namespace], tuple[Mapping[str, Any], Lines]]
    ) -> argparse.ArgumentParser:
        one: argparse.ArgumentParser = kinds.add_parser(name, help=text, description=text.capitalize() + ".")
        one.add_argument("--json", action="store_true", help="print one JSON object on the last line")
        one.set_defaults(measure=measure)
        return one

    kind("codec", "bytes, error, distance from the entropy and speed of the codecs", _codec)
    _add_communication(kind("communication", "score against bytes, beside Flower's FedAvg", _communication))
    text = "re-distillation, distillation, int8 and cutting: what each does to the score"
    _add_learning(kind("learning", text, _learning))
    text = "seconds and bytes of a round with no work, beside stock Flower"
    _add_round(kind("round", text, _round))
    one = kind("server", "updates a second through the server's checks, and its memory", _server)
    one.add_argument(
        "--clients", type=int, default=10_000, metavar="N", help="synthetic ones (default: 10,000)"
    )
    _add_edge(kind("edge", "microseconds, memory and requests a second of what a device runs", _edge))
    text = "what an engine of the simulation adds to the clients' own work, beside Flower + Ray"
    kind("simulation", text, _simulation).add_argument(
        "--clients", default="30,300,1000", metavar="N,N", help="without work (default: 30,300,1000)"
    )


def run(options: argparse.Namespace) -> None:
    """Measure, and print a table or a JSON object."""
    result, lines = options.measure(options)
    print(json.dumps(result) if options.json else "\n".join(lines(result)))  # noqa: T201


def _add_communication(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="FILE.npz", help="your own data (default: that of watch)")
    parser.add_argument("--task", metavar="NAME", help="what is learned (default: the scenario's)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="runs to average (default: 5)")
    parser.add_argument("--rounds", type=int, metavar="N", help="number of rounds")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write the plot")


def _add_learning(parser: argparse.ArgumentParser) -> None:
    add_settings(parser)
    parser.add_argument(
        "--split", choices=["natural", "skewed", "missing"], help="what data are taken away (data.split)"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs to average (default: 3)")
    parser.add_argument(
        "--folds", type=int, default=1, metavar="N", help="rotations of who is unseen (default: 1, as set)"
    )
    parser.add_argument("--only", metavar="PARTS", help="such as modes,int8 (default: all that fit the task)")


def _add_round(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=60, metavar="N", help="of fedge (default: 60)")
    parser.add_argument(
        "--idle-seconds", type=float, default=300.0, metavar="S", help="of idling, at least (default: 300)"
    )


def _add_edge(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=11, metavar="N", help="of each time (default: 11)")
    parser.add_argument("--only", default="", metavar="PARTS", help="of models,start,serve,devices (all)")


def _codec(_options: argparse.Namespace) -> tuple[Mapping[str, Any], Lines]:
    from fedge.bench import codec

    return codec.run(), codec.lines


def _communication(options: argparse.Namespace) -> tuple[Mapping[str, Any], Lines]:
    if options.seeds < 1:
        raise InputError(f"--seeds {options.seeds}: give at least one")
    from fedge.bench import communication

    result = communication.run(options.data, options.task, options.seeds, options.rounds, options.out)
    return result, communication.lines


def _learning(options: argparse.Namespace) -> tuple[Mapping[str, Any], Lines]:
    config = config_from_options(options, {"data.split": options.split})
    from fedge.bench import learning

    return learning.run(config, options.seeds, options.folds, options.only), learning.lines


def _round(options: argparse.Namespace) -> tuple[Mapping[str, Any], Lines]:
    if options.rounds < 1:
        raise InputError(f"--rounds {options.rounds}: give at least one")
    if not 1 <= options.idle_seconds <= 86_400:
        raise InputError(f"--idle-seconds {options.idle_seconds:g}: give 1 to 86400")
    from fedge.bench import round as bench

    return bench.run(options.idle_seconds, options.rounds), bench.lines


def _server(options: argparse.Namespace) -> tuple[Mapping[str, Any], Lines]:
    if not 200 <= options.clients <= 1_000_000:
        raise InputError(f"--clients {options.clients}: give 200 to 1000000")
    from fedge.bench import server

    return server.run(options.clients), server.lines


def _edge(options: argparse.Namespace) -> tuple[Mapping[str, Any], Lines]:
    if options.repeats < 1:
        raise InputError(f"--repeats {options.repeats}: give 1 or more")
    from fedge.bench import edge

    return edge.run(options.repeats, options.only), edge.lines


def _simulation(options: argparse.Namespace) -> tuple[Mapping[str, Any], Lines]:
    words = options.clients.split(",")
    if not all(re.fullmatch("[0-9]{1,6}", word) and int(word) for word in words):
        raise InputError(
            f"--clients {options.clients}: give numbers with commas between, such as 30,300,1000"
        )
    from fedge.bench import simulation

    return simulation.run([int(word) for word in words]), simulation.lines
