"""``/metrics``: what was served, in the text format of Prometheus, version 0.0.4."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from fedge import __version__
from fedge.serving.oip import Face

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_WINDOWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Histogram:
    """How often a value was at most each of some bounds, and the sum of all."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """One more value."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> Iterator[str]:
        """Its samples."""
        *below, count = accumulate(self._counts)
        for bound, so_far in zip(self.bounds, below, strict=True):
            yield f'{name}_bucket{{le="{bound:g}"}} {so_far}'
        yield f'{name}_bucket{{le="+Inf"}} {count}'
        yield f"{name}_sum {self._sum!r}"
        yield f"{name}_count {count}"


@dataclass
class Counts:
    """What has happened since the start."""

    requests: Counter[int] = field(default_factory=Counter)
    windows: int = 0
    seconds: Histogram = field(default_factory=lambda: Histogram(_SECONDS))
    batches: Histogram = field(default_factory=lambda: Histogram(_WINDOWS))
    busy: Histogram = field(default_factory=lambda: Histogram(_SECONDS))
    swaps: int = 0

    def batch(self, windows: int, seconds: float) -> None:
        """The model answered a batch."""
        self.batches.add(windows)
        self.busy.add(seconds)

    def answered(self, windows: int, seconds: float) -> None:
        """A request was answered with scores, ``seconds`` after it had come."""
        self.windows += windows
        self.seconds.add(seconds)


def metrics_text(counts: Counts, face: Face, ready: bool, waiting: int, connections: int) -> bytes:
    """All of it."""
    return "\n".join([*_lines(counts, face, ready, waiting, connections), ""]).encode()


def _lines(counts: Counts, face: Face, ready: bool, waiting: int, connections: int) -> Iterator[str]:
    model = f'{{name="{_escaped(face.name)}",version="{face.version}",sha256="{face.model}"}}'
    for name, kind, text, samples in (
        ("build_info", "gauge", "The version of fedge, as a label.", [f'{{version="{__version__}"}} 1']),
        ("model_info", "gauge", "The model that answers, as labels.", [f"{model} 1"]),
        ("ready", "gauge", "1 while requests are taken.", [f" {int(ready)}"]),
        ("connections", "gauge", "Open connections.", [f" {connections}"]),
        ("waiting_windows", "gauge", "Windows that wait for the model.", [f" {waiting}"]),
        ("swaps_total", "counter", "Times that another model took over.", [f" {counts.swaps}"]),
        ("windows_total", "counter", "Windows answered with scores.", [f" {counts.windows}"]),
        ("requests_total", "counter", "Requests to infer, by the status of the answer.",
         [f'{{code="{code}"}} {n}' for code, n in sorted(counts.requests.items())]),
    ):  # fmt: skip
        yield from _head(f"fedge_serve_{name}", kind, text)
        yield from (f"fedge_serve_{name}{sample}" for sample in samples)
    for name, histogram, text in (
        ("request_seconds", counts.seconds, "From a request's arrival to its scores."),
        ("batch_windows", counts.batches, "Windows that the model answered at once."),
        ("batch_seconds", counts.busy, "What the model took for them."),
    ):
        yield from _head(f"fedge_serve_{name}", "histogram", text)
        yield from histogram.lines(f"fedge_serve_{name}")


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
