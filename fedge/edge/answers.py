"""From scores to what a user is told: a class and how sure, a number, or an anomaly and its threshold."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedge.errors import ConfigError
from fedge.metrics import NORMAL_SHARE, threshold
from fedge.release.manifest import Manifest

FEWEST_NORMAL = 100
"""Normal windows of its own that a device must have to set its own threshold."""


@dataclass(frozen=True)
class Wording:
    """How the answers of one release are put.

    Attributes:
        manifest: what the release says about itself.
        threshold: above which anomaly score a window is called anomalous; None where nobody knows.
        top: how many classes are named with their probabilities; 0 names the likeliest one only.
    """

    manifest: Manifest
    threshold: float | None = None
    top: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.top <= max(1, len(self.manifest.classes)):
            raise ConfigError(f"--top {self.top}: this model knows {len(self.manifest.classes)} classes")

    def of(self, scores: NDArray[np.float32]) -> dict[str, Any]:
        """The answer for the finite scores ``[outputs]`` of one window, as JSON can hold it."""
        if self.manifest.target == "class":
            return self._classes(scores)
        value = float(str(scores[0]))  # the shortest number that is this float32
        if self.manifest.target == "number":
            return {"value": value}
        anomalous = None if self.threshold is None else float(scores[0]) > self.threshold
        return {"anomalous": anomalous, "score": value, "threshold": self.threshold}

    def _classes(self, scores: NDArray[np.float32]) -> dict[str, Any]:
        likely = softmax(scores)
        order = np.argsort(-scores, kind="stable")[: max(1, self.top)]
        named = [
            {"class": self.manifest.classes[i], "probability": round(float(likely[i]), 6)} for i in order
        ]
        return {**named[0], "top": named} if self.top else named[0]


def softmax(scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """``exp(s) / sum(exp(s))`` of finite scores ``[k]``, in float64 and without overflow."""
    raised = np.exp(scores.astype(np.float64) - float(scores.max()))
    return np.asarray(raised / raised.sum())


def own_threshold(manifest: Manifest, normal_scores: NDArray[np.float32]) -> float | None:
    """The device's own threshold, from the scores ``[n]`` of its normal windows; else the release's."""
    if manifest.target != "anomaly" or len(normal_scores) < FEWEST_NORMAL:
        return manifest.threshold
    return threshold(normal_scores, NORMAL_SHARE)
