"""Numbers are shown in one way everywhere, and no character of a name can steer a page or a terminal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.report import words


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        (0, "0 B"), (999.4, "999 B"), (999.6, "1.00 kB"), (3911, "3.91 kB"), (22_450, "22.4 kB"),
        (999_499, "999 kB"), (999_500, "1.00 MB"), (4_816_920, "4.82 MB"), (2.5e9, "2.50 GB"),
        (1e15, "1000 TB"),
    ],
)  # fmt: skip
def test_sizes_have_three_digits_and_step_at_a_thousand(amount: float, shown: str) -> None:
    assert words.size(amount) == shown


@given(st.floats(1, 9.99e11))
def test_a_size_is_within_half_a_per_cent_of_the_bytes(amount: float) -> None:
    digits, unit = words.size(amount).split()
    shown = float(digits) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]
    assert abs(shown - amount) <= max(0.5, 0.006 * amount)


@pytest.mark.parametrize(
    ("difference", "shown"),
    [(2.44, "+2.4"), (-2.44, "\u22122.4"), (0.0, "\u00b10.0"), (-0.01, "\u00b10.0"), (1234.56, "+1,234.6")],
)
def test_differences_have_their_sign_unless_they_round_to_none(difference: float, shown: str) -> None:
    assert words.signed(difference, 1) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.05, "50 ms"),
        (0.42, "0.420 s"),
        (59.4, "59.4 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
    ],
)
def test_durations_change_their_unit_where_people_do(value: float, shown: str) -> None:
    assert words.seconds(value) == shown


def test_latencies_and_ratios_keep_a_sensible_precision() -> None:
    assert words.microseconds(14.13) == "14.1 \u00b5s"
    assert words.microseconds(1204) == "1.20 ms"
    assert words.ratio(308.6) == "309\u00d7"
    assert words.ratio(3.44) == "3.4\u00d7"


def test_what_was_not_measured_says_so() -> None:
    shown = {f(None) for f in (words.size, words.microseconds, words.seconds, words.ratio, words.count)}
    assert shown == {words.NOT_MEASURED}


@given(st.text(alphabet=st.characters(codec=None)))
def test_cleaned_text_can_be_printed_and_encoded(raw: str) -> None:
    shown = words.clean(raw, 50)
    assert len(shown) <= 50
    assert all(c.isprintable() or c == "\u00a0" for c in shown)
    shown.encode("utf-8")


def test_terminal_escapes_direction_marks_and_lone_surrogates_are_replaced() -> None:
    assert words.clean("a\x1b[2J\u202eb\ud800\nc") == "a\ufffd[2J\ufffdb\ufffd\ufffdc"
