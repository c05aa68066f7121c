import operator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.data import load, load_client
from fedge.data._target import parse_target
from fedge.errors import ConfigError, DataError

OPERATORS = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}


@given(
    st.sampled_from(sorted(OPERATORS)),
    st.lists(st.integers(-5, 5), min_size=1, max_size=20),
    st.integers(-5, 5),
    st.sampled_from([np.int8, np.int64, np.float32, np.float64]),
)
def test_a_rule_holds_where_a_plain_comparison_does(op, values, number, dtype):
    for text in (f"rul {op} {number}", f"  rul{op}{number}.0 "):
        rule = parse_target("anomaly", "y", text).normal
        assert rule.holds(np.array(values, dtype)).tolist() == [OPERATORS[op](v, number) for v in values]


@pytest.mark.parametrize("values", [np.array([250, 3], np.uint8), np.array([1.5, 2], np.float16)])
def test_a_number_that_the_array_cannot_hold_is_compared_by_value(values):
    assert not parse_target("anomaly", "y", "a > 1e6").normal.holds(values).any()
    assert parse_target("anomaly", "y", "a >= -1e6").normal.holds(values).all()


def test_a_fraction_equals_itself_in_single_precision():
    values = np.array([0.1, 0.2], np.float32)
    assert parse_target("anomaly", "y", "a == 0.1").normal.holds(values).tolist() == [True, False]


@pytest.mark.parametrize(
    "text",
    ["rul", "rul >", "> 3", "rul = 3", "rul => 3", "rul > three", "rul > 3 and rul < 5", "rul > nan",
     "rul > inf", "rul > 1e999", "rul > 0x10", "rul > 1_000", "rul > \u0663", "1rul > 3", "a.b > 3",
     "__import__('os')", "rul > 3\n", "rul\t> 3", "a" * 129 + " > 3", "rul > " + "9" * 400, "rul > 3;",
     "rul[0] > 3"],
)  # fmt: skip
def test_what_is_no_rule_is_refused_in_one_line(text):
    with pytest.raises(ConfigError, match="NAME OP NUMBER") as caught:
        parse_target("anomaly", "y", text)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 250


@pytest.mark.parametrize(
    ("target", "key", "normal", "match"),
    [
        ("regression", "y", "", "'regression' is unknown; known: class, number, anomaly"),
        ("number", "X", "", "data.target is 'X'"),
        ("number", "client", "", "data.target is 'client'"),
        ("anomaly", "trainable", "", "data.target is 'trainable'"),
        ("number", "", "", "data.target is ''"),
        ("number", "../y", "", "data.target is '../y'"),
        ("number", "y\n", "", "data.target is"),
        ("class", "y", "rul > 3", "only an anomaly task"),
        ("number", "y", "rul > 3", "only an anomaly task"),
    ],
)
def test_settings_that_make_no_sense_together_are_refused(content, npz, target, key, normal, match):
    path = npz(content)
    for read in (load, load_client):
        with pytest.raises(ConfigError, match=match):
            read(path, target=target, key=key, normal=normal)


@pytest.mark.parametrize("source", ["watch", "digits"])
@pytest.mark.parametrize(
    ("settings", "what"),
    [({"target": "number"}, "number"), ({"target": "anomaly"}, "anomaly"), ({"key": "rul"}, "'rul'")],
)
def test_data_that_comes_with_a_package_has_classes_only(source, settings, what):
    with pytest.raises(ConfigError, match=f"{source!r} has classes, not .*{what}.*give --data"):
        load(source, **settings)


def test_a_scenario_without_data_says_what_to_give():
    with pytest.raises(DataError, match=r"no data of its own: give --data FILE\.npz"):
        load("")
