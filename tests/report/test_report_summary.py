"""The summary for a terminal says the same as the page."""

from typing import Any

from fedge.report import summary_lines


def test_each_fact_is_one_line_with_the_numbers_of_the_report(report: dict[str, Any]) -> None:
    lines = {line.split()[0]: line for line in summary_lines(report)}
    score = report["score"]
    assert f"{score['clients']:.3f}, {score['clients_initial']:.3f} before" in lines["clients"]
    assert f"{score['unseen']:.3f}, {score['unseen_initial']:.3f} before" in lines["unseen"]
    assert "2 tried, 1 accepted" in lines["re-distillation"]
    assert "3 published, the last is 3, taken by 11 of 12" in lines["releases"]
    assert "teacher 4.82 MB, student 79.4 kB, int8 ONNX 27.9 kB" in lines["model"]
    total = sum(report["bytes"].values())
    assert f"{report['plain_fp32']['total'] / total:.0f}\u00d7 less" in lines["bytes"]


def test_what_is_missing_has_no_line() -> None:
    assert summary_lines({"schema": 1}) == []
    lines = summary_lines({"schema": 1, "release": "x", "releases": [], "score": {"clients": 0.5}})
    assert [line.split() for line in lines] == [["clients", "score", "0.500"]]


def test_a_hostile_name_cannot_steer_the_terminal(report: dict[str, Any]) -> None:
    report["scenario"] = "a\x1b[2J\nfake line"
    assert all(line.isprintable() for line in summary_lines(report))
