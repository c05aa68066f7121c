"""Every metric is shown in its own unit, and "better" means better, on the page and on the terminal."""

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.metrics import METRICS, RANGES
from fedge.report import summary_lines
from fedge.report.measure import measure, named
from fedge.report.page import page

from .conftest import example_of_errors
from .parsed import Parsed


@pytest.fixture
def errors() -> dict[str, Any]:
    """The example with RMSE as its metric."""
    return example_of_errors()


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_of_fedge_is_known_with_its_range(metric: str) -> None:
    kind = named(metric, [])
    low, high = RANGES[metric]
    assert kind.bounds == ((0.0 - high, -low) if kind.lower else (low, high))
    assert "_" not in kind.name
    assert kind.lower == metric.startswith("negative_")


@pytest.mark.parametrize(
    ("metric", "score", "shown", "difference", "changed"),
    [
        ("accuracy", 0.7691, "0.769", 0.0839, "+8.4 points"),
        ("macro_f1", 0.7, "0.700", -0.01, "\u22121.0 points"),
        ("auroc", 0.98512, "0.985", -0.0033, "\u22120.003"),
        ("auprc", 1.0, "1.000", 0.0, "\u00b10.000"),
        ("negative_rmse", -13.4855, "13.5", 2.2145, "+2.2"),
        ("negative_rmse", -0.0134, "0.0134", -0.0022, "\u22120.0022"),
        ("negative_rmse", -12_345.6, "12,346", 200.2, "+200"),
        ("my_metric", -0.5, "\u22120.500", 0.25, "+0.250"),
    ],
)
def test_scores_and_differences_are_in_the_unit_of_their_metric(
    metric: str, score: float, shown: str, difference: float, changed: str
) -> None:
    report = {"metric": metric, "score": {"clients": score}}
    kind = measure(report)
    assert kind.shown(kind.of(report, "score", "clients")) == shown
    assert kind.change(difference) == changed


@given(st.sampled_from(sorted(METRICS)), st.floats(-50, 0), st.floats(-50, 0))
def test_what_is_higher_in_the_report_is_better_on_the_page(metric: str, one: float, other: float) -> None:
    report = {"metric": metric, "score": {"a": one, "b": other}}
    kind = measure(report)
    before, after = kind.of(report, "score", "a"), kind.of(report, "score", "b")
    assert before is not None
    assert after is not None
    gain = kind.gain(after - before)
    assert gain == 0 or (gain > 0) == (other > one)


def test_zero_error_has_no_minus_sign() -> None:
    report = {"metric": "negative_rmse", "score": {"clients": 0.0, "unseen": -2.0}}
    assert measure(report).shown(measure(report).of(report, "score", "clients")) == "0.00"


@given(st.floats(1e-12, 1e15))
def test_an_error_has_three_digits_and_a_bounded_length(error: float) -> None:
    kind = named("negative_rmse", [-error])
    assert 0 <= kind.decimals <= 6
    assert math.isclose(float(kind.shown(error).replace(",", "")), error, rel_tol=0.006, abs_tol=1e-6)


def test_a_page_of_errors_speaks_neither_of_points_nor_of_negative_scores(errors: dict[str, Any]) -> None:
    text = Parsed(page(errors)).text
    assert "points" not in text
    assert "negative" not in text
    assert text.count("lower is better") == 1
    assert not re.search(r"\u2212\d\d\.\d", text)


def test_exact_headline_errors_are_those_of_the_report_without_the_sign(errors: dict[str, Any]) -> None:
    values = Parsed(page(errors)).values
    assert {-v for v in errors["score"].values()} | {-errors["personal"]} <= set(values)


def test_an_error_that_grows_is_worse(errors: dict[str, Any]) -> None:
    """In the example of errors every score of the ordinary one is an error, so what rose there is worse."""
    source = page(errors)
    assert source.count('class="bar worse"') == 15
    assert source.count('class="bar better"') == 1
    assert "worsened from" in source
    assert "1 of 16 clients ended better" in source


def test_the_summary_names_the_direction_of_an_error_once(errors: dict[str, Any]) -> None:
    lines = "\n".join(summary_lines(errors))
    assert lines.count("lower is better") == 1
    assert "points" not in lines
    del errors["score"]["clients"]
    assert "\n".join(summary_lines(errors)).count("lower is better") == 1


def test_the_server_s_reason_does_not_show_the_sign_of_an_error(errors: dict[str, Any]) -> None:
    errors["redistillations"][0]["reason"] = "score -42.750 to -41.000, loss -0.04 on 9 windows"
    source = page(errors)
    assert "-42.750" not in source
    assert "loss -0.04 on 9 windows" in source


def test_a_score_that_is_not_defined_is_no_bad_score(report: dict[str, Any]) -> None:
    for one in report["clients_log"][:5]:
        one["score_initial"] = one["score_final"] = one["score_int8"] = None
    parsed = Parsed(page(report))
    assert "of 11 clients ended better" in parsed.text
    assert "do not define it: 5 clients" in parsed.text
    assert [row[4:7] for row in parsed.table("Per client")][:5] == [["", "", ""]] * 5
    assert "None" not in parsed.text


def test_no_score_at_all_of_a_group_is_not_measured(report: dict[str, Any]) -> None:
    for key in ("unseen", "unseen_initial", "unseen_int8"):
        report["score"][key] = None
    assert "not measured" in Parsed(page(report)).text


@pytest.mark.parametrize(
    ("metric", "values", "shown"),
    [
        ("accuracy", [0.7, 0.9], ["0.70", "0.75", "0.80", "0.85", "0.90"]),
        ("auroc", [0.9929, 0.9988], ["0.980", "0.985", "0.990", "0.995", "1.000"]),
        ("negative_rmse", [14.1, 21.6], ["14", "16", "18", "20", "22"]),
        ("negative_rmse", [13.5, 15.2], ["13.5", "14.0", "14.5", "15.0", "15.5"]),
    ],
)
def test_values_on_an_axis_have_the_same_number_of_decimals(
    metric: str, values: list[float], shown: list[str]
) -> None:
    kind = named(metric, values)
    axis = kind.axis(values)
    assert [kind.ticks(axis)(tick) for tick in axis.ticks] == shown


def _ends(source: str) -> list[float]:
    """Where the participants of the example ended, in the order drawn."""
    found = re.findall(r"<title>\d+: [\d.]+ before, ([\d.]+) after", source)
    return [float(end) for end in found[:12]]


def test_clients_are_drawn_the_best_first(report: dict[str, Any], errors: dict[str, Any]) -> None:
    shares, wrong = _ends(page(report)), _ends(page(errors))
    assert len(shares) == len(wrong) == 12
    assert shares == sorted(shares, reverse=True)
    assert wrong == sorted(wrong)
