"""The model that answers now: opened from one place, exchanged when that place has another, and watched.

A place is a device's home, the folder of one release, or an ``.onnx`` file with its ``manifest.json`` beside
it. Only a home ever changes. Whoever answers windows calls :meth:`LiveModel.predict` for them, from as many
threads as it likes, and :meth:`LiveModel.follow` about once a second.
"""

import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedge.edge.places import Model, damaged, home_at, is_home, open_files, open_home, open_model, settled
from fedge.errors import DataError, FedgeError, ReleaseError
from fedge.metrics import METRICS
from fedge.release.manifest import Manifest

if TYPE_CHECKING:
    from fedge.edge.home import Home, Seen

__all__ = ["REPORT_SECONDS", "Answering", "Judged", "LiveModel", "Model", "open_model", "score_of"]

Judged = tuple[NDArray[np.float32], float]
"""Scores ``[outputs]`` of a window, and its label as a number."""

REPORT_SECONDS = 10.0
"""How often the home is told what was seen; sooner where the model failed."""
_LATENCIES = 256  # single windows whose time is kept between two reports
_JUDGED = 10_000  # windows with a label that are kept between two reports


class Answering(Protocol):
    """What answers windows: a model on this device, or on others. See :class:`LiveModel`."""

    @property
    def current(self) -> Model:
        """The model that answers from now on."""

    def predict(self, x: NDArray[Any]) -> tuple[Model, NDArray[np.float32]]:
        """Scores ``[n, outputs]`` of windows ``[n, *shape]``, all finite, and the model that gave them."""

    def judge(self, model: Model, scores: NDArray[np.float32], label: float) -> None:
        """The label of a window to which ``model`` had answered ``scores [outputs]``."""

    def follow(self) -> str | None:
        """Take a newer model if there is one; gives what happened, for a log. For about once a second."""

    def close(self) -> str | None:
        """There will be no more."""


@dataclass
class _Tally:
    """What was seen of one model since the last report."""

    answers: int = 0
    errors: int = 0
    latency_ns: deque[int] = field(default_factory=lambda: deque(maxlen=_LATENCIES))
    judged: deque[Judged] = field(default_factory=lambda: deque(maxlen=_JUDGED))


class LiveModel:
    """Always the current model of one place.

    Attributes:
        current: the model that answers from now on. Read it once for what must come from one model.
    """

    def __init__(
        self,
        model: Model,
        home: "Home | None" = None,
        stamp: object = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``model`` answers; it is what ``home`` had when it had this ``stamp``."""
        self.current = model
        self._home, self._stamp, self._clock = home, stamp, clock
        self._lock, self._following = threading.Lock(), threading.Lock()
        self._tally, self._reported, self._confirmed = _Tally(), clock(), False
        self._said: str | None = None
        self._news: str | None = None  # what the first look tells

    @classmethod
    def open(cls, place: Path) -> "LiveModel":
        """Open what is at ``place``.

        Raises:
            NoReleaseYetError: there is nothing to open.
            SetupError: it cannot be read.
            ReleaseError: the manifest is malformed, or the model is not the one it names or does not open.
        """
        place = settled(place)
        if is_home(place):
            home = home_at(place)
            stamp = home.stamp()
            model, said = open_home(home, place)
            live = cls(model, home, stamp)
            live._news = said
            return live
        return cls(open_files(place))

    def predict(self, x: NDArray[Any]) -> tuple[Model, NDArray[np.float32]]:
        """Scores ``[n, outputs]`` of windows ``[n, *shape]``, all finite, and the model that gave them.

        Raises:
            DataError: the windows have another shape, or hold NaN or infinity.
            ReleaseError: the model fails on them, or answers with NaN or infinity.
        """
        model, start = self.current, time.perf_counter_ns()
        try:
            scores = model.runtime.predict(x)
            flat = scores.reshape(-1)  # one dot product tells of nearly all that they are finite
            if not math.isfinite(np.dot(flat, flat)) and not np.isfinite(flat).all():
                raise ReleaseError("the model answers with NaN or infinity")
        except ReleaseError:
            self.count(model, errors=1)
            raise
        taken = time.perf_counter_ns() - start
        self.count(model, answers=len(x), latency_ns=taken if len(x) == 1 else None)
        return model, scores

    def count(self, model: Model, answers: int = 0, errors: int = 0, latency_ns: int | None = None) -> None:
        """Count what ``model`` did, for the watch; :meth:`predict` does so itself.

        Args:
            model: what answered; one that has been exchanged since is not counted any more.
            answers: windows that it answered.
            errors: calls that failed through no fault of the windows.
            latency_ns: what a single window took.
        """
        with self._lock:
            if model is self.current:
                self._tally.answers += answers
                self._tally.errors += errors
                if latency_ns is not None:
                    self._tally.latency_ns.append(latency_ns)

    def judge(self, model: Model, scores: NDArray[np.float32], label: float) -> None:
        """The label of a window to which ``model`` had answered ``scores [outputs]``, for the watch."""
        with self._lock:
            if model is self.current:
                self._tally.judged.append((scores, label))

    def follow(self) -> str | None:
        """Tell the home what was seen where it is time to, and take its current model if that is another.

        Whatever is wrong with the home or with a new model, the model that answers goes on.

        Returns:
            What happened, for a log; None if nothing did. The first time also what opening it came upon.
        """
        news, self._news = self._news, None
        if news is not None:
            return news
        if self._home is None or not self._following.acquire(blocking=False):
            return None
        try:
            said = self._report(self._home)
            said = self._look(self._home) or said
        except (FedgeError, OSError) as error:
            said = f"the model's home cannot be used: {error}; release {self._version} goes on"
            if said == self._said:
                return None
        finally:
            self._following.release()
        self._said = said or self._said
        return said

    def close(self) -> str | None:
        """Tell the home what has not been told yet; gives what ``follow`` does."""
        self._reported = -math.inf
        return self.follow()

    @property
    def _version(self) -> int:
        return self.current.manifest.version

    def _report(self, home: "Home") -> str | None:
        """Confirm a model that has answered, and tell what was seen where it is time to."""
        now, tally = self._clock(), self._tally
        if tally.answers and not self._confirmed:
            self._confirmed = True
            home.confirmed(self._version)
        late = now - self._reported >= REPORT_SECONDS
        if not tally.errors and not (late and tally.answers):
            return None
        with self._lock:
            self._tally, self._reported = _Tally(), now
        return home.observe(_seen(self.current.manifest, tally))

    def _look(self, home: "Home") -> str | None:
        """Exchange the model if the home's current one is another."""
        stamp = home.stamp()
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        lost = home.settle()
        installed, old = home.current(), self.current.manifest
        if installed is None or installed.manifest.model == old.model:
            return None if lost is None else f"{damaged(lost)}; release {self._version} goes on"
        if _task(installed.manifest) != _task(old):
            return f"release {installed.version} takes or tells something else: start again to use it"
        if reason := home.started(installed.version):
            return reason
        try:
            model = open_model(installed.manifest, installed.model)
        except ReleaseError as error:
            home.observe(_seen(installed.manifest, _Tally(errors=1)))
            return f"release {installed.version} does not open: {error}; release {self._version} goes on"
        with self._lock:
            self.current, self._tally, self._confirmed = model, _Tally(), False
        return f"release {installed.version} answers from now on"


def _task(manifest: Manifest) -> object:
    """What the windows are and what is told of them; whoever answers may rely on it."""
    return manifest.input, manifest.target, manifest.classes


def _seen(manifest: Manifest, tally: _Tally) -> "Seen":
    from fedge.edge.home import Seen

    latency = statistics.median(tally.latency_ns) / 1000 if tally.latency_ns else None
    score = score_of(manifest, tally.judged)
    windows = len(tally.judged) if score is not None else 0
    return Seen(manifest.version, tally.answers, tally.errors, latency, score, windows)


def score_of(manifest: Manifest, judged: Sequence[Judged]) -> float | None:
    """The release's own metric on windows whose label is known; None where they do not define it."""
    if not judged or manifest.metric not in METRICS:
        return None
    scores, labels = (np.array(column) for column in zip(*judged, strict=True))
    y = labels if manifest.target == "number" else labels.astype(np.int64)
    try:
        score = METRICS[manifest.metric](scores, y)
    except DataError:  # the metric does not suit these answers
        return None
    return None if math.isnan(score) else score
