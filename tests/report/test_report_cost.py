"""Score against virtual time, bytes and energy: the page of a run, and that of a sweep."""

import copy
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fedge.report import load_report, summary_lines, sweep_lines, write_sweep_html
from fedge.report.charts import Across, Series
from fedge.report.cost import COSTS, log_start
from fedge.report.page import page
from fedge.report.reach import time_to_accuracy
from fedge.report.sweep import MOST_LINES, point_name, sweep_page

from .conftest import example_report
from .parsed import Parsed


def on_a_fleet(report: dict[str, Any], seconds: float = 3600.0) -> dict[str, Any]:
    """The example, as it would be with a fleet."""
    report = copy.deepcopy(report)
    for row in report["rounds_log"]:
        row |= {
            "virtual_seconds": seconds,
            "joules": 2.5,
            "bytes_per_client": row["uplink"] + row["downlink"],
        }
    count = len(report["rounds_log"])
    report["virtual"] = {
        "fleet": "phones",
        "seconds": count * seconds,
        "work_seconds": 80.0,
        "joules_mean": 2.5 * count,
        "joules_worst": 200.0,
    }
    report["time_to_accuracy"] = time_to_accuracy(report["metric"], report["rounds_log"])
    return report


@pytest.fixture
def virtual() -> dict[str, Any]:
    return on_a_fleet(example_report())


def test_a_fleet_adds_a_section_with_three_charts(virtual: dict[str, Any]) -> None:
    parsed = Parsed(page(virtual))
    ids = parsed.all("id")
    assert "cost" in ids
    assert {"score-seconds-chart", "score-bytes-chart", "score-joules-chart"} <= set(ids)
    assert len(ids) == len(set(ids))


def test_a_report_from_before_there_were_fleets_has_no_such_section(report: dict[str, Any]) -> None:
    assert 'id="cost"' not in page(report)


def test_without_a_fleet_there_is_the_score_against_bytes_alone(virtual: dict[str, Any]) -> None:
    del virtual["virtual"]
    for row in virtual["rounds_log"]:
        del row["virtual_seconds"], row["joules"]
    virtual["time_to_accuracy"] = time_to_accuracy(virtual["metric"], virtual["rounds_log"])
    ids = Parsed(page(virtual)).all("id")
    assert "score-bytes-chart" in ids
    assert not {"score-seconds-chart", "score-joules-chart"} & set(ids)


def test_without_a_fleet_no_column_of_time_or_energy_stands_empty(virtual: dict[str, Any]) -> None:
    for one in virtual["time_to_accuracy"]:
        one |= {"seconds": None, "joules": None}
    source = page(virtual)
    head = source[source.index("to reach") :]
    head = head[: head.index("</tr>")]
    assert "bytes per client" in head
    assert "virtual time" not in head
    assert "energy" not in head


def test_costs_in_the_table_are_the_running_sums(virtual: dict[str, Any]) -> None:
    shown = Parsed(page(virtual)).table("Score against virtual time")
    assert [row[0] for row in shown] == [str(one["round"]) for one in virtual["rounds_log"]]
    assert shown[0][1] == "1 h 00 min"
    assert shown[-1][1] == "30 h 00 min"
    last = virtual["rounds_log"][-1]
    assert shown[-1][2:] == [f"{last['score_clients']:.3f}", f"{last['score_unseen']:.3f}"]


def test_time_to_accuracy_is_on_the_page_and_in_the_terminal(virtual: dict[str, Any]) -> None:
    shown = Parsed(page(virtual)).table("What it took")
    assert [row[0] for row in shown] == [
        "clients, final less 1 points",
        "clients, final less 2 points",
        "unseen, final less 1 points",
        "unseen, final less 2 points",
    ]
    assert [row[2] for row in shown] == [str(one["round"]) for one in virtual["time_to_accuracy"]]
    (line,) = [text for text in summary_lines(virtual) if text.startswith("virtual time")]
    assert "30 h 00 min on phones, 75.0 J per client, 200 J at most" in line
    hours = virtual["time_to_accuracy"][0]["round"]
    assert f"within a point of the final score after {hours} h 00 min" in line


@pytest.mark.parametrize(("most", "unit"), [(1.0, "s"), (200, "min"), (20_000, "hours"), (1e6, "days")])
def test_time_is_in_a_unit_that_suits_it(most: float, unit: str) -> None:
    assert COSTS[0].unit(most)[0] == unit


def test_columns_under_the_pointer_cover_the_chart_once(virtual: dict[str, Any]) -> None:
    """Rounds of different lengths: each column begins where the one before it ends."""
    for k, row in enumerate(virtual["rounds_log"]):
        row["virtual_seconds"] = 10.0 * (1 + k % 3)
    source = page(virtual)
    chart = source[source.index('id="score-seconds-chart"') :]
    chart = chart[: chart.index("</svg>")]
    areas = re.findall(r'<rect x="(-?[\d.]+)%" y="0" width="([\d.]+)%"', chart)
    places = [(float(x), float(wide)) for x, wide in areas]
    assert len(places) == len(virtual["rounds_log"]) + 1  # and the student as first made
    for (x, wide), (after, _) in pairwise(places):
        assert x + wide == pytest.approx(after, abs=0.01)


# ----- sweeps


def _sweep(values: int = 2) -> dict[str, Any]:
    points = []
    for k in range(values):
        one = on_a_fleet(example_report(seed=k), 60.0 * (k + 1))
        kept = {key: one[key] for key in ("score", "bytes", "virtual", "rounds_log")}
        same = {"score": 0.8, "round": 5, "seconds": 300.0 * (k + 1), "bytes": 5000.0, "joules": 12.5}
        points.append({"folder": f"a={k}", "settings": {"rounds.buffer": str(k)}, **kept, "same_score": same})
    axes = {"rounds.buffer": [str(k) for k in range(values)]}
    return {"schema": 1, "scenario": "watch", "metric": "macro_f1", "sweep": axes, "points": points}


def test_a_sweep_has_a_plot_for_each_cost_and_a_line_for_each_point() -> None:
    source = sweep_page(_sweep(3))
    parsed = Parsed(source)
    assert {"sweep-seconds-chart", "sweep-bytes-chart", "sweep-joules-chart"} <= set(parsed.all("id"))
    for k in range(3):
        assert source.count(f"</tspan> buffer {k}<") == 3
    assert not re.search(r"://|url\(|<script", source)


def test_the_table_of_a_sweep_says_what_the_same_score_took() -> None:
    lines = sweep_lines(_sweep())
    assert "time to 0.800  bytes to 0.800  energy to 0.800" in lines[0]
    assert [line.split("  ")[0] for line in lines[1:3]] == ["buffer 0", "buffer 1"]
    assert "5 min 00 s" in lines[1]
    assert "10 min 00 s" in lines[2]
    assert lines[3].startswith("0.800 is a score of the clients that every run reaches")


def _line(*points: tuple[float, float]) -> Series:
    return Series("a", "one", points, "")


def test_a_run_that_ends_far_before_the_others_is_not_lost_in_the_corner() -> None:
    """Then the axis is logarithmic, from the first cost of all: equal ratios are equally long."""
    quick, slow = _line((0.0, 0.1), (3.0, 0.5), (80.0, 0.9)), _line((0.0, 0.1), (23.0, 0.5), (2000.0, 0.9))
    assert log_start([quick, slow]) == 3.0
    across = Across("s", 1e-6, 3.0)
    assert across.at(3.0, 3000.0) == 0.0
    assert across.at(3000.0, 3000.0) == pytest.approx(1.0)
    assert across.at(300.0, 3000.0) - across.at(30.0, 3000.0) == pytest.approx(across.at(30.0, 3000.0))
    assert across.ticks(2000.0) == [10.0, 100.0, 1000.0]
    assert across.ticks(40.0) == [3.0, 10.0, 30.0]


def test_runs_that_end_near_each_other_have_a_linear_axis() -> None:
    assert not log_start([_line((0.0, 0.1), (30.0, 0.5)), _line((0.0, 0.1), (100.0, 0.5))])
    assert not log_start([])
    assert Across("s", 1e-6).at(25.0, 100.0) == 0.25


def test_the_page_of_a_sweep_says_that_an_axis_is_logarithmic() -> None:
    sweep = _sweep(2)
    assert "logarithmic" not in sweep_page(sweep)
    for row in sweep["points"][0]["rounds_log"]:
        row["virtual_seconds"] /= 100.0
    source = sweep_page(sweep)
    assert source.count("on a logarithmic scale") == 1
    Parsed(source)


def test_settings_whose_keys_end_alike_are_told_apart() -> None:
    both = {"uplink.share": "0.01", "downlink.share": "0.03"}
    assert point_name({"settings": both}) == "uplink.share 0.01, downlink.share 0.03"
    assert point_name({"settings": {"uplink.share": "0.01", "seed": "1"}}) == "share 0.01, seed 1"


def test_a_sweep_of_many_points_draws_the_best_and_lists_them_all() -> None:
    sweep = _sweep(MOST_LINES + 4)
    source = sweep_page(sweep)
    assert len(Parsed(source).table("One run a line")) == MOST_LINES + 4
    drawn = source[source.index('id="sweep-bytes-chart"') :]
    assert len(re.findall(r"</tspan> buffer \d+<", drawn[: drawn.index("</svg>")])) == MOST_LINES


def test_names_and_values_in_a_sweep_are_text_and_not_markup(tmp_path: Path) -> None:
    sweep = _sweep()
    sweep["scenario"] = sweep["points"][0]["settings"]["<script>"] = "<script>alert(1)</script>"
    write_sweep_html(sweep, tmp_path / "sweep.html")
    assert "<script" not in (tmp_path / "sweep.html").read_text()


def test_a_sweep_without_a_finished_point_is_an_empty_page() -> None:
    empty = _sweep(0) | {"metric": None}
    assert "0 runs" in sweep_page(empty)
    assert sweep_lines(empty)


def test_a_damaged_part_of_a_report_is_refused(tmp_path: Path, virtual: dict[str, Any]) -> None:
    from fedge.errors import DataError

    for key, value in (("virtual", []), ("time_to_accuracy", {}), ("time_to_accuracy", [1])):
        (tmp_path / "report.json").write_text(json.dumps(virtual | {key: value}))
        with pytest.raises(DataError, match=key):
            load_report(tmp_path)
