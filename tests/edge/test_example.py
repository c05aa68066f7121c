import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedge.data import load
from fedge.edge.lines import LateLabel, Lines, Sample
from fedge.edge.stream import Cutter, Window

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(importlib.util.find_spec("seglearn") is None, reason="needs seglearn")
def test_device_example_streams_the_very_windows_of_the_data_set_and_their_labels() -> None:
    script = ROOT / "examples" / "device" / "stream.py"
    done = subprocess.run(
        [sys.executable, script, "--client", "p05-left", "--speed", "10000", "--labels", "1"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )
    data = load("watch")
    parser, cutter = Lines(data.channels), Cutter(128, 6, 64)
    windows: list[Window] = []
    labels: list[LateLabel] = []
    for line in done.stdout.splitlines():
        found = parser.parse(line)
        if isinstance(found, LateLabel):
            labels.append(found)
        elif isinstance(found, Sample) and (window := cutter.add(found)) is not None:
            windows.append(window)
    expected = data.clients["p05-left"]
    np.testing.assert_array_equal([w.x for w in windows], expected.x)
    said = [[one.label for one in labels if one.start <= w.begin and w.end <= one.stop] for w in windows]
    assert said == [[data.classes[y]] for y in expected.y]
