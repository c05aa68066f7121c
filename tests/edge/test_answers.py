import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax as scipy_softmax

from fedge.edge.answers import FEWEST_NORMAL, Wording, own_threshold, softmax
from fedge.errors import ConfigError

from .build import manifest
from .releases import GOOD, number, scorer

_scores = st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=3, max_size=3)


@given(_scores)
def test_probabilities_are_scipys_and_add_up_to_one(raw: list[float]) -> None:
    scores = np.array(raw, np.float32)
    found = softmax(scores)
    np.testing.assert_allclose(found, scipy_softmax(scores.astype(np.float64)), rtol=1e-12, atol=0)
    assert found.sum() == pytest.approx(1, abs=1e-12)


@given(_scores, st.integers(0, 3))
def test_class_is_the_likeliest_and_the_answer_is_json(raw: list[float], top: int) -> None:
    scores = np.array(raw, np.float32)
    answer = Wording(manifest(GOOD), top=top).of(scores)
    assert answer["class"] == "xyz"[int(scores.argmax())]
    named = answer.get("top", [])
    assert len(named) == top
    assert [n["probability"] for n in named] == sorted((n["probability"] for n in named), reverse=True)
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer


def test_first_of_the_top_is_the_answer() -> None:
    answer = Wording(manifest(GOOD), top=2).of(np.array([0, 2, 1], np.float32))
    assert [n["class"] for n in answer["top"]] == ["y", "z"]
    assert answer["top"][0] == {"class": answer["class"], "probability": answer["probability"]}


@pytest.mark.parametrize("top", [-1, 4])
def test_top_is_refused_beyond_the_classes(top: int) -> None:
    with pytest.raises(ConfigError, match="knows 3 classes"):
        Wording(manifest(GOOD), top=top)


@pytest.mark.parametrize(("score", "anomalous"), [(2.0, False), (2.0000002, True), (-5.0, False)])
def test_anomalous_is_what_lies_above_the_threshold(score: float, anomalous: bool) -> None:
    answer = Wording(scorer()[1], 2.0).of(np.array([score], np.float32))
    assert (answer["anomalous"], answer["threshold"]) == (anomalous, 2.0)


def test_without_a_threshold_nothing_is_called_anomalous_or_not() -> None:
    answer = Wording(scorer()[1], None).of(np.array([9], np.float32))
    assert answer == {"anomalous": None, "score": 9.0, "threshold": None}


def test_number_is_said_as_short_as_float32_allows() -> None:
    assert Wording(number()[1]).of(np.array([0.1], np.float32)) == {"value": 0.1}


def test_own_threshold_leaves_one_normal_window_in_a_hundred_above_it() -> None:
    scores = np.random.default_rng(0).permutation(1000).astype(np.float32)
    found = own_threshold(scorer()[1], scores)
    assert found is not None
    assert 5 <= np.count_nonzero(scores > found) <= 10


def test_a_few_normal_windows_do_not_make_a_threshold() -> None:
    few = np.zeros(FEWEST_NORMAL - 1, np.float32)
    assert own_threshold(scorer()[1], few) == 2.0
    assert own_threshold(scorer()[1], np.zeros(FEWEST_NORMAL, np.float32)) == 0.0
