"""``html`` and ``svg``: escaping that cannot be forgotten, and axes that hold their values."""

import math
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from fedge.report import svg
from fedge.report.html import Html, el, join, table

_NUMBERS = st.floats(-1e15, 1e15, allow_nan=False)


def test_text_is_escaped_as_child_and_as_attribute() -> None:
    assert el("p", "<i>&", title="\"'><") == '<p title="&quot;&#x27;&gt;&lt;">&lt;i&gt;&amp;</p>'


def test_markup_is_escaped_once_however_deep_it_stands() -> None:
    assert el("a", el("b", "<"), join(["<", el("i", "&")])) == "<a><b>&lt;</b>&lt;<i>&amp;</i></a>"


def test_an_attribute_is_escaped_even_if_it_claims_to_be_markup() -> None:
    assert el("p", title=Html('"><script>')) == '<p title="&quot;&gt;&lt;script&gt;"></p>'


def test_what_is_none_is_left_out() -> None:
    assert el("p", None, "x", class_=None) == "<p>x</p>"


def test_a_table_names_its_columns_and_rows() -> None:
    made = table("c", ["a", "b"], [["r", 1]])
    assert '<th scope="col">a</th><th scope="col">b</th>' in made
    assert '<th scope="row">r</th><td>1</td>' in made


@given(st.lists(_NUMBERS, max_size=8), st.integers(2, 6))
def test_a_linear_axis_holds_all_values_and_ascends(values: list[float], wanted: int) -> None:
    axis = svg.linear(values, wanted)
    assert axis.low < axis.high
    assert all(-1e-3 <= axis.at(value) <= 1 + 1e-3 for value in values)
    assert 2 <= len(axis.ticks) <= 2 * wanted + 3
    assert list(axis.ticks) == sorted(set(axis.ticks))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.integers(3, 6), st.floats(0.01, 0.5))
def test_an_axis_of_shares_stays_between_0_and_1(values: list[float], wanted: int, at_least: float) -> None:
    axis = svg.linear(values, wanted, at_least, (0.0, 1.0))
    assert axis.low >= 0
    assert axis.high <= 1 + 1e-9
    assert axis.high - axis.low >= at_least - 1e-9
    assert all(-1e-6 <= axis.at(value) <= 1 + 1e-6 for value in values)


def test_values_beyond_the_bounds_are_drawn_all_the_same() -> None:
    axis = svg.linear([-0.5, 1.5], 5, 0.02, (0.0, 1.0))
    assert axis.low <= -0.5
    assert axis.high >= 1.5


def test_ticks_are_round_numbers() -> None:
    assert svg.linear([0.652, 0.891], 5).ticks == (0.6, 0.7, 0.8, 0.9)
    assert svg.linear([0, 30], 4).ticks == (0, 10, 20, 30)


@given(st.lists(st.floats(1e-3, 1e15), min_size=1, max_size=8))
def test_a_logarithmic_axis_holds_all_values_in_whole_decades(values: list[float]) -> None:
    axis = svg.logarithmic(values)
    assert all(-1e-9 <= axis.at(value) <= 1 + 1e-9 for value in values)
    decades = [math.log10(tick) for tick in axis.ticks]
    assert all(math.isclose(b - a, 1) for a, b in pairwise(decades))


def test_equal_ratios_are_equal_distances_on_a_logarithmic_axis() -> None:
    axis = svg.logarithmic([100, 100_000])
    assert math.isclose(axis.at(5000) - axis.at(500), axis.at(50_000) - axis.at(5000))


@given(st.lists(st.floats(0, 200), max_size=8))
def test_labels_are_apart_and_keep_their_order(places: list[float]) -> None:
    moved = svg.spread_apart(places, 15, 0, 200)
    order = sorted(range(len(places)), key=lambda k: places[k])
    inside = [moved[k] for k in order]
    assert all(b - a >= 15 - 1e-9 for a, b in pairwise(inside))
    assert all(place <= 200 for place in moved)


def test_labels_with_room_stay_where_they_are() -> None:
    assert svg.spread_apart([120, 20, 60], 15, 0, 200) == [120, 20, 60]


def test_every_sign_has_a_shape_of_its_own() -> None:
    shapes = {svg.mark(0, 0, kind, "").split(' d="')[1].split('"')[0] for kind in ("yes", "no", "release")}
    assert len(shapes) == 3
