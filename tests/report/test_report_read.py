"""``report.json`` is checked at the door; what is missing or strange inside it reads as not measured."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedge.errors import DataError
from fedge.report import read


def _written(folder: Path, content: object) -> Path:
    (folder / "report.json").write_text(json.dumps(content))
    return folder


def test_a_written_report_comes_back_as_it_was(tmp_path: Path, report: dict[str, Any]) -> None:
    assert read.load_report(_written(tmp_path, report)) == report


def test_no_report_names_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file.*fedge simulate"):
        read.load_report(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{", '{"schema": 1', "\x00", "[" * 100_000, '{"schema": NaN}', "1" * 5000]
)
def test_damage_is_refused_with_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(content)
    with pytest.raises(DataError) as caught:
        read.load_report(tmp_path)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(b'{"schema": 1, "task": "\xff\xfe"}')
    with pytest.raises(DataError, match="damaged"):
        read.load_report(tmp_path)


@pytest.mark.parametrize("content", [[], "text", None, {}, {"schema": "1"}, {"schema": True}, {"schema": 0}])
def test_another_kind_of_json_is_not_taken_for_a_report(tmp_path: Path, content: object) -> None:
    with pytest.raises(DataError, match="not a report"):
        read.load_report(_written(tmp_path, content))


def test_a_newer_report_says_to_upgrade(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"newer fedge.*upgrade"):
        read.load_report(_written(tmp_path, {"schema": read.SCHEMA + 1}))


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("score", []),
        ("bytes", 3),
        ("rounds_log", {}),
        ("releases", [1]),
        ("clients_log", "x"),
        ("more_scores", []),
    ],
)
def test_a_part_of_the_wrong_type_is_named(tmp_path: Path, key: str, wrong: object) -> None:
    with pytest.raises(DataError, match=key):
        read.load_report(_written(tmp_path, {"schema": 1, key: wrong}))


def test_an_oversized_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "report.json").open("wb") as file:
        file.truncate(read.MAX_BYTES + 1)
    with pytest.raises(DataError, match="larger than"):
        read.load_report(tmp_path)


@pytest.mark.parametrize("value", [True, "1", None, [1], {}, float("nan"), float("inf"), 1e300, 10**400])
def test_what_is_no_usable_number_reads_as_not_measured(value: object) -> None:
    assert read.number({"a": {"b": value}}, "a", "b") is None


def test_a_path_through_something_else_reads_as_missing() -> None:
    assert read.number({"a": 3}, "a", "b") is None
    assert read.part({"a": [1]}, "a") == {}
    assert read.rows({"a": [1, {"b": 2}, None]}, "a") == [{"b": 2}]


def test_amounts_are_never_negative() -> None:
    assert read.amount({"a": -1}, "a") is None
    assert read.amount({"a": 0}, "a") == 0


def test_rounds_are_in_order_and_counted_where_unnumbered() -> None:
    log = {"rounds_log": [{"round": 2, "x": 1}, {"x": 2}, {"round": 1, "x": 3}]}
    assert [(at, row["x"]) for at, row in read.rounds(log)] == [(1, 3), (2, 1), (2, 2)]


def test_savings_are_the_plain_total_over_all_bytes_of_a_client() -> None:
    report = {
        "bytes": {"initial_download": 1000, "uplink": 500, "downlink": 500},
        "plain_fp32": {"total": 300_000},
    }
    assert read.total_bytes(report) == 2000
    assert read.savings(report) == 150
    assert read.savings({"plain_fp32": {"total": 1}}) is None
