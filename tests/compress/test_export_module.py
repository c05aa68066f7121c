import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from fedge.compress.export_module import export_module
from fedge.edge.runtime import Runtime
from fedge.models.teacher import build_teacher
from fedge.preprocess import Preprocess

HOW = Preprocess(np.array([9, -2, 0.1], np.float32), np.array([0.3, 7, 0.5], np.float32), 4.0)


def test_a_teacher_answers_raw_windows_as_torch_answers_preprocessed_ones() -> None:
    rng = np.random.default_rng(0)
    for window in ((40, 3), (16, 12, 3)):
        torch.manual_seed(0)
        teacher = build_teacher("residual", "small", window, 5).eval()
        content = export_module(teacher, window, HOW)
        assert content is not None
        runtime = Runtime(content)
        assert (runtime.window, runtime.outputs) == (window, 5)
        raw = rng.normal(5, 9, (4, *window)).astype(np.float32)
        with torch.no_grad():
            expected = teacher(torch.from_numpy(HOW.apply(raw))).numpy()
        np.testing.assert_allclose(runtime.predict(raw), expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(runtime.predict(raw[:1]), expected[:1], rtol=1e-3, atol=1e-4)


class _Unwritable(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x).mean(dim=(1, 2))[:, None]


def test_a_module_that_cannot_be_written_is_none_and_says_nothing(tmp_path: Path) -> None:
    """In a process of its own: what C++ prints comes when it ends."""
    script = (
        "import torch; from compress.test_export_module import HOW, _Unwritable, export_module\n"
        "assert export_module(_Unwritable(), (40, 3), HOW) is None"
    )
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests.parent), str(tests)])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
