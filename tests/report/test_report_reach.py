"""When a run came close to its final score, and what it had cost by then; beside a naive search."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.report.reach import allowed, first_round, same_score, smoothed, so_far, time_to_accuracy

SCORES = st.lists(st.one_of(st.none(), st.floats(0, 1, allow_subnormal=False)), min_size=1, max_size=30)


def _rows(scores: list[float | None], seconds: float = 2.0) -> list[dict[str, Any]]:
    return [
        {
            "round": k + 1,
            "score_clients": score,
            "score_unseen": None,
            "virtual_seconds": seconds,
            "bytes_per_client": 100.0,
            "joules": 0.5,
        }
        for k, score in enumerate(scores)
    ]


@given(SCORES, st.floats(0, 1, allow_subnormal=False))
def test_the_first_round_is_that_of_a_naive_search(scores: list[float | None], target: float) -> None:
    expected = None
    for k in range(len(scores)):
        known = [s for s in scores[max(0, k - 2) : k + 1] if s is not None]
        if known and sum(known) / len(known) >= target:
            expected = k
            break
    assert first_round(scores, target) == expected


@given(SCORES)
def test_a_run_always_reaches_what_is_below_its_final_score_and_never_later_for_less(
    scores: list[float | None],
) -> None:
    found = time_to_accuracy("accuracy", _rows(scores))
    if smoothed(scores)[-1] is None:
        assert not found
    else:
        near, far = found
        assert (near["below"], far["below"]) == (0.01, 0.02)
        assert far["round"] <= near["round"] <= len(scores)
        assert near["seconds"] == 2.0 * near["round"]
        assert near["bytes"] == 100.0 * near["round"]
        assert near["joules"] == 0.5 * near["round"]


def test_one_lucky_round_is_no_arrival() -> None:
    lucky: list[float | None] = [0.5, 0.5, 0.5, 0.95, 0.5, 0.5, 0.9, 0.9, 0.9]
    assert first_round(lucky, 0.89) == 8


def test_an_error_is_a_share_of_the_final_one() -> None:
    assert allowed("negative_rmse", -20.0, 0.01) == pytest.approx(-20.2)
    assert allowed("accuracy", 0.9, 0.01) == pytest.approx(0.89)
    rows = _rows([-40.0, -30.0, -20.0, -20.0, -20.1, -20.0])
    assert [one["round"] for one in time_to_accuracy("negative_rmse", rows)] == [5, 5]


def test_what_a_run_does_not_know_is_none_and_not_zero() -> None:
    rows = [{"round": 1, "score_clients": 0.5, "bytes_per_client": 7.0}]
    (one, _) = time_to_accuracy("accuracy", rows)
    assert (one["seconds"], one["bytes"], one["joules"]) == (None, 7.0, None)
    assert so_far(rows, "joules") is None
    assert time_to_accuracy("accuracy", []) == []


def test_runs_are_compared_at_a_score_that_all_of_them_reach() -> None:
    slow, fast = _rows([0.5, 0.6, 0.7, 0.8, 0.8, 0.8], 10.0), _rows([0.9, 0.9, 0.9], 1.0)
    reached = same_score("accuracy", [slow, fast])
    assert [one["round"] for one in reached] == [6, 1]
    assert [one["seconds"] for one in reached] == [60.0, 1.0]
    assert [one["score"] for one in reached] == pytest.approx([0.79, 0.79])
    assert same_score("accuracy", [slow, _rows([None, None])]) == []
    assert same_score("accuracy", []) == []
