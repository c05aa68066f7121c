"""The page says what the report says, asks nobody for anything, and survives any content."""

import copy
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedge.errors import SetupError
from fedge.report import write_html
from fedge.report.page import page

from .parsed import Parsed

_SECTIONS = ["score", "bytes", "clients", "device", "redistillation", "releases", "time", "configuration"]


def test_every_section_is_there_and_linked(report: dict[str, Any]) -> None:
    parsed = Parsed(page(report))
    ids = parsed.all("id")
    assert [name for name in ids if name in _SECTIONS] == _SECTIONS
    assert parsed.all("href") == [f"#{name}" for name in _SECTIONS]


def test_ids_are_unique_and_every_drawing_has_a_title_and_a_description(report: dict[str, Any]) -> None:
    parsed = Parsed(page(report))
    ids = parsed.all("id")
    assert len(ids) == len(set(ids))
    labels = parsed.all("aria-labelledby")
    assert len(labels) >= 8
    assert all(name in ids for pair in labels for name in pair.split())


def test_the_page_asks_nobody_for_anything_and_runs_nothing(report: dict[str, Any]) -> None:
    source = page(report)
    assert not re.search(r"://|url\(|@import|javascript:", source)
    parsed = Parsed(source)
    assert {tag for tag, _ in parsed.shape}.isdisjoint(
        {"script", "link", "img", "iframe", "object", "image", "use"}
    )
    assert not [name for name, _ in parsed.attributes if name.startswith("on") or name in ("src", "srcset")]
    assert any(content.startswith("default-src 'none'") for content in parsed.all("content"))


def test_headline_numbers_are_exactly_those_of_the_report(report: dict[str, Any]) -> None:
    values = Parsed(page(report)).values
    score, sent = report["score"], report["bytes"]
    total = sent["initial_download"] + sent["uplink"] + sent["downlink"]
    expected = [score[f"{who}{when}"] for who in ("clients", "unseen") for when in ("", "_initial", "_int8")]
    expected += [total, report["plain_fp32"]["total"], report["plain_fp32"]["total"] / total]
    expected += [report["student"]["bytes_int8_onnx"], report["student"]["parameters"]]
    expected += [report["teacher"]["bytes"] / report["student"]["bytes_int8_onnx"]]
    expected += [report["latency_us"]["student_int8"]]
    assert set(expected) <= set(values)


def test_the_table_of_rounds_is_the_log(report: dict[str, Any]) -> None:
    shown = Parsed(page(report)).table("Per round")
    expected = [
        [
            str(one["round"]), f"{one['score_clients']:.3f}", f"{one['score_unseen']:.3f}",
            f"{one['uplink']:,.0f}", f"{one['downlink']:,.0f}", f"{one['seconds']:.2f}",
            str(one["participants"]), f"{one['loss']:.4f}",
        ]
        for one in report["rounds_log"]
    ]  # fmt: skip
    assert shown == expected


def test_the_table_of_clients_is_the_log(report: dict[str, Any]) -> None:
    shown = Parsed(page(report)).table("Per client")
    keys = ("score_initial", "score_final", "score_int8")
    assert [row[0] for row in shown] == [one["id"] for one in report["clients_log"]]
    assert [row[4:7] for row in shown] == [[f"{one[k]:.3f}" for k in keys] for one in report["clients_log"]]


def test_bytes_so_far_are_the_running_sum(report: dict[str, Any]) -> None:
    shown = Parsed(page(report)).table("Bytes per client so far")
    sums, so_far = [], report["bytes"]["initial_download"]
    for one in report["rounds_log"]:
        so_far += one["uplink"] + one["downlink"]
        sums.append(f"{so_far:,.0f}")
    assert [row[1] for row in shown[1:]] == sums
    assert shown[-1][2] == f"{report['plain_fp32']['total']:,.0f}"


def test_every_decision_of_every_release_is_listed_and_refusals_say_why(report: dict[str, Any]) -> None:
    source = page(report)
    parsed = Parsed(source)
    last = report["releases"][-1]["decisions"]
    shown = [(row[0], row[1] == "took it", row[5]) for row in parsed.table("The gate of each client")]
    assert shown == [(one["client"], one["taken"], one["reason"]) for one in last]
    for release in report["releases"]:
        taken = sum(one["taken"] for one in release["decisions"])
        assert f"{taken} of {len(release['decisions'])} clients took it" in parsed.text
        for one in release["decisions"]:
            if not one["taken"]:
                assert f"{one['client']} refused it: {one['reason']} ({one['current']:.3f} now" in parsed.text


def test_refused_and_accepted_redistillations_are_told_apart_by_words_and_shape(
    report: dict[str, Any],
) -> None:
    source = page(report)
    assert source.count("\u2713 accepted") == sum(one["accepted"] for one in report["redistillations"])
    assert source.count("\u2715 refused") == sum(not one["accepted"] for one in report["redistillations"])
    assert source.count('class="mark yes"') == source.count('class="mark no"') == 1
    assert source.count('class="mark release"') == len(report["releases"])
    assert all(one["reason"] in source for one in report["redistillations"])


def test_a_run_where_nothing_was_accepted_says_that_it_is_the_run_without(report: dict[str, Any]) -> None:
    report["without_redistillation"] = {"same_as_this_run": True}
    source = page(report)
    assert "this run is the run without re-distillation" in source
    assert "beside-clients" not in source


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _leaves(item, (*path, key))


def _map_strings(value: Any, change: Any) -> Any:
    if isinstance(value, dict):
        return {change(k) if len(k) > 12 else k: _map_strings(v, change) for k, v in value.items()}
    if isinstance(value, list):
        return [_map_strings(item, change) for item in value]
    return change(value) if isinstance(value, str) and value not in ("participant", "unseen") else value


_HOSTILE = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onload='x", "</title></style></svg>",
    "<!--", "]]>", "&lt;b&gt;&#60;", "\x00\x1b[2J\u202e\ud800", "x" * 5000, "javascript:alert(1)",
]  # fmt: skip


@pytest.mark.parametrize("attack", _HOSTILE)
def test_no_string_of_a_report_changes_the_structure_of_the_page(report: dict[str, Any], attack: str) -> None:
    calm = Parsed(page(_map_strings(report, lambda s: f"{s[:4]} a")))
    attacked = page(_map_strings(report, lambda s: f"{s[:4]} {attack}"))
    assert Parsed(attacked).shape == calm.shape
    attacked.encode("utf-8")


def test_hostile_settings_and_stages_are_escaped_too() -> None:
    source = page(
        {"schema": 1, "config": {"<b>": {"<i>": "<u>"}}, "seconds": {"<s>": 1}, "dataset": {"name": "<em>"}}
    )
    assert {tag for tag, _ in Parsed(source).shape}.isdisjoint({"b", "i", "u", "s", "em"})


_OPTIONAL = [
    "scenario", "task", "seed", "clients", "rounds", "engine", "metric", "fedge_version", "teacher",
    "student", "score", "bytes", "plain_fp32", "rounds_log", "clients_log", "latency_us", "agreement",
    "pruning", "redistillations", "without_redistillation", "releases", "release", "config", "dataset",
    "seconds", "more_scores", "personal",
]  # fmt: skip


@pytest.mark.parametrize("key", _OPTIONAL)
def test_any_missing_part_is_left_out_quietly(report: dict[str, Any], key: str) -> None:
    report[key] = None
    empty = Parsed(page(report))
    del report[key]
    assert Parsed(page(report)).shape == empty.shape
    assert not re.search(r"\b(?:nan|None|inf)\b", empty.text)


def test_an_empty_report_is_a_page_that_says_not_measured() -> None:
    assert Parsed(page({"schema": 1})).text.count("not measured") >= 4


_STRANGE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_strange_value_anywhere_breaks_the_page(report: dict[str, Any], data: st.DataObject) -> None:
    changed = copy.deepcopy(report)
    changed["rounds_log"] = changed["rounds_log"][:4]
    changed["clients_log"] = changed["clients_log"][:3] + changed["clients_log"][-2:]
    paths = [path for path in _leaves(changed) if path]
    for path in data.draw(st.lists(st.sampled_from(paths), min_size=1, max_size=4)):
        place: Any = changed
        for key in path[:-1]:
            place = place[key] if isinstance(place, dict | list) and _has(place, key) else {}
        if isinstance(place, dict) or (isinstance(place, list) and _has(place, path[-1])):
            place[path[-1]] = data.draw(_STRANGE)
    source = page(changed)
    assert not re.search(r'(?:[xy][12]?|width|height|cx|cy|r)="[^"]*(?:nan|inf)', source)
    Parsed(source)


def _has(place: Any, key: Any) -> bool:
    return key in place if isinstance(place, dict) else isinstance(key, int) and key < len(place)


def test_a_long_run_with_many_clients_stays_small_in_its_drawings(report: dict[str, Any]) -> None:
    one, client = report["rounds_log"][0], report["clients_log"][0]
    report["rounds_log"] = [{**one, "round": k} for k in range(1, 3001)]
    report["clients_log"] = [{**client, "id": f"c{k}"} for k in range(2000)]
    parsed = Parsed(page(report))
    assert sum(tag in ("line", "circle", "rect") for tag, _ in parsed.shape) < 8000
    assert len(parsed.table("Per round")) == 3000
    assert len(parsed.table("Per client")) == 2000


def test_the_same_report_gives_the_same_bytes(tmp_path: Path, report: dict[str, Any]) -> None:
    write_html(report, tmp_path / "a.html")
    write_html(copy.deepcopy(report), tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_a_folder_that_is_not_there_is_the_users_error(tmp_path: Path, report: dict[str, Any]) -> None:
    with pytest.raises(SetupError, match="cannot write"):
        write_html(report, tmp_path / "none" / "report.html")


def _luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", ["ink", "soft", "one", "two", "plain", "good", "bad"])
def test_text_colours_have_the_contrast_of_wcag_aa(theme: str, name: str) -> None:
    """WCAG 2.2, 1.4.3: at least 4.5 to 1."""
    style = files("fedge.report").joinpath("style.css").read_text()
    light, dark = style.split("@media screen and (prefers-color-scheme: dark)")
    source = light if theme == "light" else dark
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", source))
    for ground in ("paper", "wash"):
        high, low = sorted((_luminance(colours[name]), _luminance(colours[ground])), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_the_report_needs_no_package_beyond_the_standard_library() -> None:
    code = (
        "import sys; before = set(sys.modules); import fedge.report; "
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; "
        "print(new - set(sys.stdlib_module_names) - {'fedge'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_edge_servers_are_told_of_where_there_are_any(report: dict[str, Any]) -> None:
    """In one sentence among the bytes; nothing of it where numbers are missing or make no sense."""
    assert "Three tiers" not in page(report)
    tiers = {
        "edges": 3,
        "clients_per_edge": 4.0,
        "server_bytes": 41_134,
        "clients_bytes": 164_724,
        "ratio": 4.0,
    }
    source = page({**report, "tiers": tiers})
    assert source.count("Three tiers") == 1
    assert "3 edge servers with 4 clients each" in source
    assert "went 41.1 kB in all, over those of the clients 165 kB: 4.0\u00d7 as much" in source
    for key, value in (("server_bytes", 0), ("clients_bytes", None), ("edges", "many"), ("edges", -1)):
        assert "Three tiers" not in page({**report, "tiers": {**tiers, key: value}})
