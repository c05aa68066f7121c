"""A model that is live has to go when it fails, is slow or is worse: and not before."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.edge.watch import Finding, Promise, Seen, Watch, WatchRules, aged, judge, look

RULES = WatchRules()
counts = st.integers(0, 5000)
looks = st.lists(st.tuples(counts, counts), max_size=30)


def after(*seen: Seen, promise: Promise | None = None, rules: WatchRules = RULES) -> Watch:
    watch = Watch(promise or Promise())
    for one in seen:
        watch = look(watch, one, rules)
    return watch


def code(watch: Watch) -> str | None:
    finding = judge(1, watch, RULES)
    return None if finding is None else finding.code


def test_model_that_answers_stays() -> None:
    assert code(after(Seen(1, answers=10_000, latency_us=50.0), promise=Promise(40.0, 0.9))) is None


@pytest.mark.parametrize(
    ("answers", "errors", "goes"),
    [
        (0, 4, False),
        (0, 5, True),
        (1, 5, False),
        (19, 1, False),
        (18, 2, True),
        (95, 5, False),
        (94, 6, True),
    ],
)
def test_share_of_errors_decides_once_there_are_enough(answers: int, errors: int, goes: bool) -> None:
    assert (code(after(Seen(1, answers, errors))) == "live_errors") == goes


def test_model_that_fails_after_a_million_answers_is_found_out_within_a_few_dozen() -> None:
    watch = aged(after(Seen(1, answers=1_000_000)))
    failed = 0
    while code(watch) is None:
        watch = aged(look(watch, Seen(1, errors=1), RULES))
        failed += 1
    assert failed < 60


@given(looks)
def test_counts_stay_bounded_and_keep_their_share(seen: list[tuple[int, int]]) -> None:
    watch = Watch()
    for answers, errors in seen:
        before = look(watch, Seen(1, answers, errors), RULES)
        watch = aged(before)
        assert watch.answers + watch.errors <= 1024
        tried = before.answers + before.errors
        if tried > 1024:
            share = before.errors / tried
            assert abs(watch.errors / max(watch.answers + watch.errors, 1) - share) < 0.01


def test_one_slow_look_is_forgiven_and_three_in_a_row_are_not() -> None:
    slow, fast = Seen(1, 5, latency_us=1121.0), Seen(1, 5, latency_us=1119.0)
    promise = Promise(latency_us=40.0)  # three times that, and 1000 us of slack: 1120
    assert code(after(slow, slow, fast, slow, slow, promise=promise)) is None
    finding = judge(7, after(slow, fast, slow, slow, slow, promise=promise), RULES)
    assert finding == Finding(7, "live_slow", 1121.0, 1120.0)


def test_looks_without_a_time_neither_help_nor_harm() -> None:
    slow, idle = Seen(1, 5, latency_us=5000.0), Seen(1, 5)
    assert after(slow, idle, slow, idle, slow, promise=Promise(40.0)).slow == 3


def test_time_is_not_watched_where_the_gate_measured_none() -> None:
    slow = Seen(1, 5, latency_us=1e9)
    assert code(after(slow, slow, slow, slow)) is None


def test_score_has_to_be_worse_by_more_than_the_margin_and_chance() -> None:
    promise = Promise(score=0.9)
    enough = Seen(1, score=0.62, windows=16)
    assert code(after(enough, promise=promise)) is None, "16 windows say nothing"
    worse = 0.9 - 0.02 - 1 / math.sqrt(100)
    assert code(after(Seen(1, score=worse + 1e-9, windows=100), promise=promise)) is None
    assert code(after(Seen(1, score=worse - 1e-9, windows=100), promise=promise)) == "live_worse"


def test_margin_of_an_unbounded_metric_is_a_share_of_the_score() -> None:
    for unit in (1e-3, 1.0, 1e6):
        promise = Promise(score=-10.0 * unit, unit=10.0 * unit)
        limit = -10.0 * unit * (1 + 0.02 + 0.1)
        assert code(after(Seen(1, score=limit * 0.999, windows=100), promise=promise)) is None
        assert code(after(Seen(1, score=limit * 1.001, windows=100), promise=promise)) == "live_worse"


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 500)), min_size=1, max_size=20))
def test_score_is_the_mean_over_windows(parts: list[tuple[float, int]]) -> None:
    watch = after(*(Seen(1, score=score, windows=n) for score, n in parts))
    total = sum(n for _, n in parts)
    assert watch.windows == total
    assert math.isclose(watch.score, sum(s * n for s, n in parts) / total, rel_tol=1e-9, abs_tol=1e-12)


@pytest.mark.parametrize(
    "seen",
    [
        Seen(1, answers=-5, errors=-5),
        Seen(1, latency_us=math.nan),
        Seen(1, latency_us=-1.0),
        Seen(1, latency_us=math.inf),
        Seen(1, score=math.nan, windows=10),
        Seen(1, score=0.5, windows=-10),
        Seen(1, score=0.5, windows=0),
        Seen(1, score=None, windows=10),
    ],
)
def test_what_cannot_be_is_left_out(seen: Seen) -> None:
    promise = Promise(40.0, 0.9)
    assert after(seen, promise=promise) == Watch(promise)


def test_starts_without_an_answer_end_it_and_one_answer_starts_anew() -> None:
    assert code(Watch(starts=3)) is None
    assert judge(2, Watch(starts=4), RULES) == Finding(2, "dies_on_start", 3.0)
    assert look(Watch(starts=3), Seen(1, answers=1), RULES).starts == 0
    assert look(Watch(starts=3), Seen(1, errors=1), RULES).starts == 3


@pytest.mark.parametrize("kind", ["live_errors", "live_slow", "live_worse"])
def test_reason_tells_the_numbers(kind: str) -> None:
    reason = Finding(12, kind, 0.25, 0.05).reason
    assert all(part in reason for part in ("release 12", "0.25", "0.05"))
