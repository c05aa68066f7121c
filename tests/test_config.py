import json
import math
from collections.abc import Iterator
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from fedge.config import Config, Link, config_text, difference, load_config, scenarios
from fedge.errors import ConfigError
from fedge.federated.client import SMALLEST_BUDGET
from fedge.federated.coding import build_codec
from fedge.federated.plan import Coding
from fedge.federated.pupil import distillation
from fedge.plugins import load
from fedge.simulation.world import config_of, to_run_config

Setting = tuple[str, "Field[Any]"]


def _settings(kind: type = Config, where: str = "") -> Iterator[Setting]:
    """Every single setting with its dotted key."""
    for spec in fields(kind):
        if is_dataclass(spec.default):
            yield from _settings(type(spec.default), f"{where}{spec.name}.")
        elif spec.name not in ("scenario", "settings"):
            yield f"{where}{spec.name}", spec


SETTINGS = list(_settings())
NUMBERS = [(k, s) for k, s in SETTINGS if type(s.default) in (int, float)]
LISTS = [(k, s) for k, s in SETTINGS if type(s.default) is tuple and s.metadata["low"] is not None]
WORDS = [(k, s) for k, s in SETTINGS if s.metadata["among"]]
# What else must be set, so that a value at the end of its range is possible.
WITH: dict[str, dict[str, Any]] = {
    "rounds.buffer": {"rounds.late": "count"},
    "local.learning_rate": {"local.final_learning_rate": 1e-6},
    "local.final_learning_rate": {"local.learning_rate": 10.0},
    "data.judge_share": {"redistill.mode": "none"},
}
DYN = {"local.dynamic": 0.1, "rounds.optimizer": "dyn"}  # two halves of one method


def _named(settings: list[Setting]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("key", "spec"), settings, ids=[k for k, _ in settings])


def _got(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _refused(*assignments: str, **overrides: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides, assignments)
    return str(caught.value)


def test_there_are_settings() -> None:
    assert len(SETTINGS) > 45
    assert len(NUMBERS) > 35
    assert len(WORDS) >= 3
    assert [k for k, _ in LISTS] == ["fleet.uplink_bytes", "fleet.uplink_bits_per_second"]


@_named(SETTINGS)
def test_every_setting_is_explained_and_its_default_is_possible(key: str, spec: "Field[Any]") -> None:
    assert len(spec.metadata["doc"]) > 4
    assert _got(load_config(None, {key: spec.default}), key) == spec.default


@_named(NUMBERS)
def test_every_number_has_a_range_and_nothing_beyond_it_passes(key: str, spec: "Field[Any]") -> None:
    low, high = spec.metadata["low"], spec.metadata["high"]
    assert low < high
    for value in (low, high):
        exact: Any = float(value) if type(spec.default) is float else value
        beside = DYN if key == "local.dynamic" and value else WITH.get(key, {})
        assert _got(load_config(None, {**beside, key: exact}), key) == value
    whole = type(spec.default) is int
    for value in (low - 1, high + 1) if whole else (math.nextafter(low, -99), math.nextafter(high, math.inf)):
        with pytest.raises(ConfigError, match="is not within") as caught:
            load_config(None, {key: value})
        assert str(caught.value).startswith(f"{key}: ")
        assert spec.metadata["doc"] in str(caught.value)


@_named(LISTS)
def test_every_number_of_a_list_is_within_the_range(key: str, spec: "Field[Any]") -> None:
    low, high = spec.metadata["low"], spec.metadata["high"]
    for given, kept in (
        ([], ()),
        ([low], (low,)),
        ([high, low, high], (high, low, high)),  # in the order given, and as often
        ((low, high), (low, high)),
        (low, (low,)),  # one number is a list of one
    ):
        found = _got(load_config(None, {key: given}), key)
        assert found == kept
        assert type(found) is tuple
    for beyond in (low - 1, high + 1, -low):
        for value in (beyond, [beyond], [low, beyond], [beyond, high]):
            with pytest.raises(ConfigError, match="is not within") as caught:
                load_config(None, {key: value})
            assert str(caught.value).startswith(f"{key}: {beyond} ")
            assert spec.metadata["doc"] in str(caught.value)


def test_no_simulated_device_has_a_budget_that_an_answer_may_not_fit_into() -> None:
    (spec,) = (s for k, s in LISTS if k == "fleet.uplink_bytes")
    assert spec.metadata["low"] == SMALLEST_BUDGET


@_named([(k, s) for k, s in NUMBERS if type(s.default) is float])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "9" * 400])
def test_no_number_that_is_not_one_passes(key: str, spec: "Field[Any]", value: str) -> None:
    assert type(spec.default) is float
    assert _refused(f"{key}={value}").startswith(f"{key}: ")


@_named(WORDS)
def test_words_are_among_the_known_ones(key: str, spec: "Field[Any]") -> None:
    for word in spec.metadata["among"]:
        beside = {"dyn": DYN, "trimmed_mean": {"uplink": {"codec": "raw"}}}.get(word, {})
        assert _got(load_config(None, {**beside, key: word}), key) == word
        assert f"did you mean {word!r}?" in _refused(f"{key}={word}x")
    assert "known: " in _refused(f"{key}=zzzzzzzzz")


WRONG = {
    int: [1.0, "1", True, [1], {"a": 1}, None],
    float: ["0.5", True, [0.5], {}, None],
    bool: [0, 1, "true", None],
    str: [1, True, ["a"], None],
    tuple: [1, True, {"a": 1}, [1.5], [["a"]], [True], None],
}
WRONG_NUMBERS = ["200", 200.0, True, {"a": 200}, [200.0], ["200"], [[200]], [True], [200, None], None]


@_named(SETTINGS)
def test_no_value_of_another_type_passes(key: str, spec: "Field[Any]") -> None:
    numbers = (key, spec) in LISTS
    for value in WRONG_NUMBERS if numbers else WRONG[type(spec.default)]:
        with pytest.raises(ConfigError, match="expected") as caught:
            load_config(None, {key: value})
        assert str(caught.value).startswith(f"{key}: ")


@pytest.mark.parametrize("key", [k for k, _ in SETTINGS if k.split(".")[0] not in ("uplink", "downlink")])
def test_a_slip_in_a_key_is_answered_with_the_nearest_one(key: str) -> None:
    assert _refused(f"{key}x=1") == f"unknown key '{key}x'; did you mean {key!r}?"


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("redistil.every=3", "did you mean 'redistill'?"),
        ("rounds=5", "rounds: expected a table, got 5"),
        ("seed.x=1", "seed.x: seed is a value, not a table"),
        ("seed", "write --set section.key=value"),
        ("=3", "unknown key ''"),
        ("", "write --set section.key=value"),
        ("local..epochs=3", "unknown key 'local.'"),
        ("scenario=other", "unknown key 'scenario'"),
        ("uplink.settings.share=0.1", "unknown key 'uplink.settings'"),
        ("uplink=ternary", "uplink: expected a table"),
        ("fleet.uplink_bytes=200,300", "fleet.uplink_bytes: expected a whole number"),
        ("fleet.uplink_bytes=[200, 20]", "fleet.uplink_bytes: 20 is not within"),
        ("rounds.rounds=5\nseed=7", "rounds.rounds: expected a whole number"),
    ],
)
def test_assignments_that_make_no_sense_say_why(assignment: str, said: str) -> None:
    overrides = {"seed": 1} if assignment.startswith("seed.") else {}
    assert said in _refused(assignment, **overrides)


@pytest.mark.parametrize(
    ("assignment", "key", "value"),
    [
        ("local.epochs=3", "local.epochs", 3),
        ("local.epochs = 0x10", "local.epochs", 16),
        ("local.learning_rate=1", "local.learning_rate", 1.0),
        ("local.learning_rate=2e-1", "local.learning_rate", 0.2),
        ("local.augment=false", "local.augment", False),
        ("data.source=my=odd file.npz", "data.source", "my=odd file.npz"),
        ('data.source="a b.npz"', "data.source", "a b.npz"),
        ("data.server_clients=p01-*", "data.server_clients", ("p01-*",)),
        ("data.server_clients=['a', 2]", "data.server_clients", ("a", "2")),
        ("uplink.share=0.5", "uplink.settings", {"share": 0.5}),
        ("fleet.uplink_bytes=200", "fleet.uplink_bytes", (200,)),
        ("fleet.uplink_bytes=[200, 4_000]", "fleet.uplink_bytes", (200, 4000)),
        ("fleet.uplink_bytes=[]", "fleet.uplink_bytes", ()),
    ],
)
def test_an_assignment_is_read_as_toml_or_else_as_text(assignment: str, key: str, value: Any) -> None:
    found = _got(load_config(None, {}, [assignment]), key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 5000, "{a=" * 5000, "1979-05-27", "\x00", "{}"])
def test_no_literal_ends_in_anything_but_a_refusal(value: str) -> None:
    assert _refused(f"seed={value}").startswith("seed: expected a whole number")


def test_the_command_line_wins_over_the_scenario_and_the_last_assignment_wins() -> None:
    config = load_config(
        "watch", {"rounds.rounds": 5, "seed": 4}, ["local.epochs=3", "local.epochs=4"], "activity"
    )
    assert (config.rounds.rounds, config.seed, config.local.epochs) == (5, 4, 4)
    assert (config.scenario, config.task) == ("watch", "activity")
    assert (
        load_config(None, {}, task="other").task == "other"
    )  # whether it exists is asked where it is loaded


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a = = 1", "line 1"),
        (b"\xff\xfe", "utf-8"),
        (b"# " + b"x" * (1 << 20), "1 MiB"),
        (b"seed = " + b"9" * 5000, "digits"),
        (b"seed = " + b"[" * 5000, "mine.toml: "),
        (b"seed = 1\nseed = 2", "overwrite"),
        (b"[local]\nepoch = 3", "did you mean 'local.epochs'?"),
        (b"local = 3", "expected a table"),
        (b"scenario = 'other'", "unknown key 'scenario'"),
        (b"[[local]]\nepochs = 3", "expected a table"),
    ],
)
def test_a_bad_scenario_file_is_refused_with_its_reason(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(str(path), {})
    assert said in str(caught.value)


def test_a_scenario_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown scenario 'wacth'; did you mean 'watch'\?"):
        load_config("wacth", {})
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(ConfigError, match="unknown scenario"):
            load_config(str(path), {})
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    with pytest.raises(ConfigError, match="no such file"):
        load_config(str(folder), {})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"local.dynamic": 0.1}, "two halves of FedDyn"),
        ({"rounds.optimizer": "dyn"}, "two halves of FedDyn"),
        ({"local.rotate": ["x", "y"]}, "three different channels"),
        ({"local.rotate": ["x", "y", "x"]}, "three different channels"),
        ({"teacher.module": "a:B", "teacher.onnx": "b.onnx"}, "give one of them"),
        ({"teacher.weights": "a.safetensors"}, "goes with teacher.module"),
        ({"data.judge_share": 0.0}, "data.judge_share is 0"),
    ],
)
def test_settings_that_cannot_work_together_are_refused(settings: dict[str, Any], said: str) -> None:
    assert said in _refused(**settings)


def test_no_judge_share_is_needed_where_people_on_the_server_judge() -> None:
    assert load_config(None, {"data.judge_share": 0.0, "redistill.judge": "server"}).data.judge_share == 0


def test_a_scenario_of_ones_own_has_the_name_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("seed = 3\n[rounds]\nrounds = 7\n")
    config = load_config(str(path), {})
    assert (config.scenario, config.seed, config.rounds.rounds) == ("mine", 3, 7)
    assert config.teacher == Config().teacher
    assert load_config(None, {}, name="fleet").scenario == "fleet"


@pytest.mark.parametrize("name", scenarios())
def test_every_built_in_scenario_is_possible(name: str) -> None:
    config = load_config(name, {})
    assert config.scenario == name
    distillation(config, load("task", config.task).TASK)
    for link in (config.uplink, config.downlink):
        build_codec(Coding(link.codec, link.settings))


def test_watch_is_built_in() -> None:
    config = load_config("watch", {})
    assert "watch" in scenarios()
    assert (config.task, config.data.source) == ("activity", "watch")


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (["local.final_learning_rate=0.5"], "the rate only falls"),
        (["local.learning_rate=0.001"], "the rate only falls"),
        (["data.judge_share=0"], "judged on that share"),
    ],
)
def test_settings_that_cannot_go_together_are_refused_with_the_reason(
    assignments: list[str], said: str
) -> None:
    assert said in _refused(*assignments)


@pytest.mark.parametrize("more", ["redistill.mode=none", "redistill.every=30", "rounds.rounds=10"])
def test_without_a_re_distilled_student_no_share_for_judging_is_needed(more: str) -> None:
    assert load_config(None, {}, ["data.judge_share=0", more]).data.judge_share == 0


def test_further_keys_of_a_link_are_the_codecs_settings(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[uplink]\ncodec = 'raw'\n[downlink]\nshare = 0.5\nname = 'x'\n")
    config = load_config(str(path), {})
    assert config.uplink == Link("raw", {})  # nothing of the default codec's settings is left
    assert config.downlink == Link("ternary", {"share": 0.5, "name": "x"})
    assert load_config(None, {}).uplink == Link("ternary", {"share": 0.01})


CHANGED = [
    [],
    ["seed=7", "local.learning_rate=0.123456789012345", "local.augment=false"],
    ["data.server_clients=['a', 'b']", "data.unseen_clients=p*", "data.source=x y.npz"],
    ["uplink.codec=raw"],
    ["uplink.share=0.25", "downlink.share=0.5", "redistill.mode=none"],
    ["fleet.uplink_bytes=[400, 200]", "quantize.snapshot_bits=8"],
]


@pytest.mark.parametrize(
    "assignments", CHANGED, ids=["defaults", "numbers", "lists", "other codec", "links", "budgets"]
)
@pytest.mark.parametrize("scenario", [None, "watch"])
def test_settings_travel_through_flower_unchanged(scenario: str | None, assignments: list[str]) -> None:
    config = load_config(scenario, {}, assignments, name="fleet")
    assert config_of({"config": to_run_config(config)}) == config
    assert json.loads(to_run_config(config))["seed"] == config.seed


def test_flowers_own_run_config_is_a_scenario_with_dotted_keys() -> None:
    config = config_of({"scenario": "watch", "seed": 3, "rounds.rounds": 2, "out": "somewhere"})
    assert config == load_config("watch", {"seed": 3, "rounds.rounds": 2})
    assert config_of({}) == load_config("watch", {})
    with pytest.raises(ConfigError, match=r"did you mean 'rounds\.rounds'"):
        config_of({"rounds.round": 2})


def test_a_fleet_is_limited_in_bytes_or_by_its_links_and_not_by_both() -> None:
    links = {"fleet.uplink_bits_per_second": [300, 5000], "fleet.answer_seconds": 8}
    assert load_config(None, links).fleet.uplink_bits_per_second == (300, 5000)
    with pytest.raises(ConfigError, match="one of them"):
        load_config(None, {**links, "fleet.uplink_bytes": [400]})


def test_settings_that_an_older_fedge_did_not_know_make_no_difference() -> None:
    """Else no server could be updated without losing its state."""
    config = load_config("watch", {"rounds.rounds": 7})
    saved = json.loads(config_text(config))
    del saved["fleet"]["edges"], saved["rounds"]["buffer"]
    assert difference(json.dumps(saved), config) == ""


def test_settings_that_differ_are_named_with_both_values() -> None:
    saved = config_text(load_config("watch", {"rounds.rounds": 7, "uplink.share": 0.02}))
    told = difference(saved, load_config("watch", {"rounds.rounds": 8, "uplink.share": 0.03, "seed": 1}))
    assert told == "rounds.rounds was 7, now 8, seed was 0, now 1, uplink.share was 0.02, now 0.03"


@pytest.mark.parametrize("saved", ["", "{", "[]", "{}", '{"scenario": "x", "rounds": {"of a newer one": 1}}'])
def test_settings_that_cannot_be_read_are_others(saved: str) -> None:
    assert difference(saved, load_config("watch", {})).startswith("they cannot be read")
