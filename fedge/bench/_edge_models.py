"""The models that ``fedge bench edge`` measures: with random weights, which make no difference to speed."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedge.compress.export import export_float, export_int8
from fedge.compress.export_module import export_module
from fedge.compress.quantize import Calibration, calibrate
from fedge.edge.runtime import Runtime
from fedge.errors import FedgeError
from fedge.models.normalised import Normalised
from fedge.models.student_families import build_spec
from fedge.models.teacher import build_teacher
from fedge.preprocess import Preprocess
from fedge.release.manifest import Input, Manifest, ModelFile, SelfTest

WINDOW = (128, 6)
"""Of ``watch``: samples and channels."""
CHANNELS = ("ax", "ay", "az", "gx", "gy", "gz")
CLASSES = tuple(f"exercise-{i}" for i in range(1, 8))
TASK = "activity"

_HOW = Preprocess(np.array([0.1, 9, -2, 0, 1, -1], np.float32), np.array([2, 3, 3, 1, 1, 2], np.float32))
_SEED = 0


@dataclass(frozen=True, eq=False)
class Student:
    """One student, as three models that compute (nearly) the same.

    Attributes:
        name: family and size.
        parameters: weights and biases.
        multiply_adds: for one window.
        int8: as it is released.
        float32: as a release of float32.
        usual: in float32 as torch's own exporter writes it, behind the same preprocessing.
    """

    name: str
    parameters: int
    multiply_adds: int
    int8: bytes
    float32: bytes
    usual: bytes

    @property
    def models(self) -> dict[str, bytes]:
        """All three, by name."""
        return {"int8": self.int8, "float32": self.float32, "usual": self.usual}


def windows(n: int) -> NDArray[np.float32]:
    """``n`` windows in a sensor's units, the same ones each time."""
    noise = np.random.default_rng(_SEED).normal(0, 1, (n, *WINDOW))
    return (noise * _HOW.scale + _HOW.mean).astype(np.float32)


def student(family: str, size: str) -> Student:
    """A student of that kind for windows of ``watch``."""
    torch.manual_seed(_SEED)
    spec = build_spec(family, size, WINDOW, len(CLASSES))
    module, x = Normalised(spec), torch.from_numpy(_HOW.apply(windows(64)))
    module(x)  # its statistics are those of these windows
    params = module.eval().folded()
    scales = calibrate(spec, params, x, Calibration())
    weights = {name: value.numpy() for name, value in params.items()}
    return Student(
        f"{family}_{size}",
        spec.parameters(),
        spec.multiply_adds(),
        export_int8(spec, weights, scales, _HOW),
        export_float(spec, weights, scales, _HOW),
        _exported(module),
    )


def teacher(family: str, size: str) -> bytes:
    """A teacher in float32, behind the same preprocessing."""
    torch.manual_seed(_SEED)
    return _exported(build_teacher(family, size, WINDOW, len(CLASSES)).eval())


def _exported(module: torch.nn.Module) -> bytes:
    model = export_module(module, WINDOW, _HOW)
    if model is None:
        raise FedgeError("torch's exporter cannot write this model: there is nothing to compare with")
    return model


def release(folder: Path, model: bytes) -> Path:
    """The folder of a release of ``model``, as a server writes it."""
    folder.mkdir()
    x, now = windows(1), int(time.time())
    manifest = Manifest(
        federation="be" * 16,
        version=1,
        round=1,
        created=now,
        task=TASK,
        model=ModelFile.of(model),
        input=Input(WINDOW, CHANNELS),
        classes=CLASSES,
        metric="accuracy",
        scores={},
        sizes={},
        parent=None,
        expires=now + 86_400,
        self_test=SelfTest.of(x, Runtime(model).predict(x), 0.05),
    )
    (folder / "model.onnx").write_bytes(model)
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    return folder
