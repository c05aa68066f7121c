"""What a release says about itself: canonical JSON, parsed strictly.

The bytes are what is signed, so there is one way of writing a manifest: keys sorted, no spaces, ASCII.
The parser refuses every other way; hence ``parse(m.to_bytes()) == m`` and ``parse(b).to_bytes() == b``.
Unknown keys are refused, except under ``extra``.
"""

import base64
import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedge.errors import ReleaseError
from fedge.preprocess import MAX_CHANNELS
from fedge.release import _parse as p

if TYPE_CHECKING:  # a device that answers windows needs none of what reads files of data
    from fedge.data.types import TargetKind

SCHEMA = 3
INT8, FLOAT32 = "int8-qdq", "float32"
KINDS = (INT8, FLOAT32)
MAX_MANIFEST_BYTES = 1 << 20
MAX_MODEL_BYTES = 1 << 26
MAX_WINDOW = 1 << 20  # values in one window
MAX_CLASSES = 1024
MAX_SELF_TEST = 16  # windows


@dataclass(frozen=True)
class ModelFile:
    """The model that belongs to a manifest, with its preprocessing in it.

    Attributes:
        sha256: lower-case hex.
        size: bytes.
        kind: ``int8-qdq`` or ``float32``.
    """

    sha256: str
    size: int
    kind: str = INT8

    @staticmethod
    def of(model: bytes, kind: str = INT8) -> "ModelFile":
        """What describes ``model``."""
        return ModelFile(hashlib.sha256(model).hexdigest(), len(model), kind)


@dataclass(frozen=True)
class Input:
    """The windows a model takes.

    Attributes:
        shape: ``(time, channels)`` of a window, or ``(height, width, channels)`` of an image.
        names: of the channels.
    """

    shape: tuple[int, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class SelfTest:
    """Windows with the scores the model must give for them, to tell that it works on a device.

    int8 kernels of different processors do not agree bit for bit, hence the tolerance.

    Attributes:
        windows: ``[k, *shape]`` float32 in the sensor's units, little-endian, row by row.
        scores: ``k`` rows of ``outputs`` numbers.
        tolerance: largest allowed difference of one score, above 0.
    """

    windows: bytes
    scores: tuple[tuple[float, ...], ...]
    tolerance: float

    @staticmethod
    def of(x: NDArray[Any], scores: NDArray[np.float32], tolerance: float) -> "SelfTest":
        """From windows or images ``[k, *shape]``, float or integer, and scores ``[k, outputs]``."""
        rows = tuple(tuple(float(v) for v in row) for row in scores)
        return SelfTest(np.ascontiguousarray(x, "<f4").tobytes(), rows, float(tolerance))


@dataclass(frozen=True)
class Manifest:
    """One release. Checked when it is parsed; :meth:`to_bytes` of a wrong one raises, too.

    Attributes:
        federation: whose release it is: 16 to 64 lower-case hex digits.
        version: 1 or above; each release of a federation has a higher one.
        round: the last round that went into it.
        created: Unix time in seconds, said by whoever releases.
        task: name of the task.
        model: the model file.
        input: the windows it takes.
        classes: names of the classes, in the order of the scores; none where the answer is a number. Where
            the one score tells how anomalous a window is, the names of both kinds: normal, anomalous.
        metric: name of the score it was chosen by; higher is better.
        scores: what it scored, by name (as in ``report.json``); finite.
        sizes: facts about its size, by name, in bytes or parameters.
        parent: the version it was fine-tuned from, if any.
        expires: Unix time in seconds; from then on a device does not take it any more.
        self_test: see :class:`SelfTest`.
        threshold: above which score a window is anomalous, as the server suggests it. A device that has
            normal windows of its own sets its own (:func:`fedge.metrics.threshold`). None for other tasks.
        extra: anything else, as JSON.
    """

    federation: str
    version: int
    round: int
    created: int
    task: str
    model: ModelFile
    input: Input
    classes: tuple[str, ...]
    metric: str
    scores: Mapping[str, float]
    sizes: Mapping[str, int]
    parent: int | None
    expires: int
    self_test: SelfTest
    threshold: float | None = None
    extra: Mapping[str, object] = field(default_factory=dict)

    @property
    def outputs(self) -> int:
        """How many numbers the model answers with for one window, as its self-test shows."""
        return len(self.self_test.scores[0])

    @property
    def target(self) -> "TargetKind":
        """What the model tells of a window."""
        if not self.classes:
            return "number"
        return "class" if self.outputs == len(self.classes) else "anomaly"

    def to_bytes(self) -> bytes:
        """The canonical JSON.

        Raises:
            ReleaseError: what this manifest says is outside the bounds, or JSON would change it.
        """
        raw = asdict(self) | {"schema": SCHEMA}
        raw["self_test"]["windows"] = base64.b64encode(self.self_test.windows).decode()
        content = p.canonical(raw)
        if len(content) > MAX_MANIFEST_BYTES:
            raise ReleaseError(f"the manifest has {len(content)} bytes; the limit is {MAX_MANIFEST_BYTES}")
        if parse(content) != self:
            raise ReleaseError(
                "the manifest holds what JSON would change, such as a tuple or a number as a key"
            )
        return content

    def self_test_windows(self) -> NDArray[np.float32]:
        """The self-test's windows, ``[k, *shape]`` float32."""
        flat = np.frombuffer(self.self_test.windows, "<f4").astype(np.float32)
        return flat.reshape(-1, *self.input.shape)

    def self_test_scores(self) -> NDArray[np.float32]:
        """What the model must answer to them, ``[k, outputs]`` float32."""
        return np.array(self.self_test.scores, np.float32)


def parse(content: bytes) -> Manifest:
    """Parse a manifest from a source that is not trusted.

    Raises:
        ReleaseError: it is too long, not canonical JSON, nests too deeply, has another schema, an unknown
            or a missing key, or a value of the wrong type or outside its bounds.
    """
    raw = p.load(content, MAX_MANIFEST_BYTES)
    _check_schema(raw.get("schema"))
    p.keys(raw, "manifest", {*Manifest.__dataclass_fields__, "schema"})
    window = _input(p.obj(raw["input"], "input"))
    classes = p.names(raw["classes"], "classes", MAX_CLASSES, least=0)
    self_test = _self_test(p.obj(raw["self_test"], "self_test"), window, len(classes))
    version = p.integer(raw["version"], "version", 1)
    created = p.integer(raw["created"], "created", 0)
    parent = raw["parent"]
    return Manifest(
        federation=p.hex_digits(raw["federation"], "federation", 16, 64),
        version=version,
        round=p.integer(raw["round"], "round", 0),
        created=created,
        task=p.name(raw["task"], "task"),
        model=_model(p.obj(raw["model"], "model")),
        input=window,
        classes=classes,
        metric=p.name(raw["metric"], "metric"),
        scores={k: p.number(v, k) for k, v in p.table(raw["scores"], "scores").items()},
        sizes={k: p.integer(v, k, 0) for k, v in p.table(raw["sizes"], "sizes").items()},
        parent=None if parent is None else p.integer(parent, "parent", 1, version - 1),
        expires=p.integer(raw["expires"], "expires", created + 1),
        self_test=self_test,
        threshold=_threshold(raw["threshold"], len(classes), len(self_test.scores[0])),
        extra=p.obj(raw["extra"], "extra"),
    )


def check_model(release: Manifest, model: bytes) -> None:
    """Check that ``model`` is the one that ``release`` names.

    Raises:
        ReleaseError: its size or its SHA-256 is another.
    """
    if len(model) != release.model.size:
        raise ReleaseError(f"the model has {len(model)} bytes; its manifest says {release.model.size}")
    if hashlib.sha256(model).hexdigest() != release.model.sha256:
        raise ReleaseError("the model is not the one its manifest names: its SHA-256 differs")


def _check_schema(raw: object) -> None:
    """Schemas 1 and 2 kept the preprocessing beside the model; no fedge that wrote them was released."""
    schema = p.integer(raw, "schema", 1)
    if schema < SCHEMA:
        hint = "it was written by an older fedge: publish the model again"
        raise ReleaseError(f"the manifest has schema {schema}, this fedge reads {SCHEMA}: {hint}")
    if schema > SCHEMA:
        hint = "it was written by a newer fedge: update this one"
        raise ReleaseError(f"the manifest has schema {schema}, this fedge reads {SCHEMA}: {hint}")


def _model(raw: Mapping[str, object]) -> ModelFile:
    p.keys(raw, "model", set(ModelFile.__dataclass_fields__))
    kind = raw["kind"]
    if kind not in KINDS or not isinstance(kind, str):
        raise ReleaseError(f"the model is of kind {kind!r:.40}; this fedge runs {' and '.join(KINDS)}")
    return ModelFile(
        p.hex_digits(raw["sha256"], "sha256", 64, 64),
        p.integer(raw["size"], "size", 1, MAX_MODEL_BYTES),
        kind,
    )


def _input(raw: Mapping[str, object]) -> Input:
    p.keys(raw, "input", set(Input.__dataclass_fields__))
    names = p.names(raw["names"], "names of channels", MAX_CHANNELS)
    shape = tuple(p.integer(s, "shape", 1, MAX_WINDOW) for s in p.array(raw["shape"], "shape", 2, 3))
    if shape[-1] != len(names):
        raise ReleaseError(f"the manifest says {shape[-1]} channels and names {len(names)}")
    if (values := math.prod(shape)) > MAX_WINDOW:
        raise ReleaseError(f"the manifest's windows have {values} values; the limit is {MAX_WINDOW}")
    return Input(shape, names)


def _self_test(raw: Mapping[str, object], window: Input, classes: int) -> SelfTest:
    p.keys(raw, "self_test", set(SelfTest.__dataclass_fields__))
    rows = [
        p.array(row, "self_test scores", 1, MAX_CLASSES)
        for row in p.array(raw["scores"], "self_test scores", 1, MAX_SELF_TEST)
    ]
    scores = tuple(tuple(p.number(v, "self_test scores") for v in row) for row in rows)
    _check_outputs({len(row) for row in scores}, classes)
    size = 4 * len(scores) * math.prod(window.shape)
    windows = p.binary(raw["windows"], "self_test windows", size)
    if not np.isfinite(np.frombuffer(windows, "<f4")).all():
        raise ReleaseError("the manifest's self-test windows hold NaN or infinity")
    return SelfTest(windows, scores, p.number(raw["tolerance"], "tolerance", 1e-9, 1e9))


def _check_outputs(widths: set[int], classes: int) -> None:
    """One score per class; or a single one, for a number (no classes) or an anomaly score (two)."""
    allowed = {0: {1}, 2: {1, 2}}.get(classes, {classes})
    if len(widths) != 1 or not widths <= allowed:
        wanted, found = (" or ".join(map(str, sorted(v))) for v in (allowed, widths))
        raise ReleaseError(
            f"the manifest's self-test has rows of {found} scores; with {classes} classes it must be {wanted}"
        )


def _threshold(raw: object, classes: int, outputs: int) -> float | None:
    if raw is None:
        return None
    if (classes, outputs) != (2, 1):
        raise ReleaseError("the manifest has a threshold: only one anomaly score with two classes has one")
    return p.number(raw, "threshold")
