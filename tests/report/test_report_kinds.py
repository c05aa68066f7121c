"""What only some runs have: further metrics, own heads, an own teacher, a cut student, other judges."""

from typing import Any

import pytest

from fedge.report import summary_lines
from fedge.report.page import page

from .parsed import Parsed


def _line(report: dict[str, Any], name: str) -> str:
    return next((line for line in summary_lines(report) if line.startswith(name)), "")


def test_further_metrics_are_a_table_and_a_line(report: dict[str, Any]) -> None:
    assert Parsed(page(report)).table("Means over clients") == [["accuracy", "0.918", "0.827"]]
    assert "accuracy 0.918 clients, 0.827 unseen" in _line(report, "further scores")


def test_pooled_anomaly_scores_stand_beside_the_means(report: dict[str, Any]) -> None:
    report["metric"], score = "auroc", report["score"]
    report["more_scores"] = {
        "auprc": {"clients": 0.9, "unseen": None},
        "auroc_pooled": {"unseen": 0.9854},
        "auprc_pooled": {"unseen": 0.7669},
    }
    parsed = Parsed(page(report))
    assert parsed.table("Means over clients") == [
        ["AUROC", f"{score['clients_int8']:.3f}", f"{score['unseen_int8']:.3f}", "0.985"],
        ["AUPRC", "0.900", "", "0.767"],
    ]
    assert _line(report, "further scores").endswith(
        "AUROC 0.985 unseen pooled; AUPRC 0.900 clients, 0.767 unseen pooled"
    )


def test_own_heads_have_their_score_where_there_are_some(report: dict[str, Any]) -> None:
    parsed = Parsed(page(report))
    assert report["personal"] in parsed.values
    assert "heads that stay on the clients: macro F1 0.934" in parsed.text
    assert "0.934 with their own heads" in _line(report, "clients")
    report["personal"] = None
    assert "heads" not in Parsed(page(report)).text


def test_a_cut_student_is_shown_before_and_after(report: dict[str, Any]) -> None:
    parsed = Parsed(page(report))
    assert parsed.table("The student") == [
        ["multiply-adds", "801,280", "390,592", "2.1\u00d7"],
        ["parameters", "41,003", "19,846", "2.1\u00d7"],
    ]
    assert "cut from 41,003" in parsed.text
    assert "multiply-adds 801,280 to 390,592, parameters 41,003 to 19,846" in _line(report, "channels cut")


def test_a_whole_student_is_not_said_to_be_cut(report: dict[str, Any]) -> None:
    student = report["student"]
    student["uncut"] = {key: student[key] for key in ("parameters", "multiply_adds")}
    assert "cut" not in Parsed(page(report)).text.lower().replace("executed", "")
    assert _line(report, "channels cut") == ""


def test_an_own_teacher_is_named_and_what_it_lacks_is_left_out(report: dict[str, Any]) -> None:
    report["teacher"] = {"parameters": 0, "bytes": 0, "score_unseen": 0.8, "own": "<i>mine.py:build"}
    del report["latency_us"]["teacher_fp32"]
    parsed = Parsed(page(report))
    assert "own teacher <i>mine.py:build" in parsed.text
    assert "your own teacher on unseen clients" in parsed.text
    assert "the teacher's was not measured" in parsed.text
    assert [row[0] for row in parsed.table("Latency")] == ["student, fp32", "student, int8"]
    assert parsed.table("Size")[0] == ["own teacher", "", ""]
    assert "smaller than the teacher" not in parsed.text


def test_an_own_teacher_with_a_size_is_compared_with(report: dict[str, Any]) -> None:
    report["teacher"]["own"] = "mine.py:build"
    assert "own teacher 4.82 MB" in _line(report, "model")


def test_in_gradient_mode_the_step_goes_on_or_does_not(report: dict[str, Any]) -> None:
    for one in report["redistillations"]:
        one["mode"] = "gradient"
    source = page(report)
    assert source.count("\u2713 the step goes on") == source.count("\u2715 the step does not go on") == 1
    assert "accepted" not in source
    assert "judged 2 times, went on 1 time" in _line(report, "re-distillation")


@pytest.mark.parametrize(("judge", "sent"), [("clients", 2), ("server", 1)])
def test_bytes_of_a_candidate_count_where_it_travelled(report: dict[str, Any], judge: str, sent: int) -> None:
    """Judges on the server need no download, and what they refuse never leaves it."""
    report["config"]["redistill"]["judge"] = judge
    assert page(report).count("sent for it") == sent


def test_people_held_back_on_the_server_are_named_as_judges(report: dict[str, Any]) -> None:
    report["config"]["redistill"]["judge"] = "server"
    names = [judge["client"] for judge in report["redistillations"][0]["judges"]]
    text = Parsed(page(report)).text
    assert f"Judged on the server, by the data of {', '.join(names)}, held back from training" in text
    assert "Judged by" not in text


def test_judges_whose_windows_define_no_score_decide_by_their_loss(report: dict[str, Any]) -> None:
    one = report["redistillations"][0]
    one["aggregate"] = one["candidate"] = None
    for judge in one["judges"]:
        judge["aggregate"] = judge["candidate"] = None
    parsed = Parsed(page(report))
    assert "macro F1 not defined on the judges' windows: the loss decides" in parsed.text
    table = next(t for t in (rows for c, rows in parsed.tables.items() if "each judge" in c))
    assert "aggregate, loss" in table[0]


@pytest.mark.parametrize("reason", ["no_current", "not_comparable", "worse", "self_test"])
def test_reasons_for_machines_are_put_in_words(report: dict[str, Any], reason: str) -> None:
    for one in report["releases"][-1]["decisions"]:
        one["reason"], one["current"], one["candidate"] = reason, None, None
    told = {row[5] for row in Parsed(page(report)).table("The gate of each client")}
    assert len(told) == 1
    assert len(told.pop().split()) > 2


def test_images_are_called_so_and_a_number_has_no_classes(report: dict[str, Any]) -> None:
    report["dataset"]["window"], report["dataset"]["classes"] = [24, 32, 1], []
    text = Parsed(page(report)).text
    assert "images of 24 \u00d7 32" in text
    assert "0 classes" not in text
