"""How the model in use is doing since it went live, and when it has to go: rules without IO or clock.

What is counted is kept short, so that a model that did well for a year and then starts to fail is found
out within a few dozen answers: once there are many, all of them count half.
"""

import math
from dataclasses import dataclass, field, replace

from fedge.config import Release
from fedge.edge.codes import TEXTS

_MANY_ANSWERS, _MANY_WINDOWS = 1024, 4096
_MOST = 1 << 40  # a count is not kept above this
_AT_ONCE = 5  # failures without one answer between them


@dataclass(frozen=True)
class WatchRules:
    """A device's own settings.

    Attributes:
        trial_answers: so many answers end the trial of a new model.
        starts: so many starts of a process in a row, without one answer, end it the other way.
        least_answers: fewer answers and errors together say nothing about the share of errors.
        error_share: more than this share of errors is too many, 0..1.
        latency_factor: so many times what the gate measured is too slow; None for not watched.
        latency_slack_us: microseconds above that which never matter: other work on the device.
        slow_looks: so many looks in a row have to be too slow.
        least_windows: fewer labelled windows say nothing about the score.
        margin: how much worse the score may be than the earlier model's at the gate, as in the gate.
    """

    trial_answers: int = 50
    starts: int = 3
    least_answers: int = 20
    error_share: float = 0.05
    latency_factor: float | None = 3.0
    latency_slack_us: float = 1000.0
    slow_looks: int = 3
    least_windows: int = 30
    margin: float = Release.margin


@dataclass(frozen=True)
class Seen:
    """What was seen of one model since the last look.

    Attributes:
        version: of the model.
        answers: windows that it answered.
        errors: windows that it failed on, or answered with NaN or infinity.
        latency_us: median microseconds of a call with one window; None if there was none.
        score: its score on windows whose labels have come, by the release's metric; None if there are none.
        windows: how many those were.
    """

    version: int
    answers: int = 0
    errors: int = 0
    latency_us: float | None = None
    score: float | None = None
    windows: int = 0


@dataclass(frozen=True)
class Finding:
    """Why a device does not, or no longer, run a release: for machines.

    Attributes:
        version: of the release.
        code: see ``fedge.edge.codes``, and ``fedge.edge.gate.Decision``.
        value: what was measured, where something was: a share, microseconds, a score, a count.
        limit: what was allowed.
    """

    version: int
    code: str
    value: float | None = None
    limit: float | None = None

    @property
    def reason(self) -> str:
        """The same in one line, for people."""
        text = TEXTS.get(self.code, f"was refused by the gate ({self.code})")
        text += "" if self.value is None else f": {self.value:.4g}"
        text += "" if self.limit is None else f"; the limit is {self.limit:.4g}"
        return f"release {self.version} {text}"


@dataclass(frozen=True)
class Promise:
    """What the gate measured, that the model is held to.

    Attributes:
        latency_us: of the model, median microseconds for one window; None if it was not measured.
        score: of the model that it replaced (its own if there was none); None if there was no score.
        unit: of the margin: 1 for a metric within 0..1, else the size of the score.
    """

    latency_us: float | None = None
    score: float | None = None
    unit: float = 1.0


@dataclass(frozen=True)
class Watch:
    """What was counted of the model in use.

    Attributes:
        promise: see :class:`Promise`.
        starts: of processes in a row, without an answer.
        total: answers since it went live.
        answers: recent answers.
        errors: recent errors.
        slow: looks in a row that were too slow.
        latency_us: what the last look found; 0 before.
        windows: recent windows with a label.
        score: the mean score on those; 0 if there are none.
    """

    promise: Promise = field(default_factory=Promise)
    starts: int = 0
    total: int = 0
    answers: int = 0
    errors: int = 0
    slow: int = 0
    latency_us: float = 0.0
    windows: int = 0
    score: float = 0.0


def look(watch: Watch, seen: Seen, rules: WatchRules) -> Watch:
    """The watch after ``seen``. Negative counts and numbers that are not finite are left out."""
    answers, errors = max(seen.answers, 0), max(seen.errors, 0)
    after = replace(
        _timed(watch, seen.latency_us, rules),
        starts=0 if answers else watch.starts,
        total=min(watch.total + answers, _MOST),
        answers=min(watch.answers + answers, _MOST),
        errors=min(watch.errors + errors, _MOST),
    )
    if seen.score is not None and math.isfinite(seen.score) and seen.windows > 0:
        windows = min(watch.windows + seen.windows, _MOST)
        share = min(seen.windows, _MOST) / windows
        after = replace(after, windows=windows, score=watch.score + share * (seen.score - watch.score))
    return after


def aged(watch: Watch) -> Watch:
    """With half of each count that has become large: what is recent decides."""
    answers, errors, windows = watch.answers, watch.errors, watch.windows
    while answers + errors > _MANY_ANSWERS:
        answers, errors = answers // 2, errors // 2
    while windows > _MANY_WINDOWS:
        windows //= 2
    return replace(watch, answers=answers, errors=errors, windows=windows)


def judge(version: int, watch: Watch, rules: WatchRules) -> Finding | None:
    """Why model ``version`` has to go; None if it may stay."""
    tried = watch.answers + watch.errors
    share = watch.errors / tried if tried else 0.0
    many = tried >= rules.least_answers or (not watch.answers and watch.errors >= _AT_ONCE)
    if many and share > rules.error_share:
        return Finding(version, "live_errors", share, rules.error_share)
    if watch.starts > rules.starts:
        return Finding(version, "dies_on_start", float(watch.starts - 1))
    if watch.slow >= rules.slow_looks:
        return Finding(version, "live_slow", watch.latency_us, _slowest(watch, rules))
    return _fallen(version, watch, rules)


def _timed(watch: Watch, latency_us: float | None, rules: WatchRules) -> Watch:
    """The watch after a look that found ``latency_us``."""
    if latency_us is None or not 0 <= latency_us < math.inf:
        return watch
    limit = _slowest(watch, rules)
    slow = min(watch.slow + 1, _MOST) if limit is not None and latency_us > limit else 0
    return replace(watch, slow=slow, latency_us=float(latency_us))


def _slowest(watch: Watch, rules: WatchRules) -> float | None:
    """Above so many microseconds a look is too slow; None where that is not watched."""
    if watch.promise.latency_us is None or rules.latency_factor is None:
        return None
    return rules.latency_factor * watch.promise.latency_us + rules.latency_slack_us


def _fallen(version: int, watch: Watch, rules: WatchRules) -> Finding | None:
    """A score on ``n`` windows is off by chance: ``1 / sqrt(n)`` of its unit, two standard errors of a share
    at the most, is allowed too.
    """
    promise = watch.promise
    if promise.score is None or watch.windows < max(rules.least_windows, 1):
        return None
    limit = promise.score - (rules.margin + 1 / math.sqrt(watch.windows)) * promise.unit
    return Finding(version, "live_worse", watch.score, limit) if watch.score < limit else None
