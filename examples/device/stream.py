"""A smartwatch as a live stream: samples as JSON lines, at the sensor's pace, with labels that come later.

    python stream.py --client p05-left | fedge infer MODEL - --keep kept

The samples are those of the data set ``watch`` (package ``seglearn``): one arm of one person, seven kinds of
exercise. After some of them the wearer says what it was: a line with ``label``, ``from`` and ``to``.
Needs: pip install 'fedge[simulation]'
"""

import argparse
import itertools
import json
import random
import sys
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fedge.data import load
from fedge.data.types import Dataset

RATE = 50.0  # samples a second, of the watch
PAUSE = 2.0  # seconds between two exercises


def main() -> None:
    """Write samples to standard output until all exercises are done, or nobody reads any more."""
    options = parse()
    data = load("watch")
    if options.client not in data.clients:
        sys.exit(f"no client {options.client!r}; there are: {', '.join(data.clients)}")
    told, chance = 0.0, random.Random(options.seed)  # noqa: S311  which exercises get a label
    start = time.time()
    try:
        for number, (samples, label) in enumerate(exercises(data, options.client)):
            begin = told + (PAUSE if number else 0.0)
            for place, row in enumerate(samples):
                told = begin + place / RATE
                pace(start + told / options.speed)
                put({"timestamp": start + told / options.speed, **dict(zip(data.channels, row, strict=True))})
            if chance.random() < options.labels:
                at = [start + t / options.speed for t in (begin, told)]
                put({"label": label, "from": at[0], "to": at[1]})
    except (BrokenPipeError, KeyboardInterrupt):
        sys.stderr.close()


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description="A smartwatch as a live stream of samples.")
    parser.add_argument("--client", default="p05-left", help="who wears it (p05-left)")
    parser.add_argument("--speed", type=float, default=1.0, metavar="X", help="times real time (1)")
    parser.add_argument(
        "--labels", type=float, default=0.5, metavar="P", help="share of exercises named (0.5)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="which ones (0)")
    options = parser.parse_args()
    if not 0 < options.speed <= 10_000:
        parser.error("--speed takes numbers above 0, up to 10000")
    return options


def exercises(data: Dataset, client: str) -> Iterator[tuple[list[list[float]], str]]:
    """The recordings of one client: samples ``[n, channels]`` and the name of the exercise."""
    windows = data.clients[client]
    for _, places in itertools.groupby(range(len(windows)), key=lambda n: int(windows.group[n])):
        index = list(places)
        yield joined(windows.x[index]).tolist(), data.classes[int(windows.y[index[0]])]


def joined(windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """The signal ``[n, channels]`` of windows ``[k, time, channels]`` that overlap by half."""
    half = windows.shape[1] // 2
    return np.concatenate([windows[0], *windows[1:, half:]])


def pace(until: float) -> None:
    """Wait until it is that time."""
    left = until - time.time()
    if left > 0:
        sys.stdout.flush()
        time.sleep(left)


def put(line: dict[str, object]) -> None:
    """One JSON line; read at once, as a sensor's are."""
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
