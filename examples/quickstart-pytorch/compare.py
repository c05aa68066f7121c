"""Runs the quickstart with and without compression in this process, and prints bytes and scores.

    python compare.py [--rounds 30] [--clients 10] [--seeds 3]

A plain run's bytes are those of the arrays in its messages, without Flower's framing.
"""

import argparse
import logging
import random
import sys
import tempfile
from pathlib import Path

import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg
from quickstart.client_app import app
from quickstart.task import Net

from fedge.flower import Compressed
from fedge.simulation.local import LocalGrid

CONFIG = {"local-epochs": 2, "learning-rate": 0.05, "batch-size": 16}


def run(compress: bool, seed: int, rounds: int, clients: int) -> tuple[float, float]:
    """One run: bytes per client, and accuracy on the clients' test images (mean of the last 3 rounds)."""
    torch.manual_seed(seed)
    random.seed(seed)  # Flower's choice of nodes
    arrays = ArrayRecord(Net().state_dict())
    size = sum(a.numpy().nbytes for a in arrays.values())
    strategy = Compressed(FedAvg()) if compress else FedAvg()
    with tempfile.TemporaryDirectory() as folder:
        grid = LocalGrid(app, clients, CONFIG, Path(folder) / "states")
        with grid:
            result = strategy.start(grid=grid, initial_arrays=arrays, num_rounds=rounds)
    last = range(max(1, rounds - 2), rounds + 1)
    accuracy = sum(result.evaluate_metrics_clientapp[r]["eval_acc"] for r in last) / len(last)
    if isinstance(strategy, Compressed):
        traffic = strategy.traffic()
        return (sum(traffic.down.values()) + sum(traffic.up.values())) / clients, accuracy
    return 3 * rounds * size, accuracy  # down to train, up, down to evaluate


def say(line: str) -> None:
    """A line to standard output."""
    sys.stdout.write(line + "\n")


def main() -> None:
    """Both, for some seeds, side by side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    say("seed  plain: bytes/client  accuracy   compressed: bytes/client  accuracy   fewer bytes")
    for seed in range(args.seeds):
        (many, plain), (few, small) = (run(c, seed, args.rounds, args.clients) for c in (False, True))
        say(f"{seed:4}  {many:19,.0f}  {plain:8.4f}  {few:24,.0f}  {small:8.4f}  {many / few:10.0f}x")


if __name__ == "__main__":
    main()
