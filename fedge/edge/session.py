"""One run of ``fedge infer``: windows in, answers out, and what is remembered of them."""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedge.edge.answers import Wording, own_threshold
from fedge.edge.labels import Label, Labels
from fedge.edge.lines import HeaderError, LateLabel, Lines
from fedge.edge.live import Answering, Model, score_of
from fedge.edge.stream import Cutter, Window
from fedge.errors import DataError, ReleaseError, SetupError
from fedge.release.manifest import Manifest

if TYPE_CHECKING:
    from fedge.edge.keep import Keep

_REMEMBERED = 4096  # answers that a later label may still reach, for the watch
_JUDGED = 20_000  # labelled answers of which the score at the end is made
_FOLLOW_SECONDS = 1.0
_SAID = 3
_WRITE = "write"


@dataclass
class _Answered:
    """An answer that may get a label."""

    begin: float
    end: float
    clocked: bool
    model: Model
    scores: NDArray[np.float32]
    label: float = math.nan


class Complaints:
    """Says what is wrong with the input: three times of each kind, then at the tenth, the hundredth, ..."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.count: Counter[str] = Counter()
        self._times: Counter[str] = Counter()

    def add(self, kind: str, text: str, several: int = 1) -> None:
        """One more of this ``kind``: ``sample``, ``window``, ``label``, ``write``; or ``several`` at once."""
        self.count[kind] += several
        self._times[kind] += 1
        n, times = self.count[kind], self._times[kind]
        if times <= _SAID or times == 10 ** round(math.log10(times)):
            self._say(text if times <= _SAID else f"{text} (this is {kind} number {n} with something wrong)")


class Session:
    """Answers windows with the current model.

    Attributes:
        answered: how many windows were.
        complaints: what was wrong.
    """

    def __init__(
        self,
        live: Answering,
        put: Callable[[dict[str, Any]], None],
        say: Callable[[str], None],
        *,
        keep: "Keep | None" = None,
        batch: int = 1,
        top: int = 0,
        label: str | None = None,
    ) -> None:
        """Begin.

        Args:
            live: the model.
            put: takes each answer.
            say: takes what a person should know.
            keep: where windows are kept, if anywhere.
            batch: windows answered in one call.
            top: as for ``Wording``.
            label: of windows without one.

        Raises:
            ConfigError: ``top`` is out of range.
            DataError: ``label`` is none of the model's.
        """
        self._live, self._put, self._say, self._keep = live, put, say, keep
        self._batch, self._top = batch, top
        self._labels = Labels.of(live.current.manifest)
        self._default = None if label is None else self._labels.code(label)
        self._model: Model | None = None
        self._word(live.current)
        self._pending: list[tuple[Window, Label | None, str | None]] = []
        self._remembered: deque[_Answered] = deque(maxlen=_REMEMBERED)
        self._judged: deque[_Answered] = deque(maxlen=_JUDGED)
        self._followed = time.monotonic()
        self._refusal: ReleaseError | None = None
        self.answered, self.complaints = 0, Complaints(say)

    @property
    def manifest(self) -> Manifest:
        """What the model that answers says about itself."""
        return self._live.current.manifest

    def read(
        self, lines: Iterable[bytes | None], parser: Lines, cutter: Cutter, file: str | None = None
    ) -> None:
        """Answer what comes line by line; at a None nothing has come for a while.

        Raises:
            HeaderError: the first line does not say what the columns are.
        """
        number = 0
        for line in lines:
            if line is None:
                self.tick()
                continue
            number += 1
            begun = parser.begun
            try:
                self._read_one(line, parser, cutter, file)
            except HeaderError:
                raise
            except DataError as error:
                self.complaints.add("sample", f"line {number} is left out: {error}")
            if parser.unused and not begun:
                self._say(f"columns that are not used: {', '.join(parser.unused)[:200]}")

    def _read_one(self, line: bytes, parser: Lines, cutter: Cutter, file: str | None) -> None:
        try:
            found = parser.parse(line)
        except DataError:
            cutter.skip()
            raise
        if isinstance(found, LateLabel):
            self.late(found)
        elif found is not None and (window := cutter.add(found)) is not None:
            self.take(window, file)

    def take(self, window: Window, file: str | None = None) -> None:
        """Answer a window, now or with the next ones."""
        if not np.isfinite(window.x).all():
            self.complaints.add("window", f"window {window.number} is left out: it holds NaN or infinity")
            return
        self._pending.append((window, self._label(window), file))
        if len(self._pending) >= self._batch:
            self.flush()
        if time.monotonic() - self._followed >= _FOLLOW_SECONDS:
            self.tick()

    def late(self, late: LateLabel) -> None:
        """A label for windows that came before."""
        try:
            label = self._labels.code(late.label)
        except DataError as error:
            self.complaints.add("label", str(error))
            return
        self.flush()
        several = list(self._remembered)
        begin, end, now = (np.array([getattr(a, n) for a in several]) for n in ("begin", "end", "label"))
        reached = self._labels.reached(label, late.start, late.stop, begin, end, now)
        for index in np.flatnonzero(reached & np.isnan(now)).tolist():
            self._judge(several[index], label)
        self._to_keep(lambda keep: keep.attach(late))

    def new_input(self) -> None:
        """What comes now goes with nothing before it."""
        self.flush()
        timed = [answered for answered in self._remembered if answered.clocked]
        self._remembered = deque(timed, maxlen=_REMEMBERED)
        self._to_keep(lambda keep: keep.new_input())

    def tick(self) -> None:
        """Answer what waits, take the place's current model, and tend what is kept."""
        self.flush()
        self._followed = time.monotonic()
        if said := self._live.follow():
            self._say(said)
        self._to_keep(lambda keep: keep.tend())

    def flush(self) -> None:
        """Answer what waits for the rest of its batch."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        try:
            model, scores = self._live.predict(np.stack([window.x for window, _, _ in pending]))
        except ReleaseError as error:
            if len(pending) > 1:
                for one in pending:  # one window is enough for an answer of NaN
                    self._pending = [one]
                    self.flush()
                return
            self._refusal = error
            self.complaints.add("window", f"window {pending[0][0].number} is left out: {error}")
            return
        if model is not self._model:
            self._word(model)
        for (window, label, file), row in zip(pending, scores, strict=True):
            self._answer(window, label, file, model, row)

    def close(self) -> None:
        """Answer what waits, bring to the disk what is kept, and tell the place what was seen."""
        try:
            self.flush()
        finally:
            self._to_keep(lambda keep: keep.close())
            if said := self._live.close():
                self._say(said)

    def check_used(self) -> None:
        """Refuse an input of which nothing could be used.

        Raises:
            ReleaseError: the model failed on all of it.
            DataError: it has no window.
        """
        if self.answered:
            return
        if self._refusal is not None:
            raise self._refusal
        shape = self._live.current.manifest.input.shape
        left = self.complaints.count["sample"] + self.complaints.count["window"]
        hint = f"; {left} samples or windows were left out" if left else ""
        wanted = f"{shape[0]} samples in a row" if len(shape) == 2 else f"image {list(shape)}"
        raise DataError(f"there is nothing to answer: the input has no {wanted}{hint}")

    def summary(self) -> str:
        """What was done, in one line."""
        model = self._live.current.manifest
        said = [f"{_number(self.answered, 'window')} answered by release {model.version}"]
        for kind, n in sorted(self.complaints.count.items()):
            said.append(f"{_number(n, kind)} {'failed' if kind == _WRITE else 'left out'}")
        judged = [(answered.scores, answered.label) for answered in self._judged]
        if (score := score_of(model, judged)) is not None:
            said.append(f"{model.metric} {score:.4f} on {len(judged)} with a label")
        if self._keep is not None:
            said.append(f"{len(self._keep)} kept, {self._keep.labelled} of them with a label")
        return "; ".join(said)

    def _word(self, model: Model) -> None:
        """Another model answers from here on; the device's own threshold is set anew for it."""
        manifest, threshold = model.manifest, model.manifest.threshold
        if self._keep is not None and manifest.target == "anomaly" and len(normal := self._keep.normal()):
            threshold = own_threshold(manifest, model.runtime.predict(normal)[:, 0])
            if threshold != manifest.threshold:
                self._say(f"threshold {threshold:.6g}, from {len(normal)} windows kept here as normal")
        self._model, self._wording = model, Wording(manifest, threshold, self._top)

    def _label(self, window: Window) -> Label | None:
        """The window's label; one that makes no sense is left out, and said."""
        try:
            label = self._labels.of_window(window.labels)
        except DataError as error:
            self.complaints.add("label", str(error))
            return None
        unsaid = all(raw is None for raw in window.labels)
        return self._default if unsaid else label

    def _answer(
        self, window: Window, label: Label | None, file: str | None, model: Model, scores: NDArray[np.float32]
    ) -> None:
        answer: dict[str, Any] = {} if file is None else {"file": file}
        answer["window"] = window.number
        if window.stamps is not None:
            answer["from"], answer["to"] = window.stamps
        answer |= self._wording.of(scores)
        if label is not None:
            answer["label"] = self._labels.name(label)
        self._put({**answer, "release": model.manifest.version})
        self.answered += 1
        answered = _Answered(window.begin, window.end, window.clocked, model, scores)
        self._remembered.append(answered)
        if label is not None:
            self._judge(answered, label)
        self._to_keep(lambda keep: keep.add(window, label))

    def _judge(self, answered: _Answered, label: Label) -> None:
        answered.label = label
        self._judged.append(answered)
        self._live.judge(answered.model, answered.scores, label)

    def _to_keep(self, work: "Callable[[Keep], object]") -> None:
        """Keeping what was seen must never keep the device from answering."""
        if self._keep is not None:
            try:
                work(self._keep)
            except SetupError as error:
                self.complaints.add(_WRITE, str(error))


def _number(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
