"""What is served: a model that may change while it answers."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedge.edge.live import LiveModel, Model
from fedge.edge.runtime import INPUT, OUTPUT
from fedge.release.manifest import Manifest
from fedge.serving.oip import Face
from fedge.serving.oip_tensor import Tensor

Answered = tuple[Face, NDArray[np.float32]]


class Served(Protocol):
    """What answers. ``predict`` may be called from several threads."""

    def face(self) -> Face:
        """What it is now; the same object until it changes."""

    def manifest(self) -> bytes:
        """The release's manifest."""

    def ready(self) -> bool:
        """Whether it can answer."""

    def predict(self, x: NDArray[Any]) -> Answered:
        """Scores ``[n, outputs]`` of a batch ``[n, *shape]``, all finite, and what gave them.

        Raises:
            DataError: this batch cannot be answered; a part of it might.
            RefusedError: the model fails.
        """

    def warm(self, count: int) -> None:
        """Answer ``count`` windows of zeros, to nobody."""

    def follow(self) -> str | None:
        """Take a newer model if there is one; gives what happened, for a log. For about once a second."""

    def close(self) -> str | None:
        """There will be no more."""


class Whole:
    """A device's home, the folder of a release, or an ``.onnx`` file with its manifest beside it."""

    def __init__(self, live: LiveModel, name: str | None = None) -> None:
        self._live, self._name = live, name
        self._face = (live.current, face_of(live.current.manifest, name))
        self._manifest = (live.current, live.current.manifest.to_bytes())

    @classmethod
    def open(cls, place: Path, name: str | None = None) -> "Whole":
        """Open what is at ``place``; it is called ``name``, or like its task.

        Raises:
            FedgeError: as :meth:`fedge.edge.live.LiveModel.open`.
        """
        return cls(LiveModel.open(place), name)

    def face(self) -> Face:
        """See :class:`Served`."""
        return self._face_of(self._live.current)

    def manifest(self) -> bytes:
        """See :class:`Served`."""
        model = self._live.current
        if self._manifest[0] is not model:
            self._manifest = (model, model.manifest.to_bytes())
        return self._manifest[1]

    def ready(self) -> bool:
        """See :class:`Served`."""
        return True

    def predict(self, x: NDArray[Any]) -> Answered:
        """See :class:`Served`."""
        model, scores = self._live.predict(x)
        return self._face_of(model), scores

    def warm(self, count: int) -> None:
        """See :class:`Served`. Past the watch: nobody asked."""
        runtime = self._live.current.runtime
        runtime.predict(np.zeros((count, *runtime.window), np.float32))

    def follow(self) -> str | None:
        """See :class:`Served`."""
        return self._live.follow()

    def close(self) -> str | None:
        """See :class:`Served`."""
        return self._live.close()

    def _face_of(self, model: Model) -> Face:
        known, face = self._face
        if known is not model:
            face = face_of(model.manifest, self._name)
            self._face = (model, face)
        return face


def face_of(manifest: Manifest, name: str | None) -> Face:
    """What the protocol says of a whole model; it is called ``name``, or like its task."""
    labelled = manifest.target == "class"
    details: dict[str, object] = {"channels": manifest.input.names, "target": manifest.target}
    if not labelled and manifest.classes:
        details["anomaly_classes"] = manifest.classes
    if manifest.threshold is not None:
        details["threshold"] = manifest.threshold
    return Face(
        name or manifest.task,
        manifest.version,
        Tensor(INPUT, "FP32", manifest.input.shape),
        Tensor(OUTPUT, "FP32", (manifest.outputs,)),
        manifest.model.sha256,
        manifest.classes if labelled else (),
        details,
    )
