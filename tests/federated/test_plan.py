import copy
import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from fedge.errors import ConfigError, PayloadError
from fedge.federated.coding import build_codec
from fedge.federated.frames import Welcome, decode_task, encode_task
from fedge.federated.plan import Coding, Plan
from fedge.federated.prepare import Prepared


@pytest.fixture
def raw(small_prepared: Prepared) -> dict[str, Any]:
    """A sound plan, as it arrives."""
    return copy.deepcopy(small_prepared.plan.to_dict())


def test_a_plan_comes_back_bit_for_bit_through_its_frame(small_prepared: Prepared) -> None:
    plan = small_prepared.plan
    welcome = decode_task(encode_task(Welcome(b"c", plan.to_dict(), b"")))
    assert isinstance(welcome, Welcome)
    back = Plan.from_dict(welcome.plan)
    assert back.to_dict() == plan.to_dict()
    assert back.spec == plan.spec
    assert back.scales == plan.scales
    assert back.preprocess.mean.tobytes() == plan.preprocess.mean.tobytes()
    assert back.preprocess.scale.tobytes() == plan.preprocess.scale.tobytes()


def test_every_way_of_training_travels(raw: dict[str, Any]) -> None:
    turning = {"triples": [[2, 0, 1]], "degrees": 12.5}
    raw["training"] |= {"proximal": 0.1, "dynamic": 0.2, "personal_head": True, "turning": turning}
    back = Plan.from_dict(json.loads(json.dumps(raw))).training
    assert (back.proximal, back.dynamic, back.personal_head) == (0.1, 0.2, True)
    assert (back.turning.triples, back.turning.degrees) == (((2, 0, 1),), 12.5)


def test_no_key_of_training_may_be_left_out_but_those_that_have_defaults(raw: dict[str, Any]) -> None:
    for key in ("epochs", "batch", "momentum", "augment", "turning"):
        with pytest.raises(PayloadError):
            Plan.from_dict(raw | {"training": {k: v for k, v in raw["training"].items() if k != key}})


def test_every_key_is_needed_and_no_other_is_taken(raw: dict[str, Any]) -> None:
    for key in raw:
        with pytest.raises(PayloadError, match="has the keys"):
            Plan.from_dict({k: v for k, v in raw.items() if k != key})
    with pytest.raises(PayloadError, match="has the keys"):
        Plan.from_dict(raw | {"extra": 1})


_ODD: list[Any] = [None, True, -1, 0, 10**9, 1.5, math.nan, math.inf, "x" * 65, "", [], [None], {}, {"a": 1}]


def _odd_values(raw: dict[str, Any]) -> list[tuple[str, Callable[[dict[str, Any]], None]]]:
    """A change for every value at every depth of a plan, to every odd value."""
    changes = []

    def walk(node: Any, path: tuple[Any, ...]) -> None:
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            for odd in _ODD:
                changes.append((f"{path}{key}={odd!r}", _setter((*path, key), odd)))  # noqa: PERF401
            if isinstance(child, dict | list):
                walk(child, (*path, key))

    walk(raw, ())
    return changes


def _setter(path: tuple[Any, ...], value: Any) -> Callable[[dict[str, Any]], None]:
    def change(raw: dict[str, Any]) -> None:
        node: Any = raw
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value

    return change


def test_an_odd_value_anywhere_raises_nothing_but_refusals(raw: dict[str, Any]) -> None:
    as_sent = json.loads(json.dumps(raw))
    refused = 0
    for name, change in _odd_values(as_sent):
        hostile = copy.deepcopy(as_sent)
        change(hostile)
        try:
            plan = Plan.from_dict(hostile)
            build_codec(plan.uplink)
            build_codec(plan.downlink)
        except (PayloadError, ConfigError):
            refused += 1
        except Exception as error:
            pytest.fail(f"{name}: {type(error).__name__}: {error}")
    assert refused > 200


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("federation",), 7),
        (("task",), "t" * 65),
        (("scales", "input"), math.nan),
        (("scales", "input"), 0.0),
        (("scales", "input"), 1),
        (("scales",), {}),
        (("training", "epochs"), 0),
        (("training", "epochs"), True),
        (("training", "batch"), 10_001),
        (("training", "momentum"), 1.0),
        (("training", "momentum"), math.nan),
        (("training", "augment"), 1),
        (("training", "proximal"), -0.1),
        (("training", "proximal"), math.nan),
        (("training", "proximal"), 1e4),
        (("training", "proximal"), 1),
        (("training", "dynamic"), -0.1),
        (("training", "dynamic"), math.inf),
        (("training", "personal_head"), 1),
        (("training", "turning"), {"triples": [], "degrees": 181.0}),
        (("training", "turning"), {"triples": [], "degrees": math.nan}),
        (("training", "turning"), {"triples": [[0, 1, 3]], "degrees": 5.0}),
        (("training", "turning"), {"triples": [[0, 1, -1]], "degrees": 5.0}),
        (("training", "turning"), {"triples": [[0, 1, 1]], "degrees": 5.0}),
        (("training", "turning"), {"triples": [[0, 1]], "degrees": 5.0}),
        (("training", "turning"), {"triples": [[0, 1, 2], [0, 1, 2]], "degrees": 5.0}),
        (("training", "turning"), {"triples": []}),
        (("training", "unknown"), 1),
        (("training",), {"epochs": 1}),
        (("uplink",), {"codec": "ternary"}),
        (("downlink", "settings"), []),
        (("spec", "size"), [0]),
        (("spec", "size"), [4, 4, 4]),
        (("spec", "outputs"), 10**6),
        (("spec", "reconstruction"), {"recent": 4, "scale": [1.0]}),
        (("spec", "number"), {"offset": 0.0, "scale": 0.0}),
        (("preprocess", "clip"), -1.0),
        (("preprocess", "mean"), [1e39]),
    ],
)
def test_a_hostile_value_is_refused(raw: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    _setter(path, value)(raw)
    with pytest.raises(PayloadError):
        Plan.from_dict(raw)


def test_a_codec_or_setting_that_does_not_exist_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'ternary'"):
        build_codec(Coding("ternery", {}))
    with pytest.raises(ConfigError, match="did you mean 'share'"):
        build_codec(Coding("ternary", {"shares": 0.1}))
    for setting in ({"share": 0}, {"share": 2.0}, {"share": "much"}, {"share": math.nan}):
        with pytest.raises(ConfigError):
            build_codec(Coding("ternary", setting))


@pytest.mark.parametrize("name", ["_flat", "os", "../edge", "ternary.py", "", "__init__"])
def test_a_plan_cannot_name_a_module_that_is_no_codec(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown codec"):
        build_codec(Coding(name, {}))


def test_a_window_that_does_not_fit_the_preprocessing_is_refused(raw: dict[str, Any]) -> None:
    """A student for 3 channels and preprocessing for 1 cannot work together."""
    raw["preprocess"] = {"mean": [0.0], "scale": [1.0], "clip": 10.0}
    with pytest.raises(PayloadError):
        Plan.from_dict(raw)
