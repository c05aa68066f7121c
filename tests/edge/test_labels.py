import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.edge.labels import Labels
from fedge.errors import DataError

ACTIVITY = Labels("class", ("rest", "walk", "run"))
MACHINE = Labels("anomaly", ("healthy", "faulty"))
LIFE = Labels("number", ())
_time = st.integers(0, 20).map(float)


def test_label_is_the_place_of_its_class() -> None:
    assert [ACTIVITY.code(name) for name in ("rest", "walk", "run")] == [0, 1, 2]
    assert [ACTIVITY.name(i) for i in range(3)] == ["rest", "walk", "run"]
    assert Labels("class", ("0", "1")).code(1) == Labels("class", ("0", "1")).code(1.0) == 1


@pytest.mark.parametrize(("raw", "code"), [("normal", 0), ("healthy", 0), (0, 0), ("1", 1), ("faulty", 1)])
def test_anomaly_has_its_own_words_and_the_releases(raw: str | float, code: float) -> None:
    assert MACHINE.code(raw) == code


def test_number_is_itself() -> None:
    assert LIFE.code("12.5") == LIFE.code(12.5) == LIFE.name(12.5) == 12.5


def test_slip_is_refused_with_what_may_be_meant() -> None:
    with pytest.raises(DataError, match="is 'walk' meant"):
        ACTIVITY.code("wakl")


@pytest.mark.parametrize("raw", ["nan", math.inf, "1e39", "walk", 10**400])
def test_label_that_is_no_number_is_refused_for_a_number(raw: str | float) -> None:
    with pytest.raises(DataError, match="give one, finite"):
        LIFE.code(raw)


@pytest.mark.parametrize(
    ("labels", "kind", "wanted"),
    [
        (("walk", "walk"), ACTIVITY, 1),
        (("walk", "run"), ACTIVITY, None),
        (("walk", None), ACTIVITY, None),
        ((None, None), ACTIVITY, None),
        (("normal", "anomalous", None), MACHINE, 1),
        (("normal", "healthy"), MACHINE, 0),
        (("normal", None), MACHINE, None),
        ((1.0, 2.0), LIFE, 2),
        ((1.0, None), LIFE, None),
    ],
)
def test_label_of_a_window_from_those_of_its_samples(
    labels: tuple[str | float | None, ...], kind: Labels, wanted: float | None
) -> None:
    assert kind.of_window(labels) == wanted


@given(
    st.sampled_from([ACTIVITY, MACHINE, LIFE]),
    st.sampled_from([0.0, 1.0]),
    st.lists(st.tuples(_time, st.integers(1, 5), st.sampled_from([math.nan, 0.0, 1.0])), max_size=8),
    _time,
    _time,
)
def test_later_label_reaches_what_a_naive_loop_over_samples_says(
    kind: Labels, label: float, windows: list[tuple[float, int, float]], start: float, stop: float
) -> None:
    """The rules of ``of_window``, sample by sample, where the label is known of those from start to stop."""
    start, stop = sorted((start, stop))
    begin, length, now = (np.array(column, float) for column in zip(*windows, strict=True)) if windows else (
        np.empty(0),
    ) * 3  # fmt: skip
    found = kind.reached(label, start, stop, begin, begin + length, now)
    for i, reached in enumerate(found):
        said = [start <= begin[i] + t <= stop for t in range(int(length[i]) + 1)]
        expected = all(said)
        if kind is LIFE:
            expected = said[-1]
        elif kind is MACHINE and label == 1:
            expected = any(said)
        elif kind is MACHINE:
            expected = all(said) and now[i] != 1
        assert reached == expected


def test_window_that_was_called_anomalous_stays_so_when_the_rest_is_called_normal() -> None:
    begin, now = np.array([0.0, 2.0, 4.0]), np.array([math.nan, 1.0, 0.0])
    assert MACHINE.reached(0, 0, 9, begin, begin + 1, now).tolist() == [True, False, True]
    assert MACHINE.reached(1, 0, 9, begin, begin + 1, now).all()
    assert ACTIVITY.reached(0, 0, 9, begin, begin + 1, now).all()
