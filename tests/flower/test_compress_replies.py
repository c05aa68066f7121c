"""Which answers a strategy may see."""

from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg

from fedge.errors import UpdateError
from fedge.flower.compress_replies import alike, check_metrics, weight_key
from fedge.simulation.flower_internals import enter_run


@pytest.fixture(autouse=True)
def _run() -> None:
    enter_run(1)


def _message(**records: dict[str, Any]) -> Message:
    content: Any = {n: MetricRecord(r) if n.startswith("m") else ConfigRecord(r) for n, r in records.items()}
    return Message(RecordDict(content), 2, "train")


def test_the_weights_name_is_that_of_the_strategy_or_of_the_one_inside() -> None:
    inner = FedAvg(weighted_by_key="windows")
    assert weight_key(inner) == "windows"
    assert weight_key(DifferentialPrivacyServerSideFixedClipping(inner, 0.0, 1.0, 2)) == "windows"
    assert weight_key(object()) is None


@pytest.mark.parametrize("value", [1, 1e6, 0.5])
def test_a_sound_weight_passes(value: float) -> None:
    check_metrics(_message(m={"n": value, "loss": [1.0, 2.0]}), "n", 1e6)


@pytest.mark.parametrize("value", [0, -1, 1.1e6, [1], float("nan"), float("inf")])
def test_a_weight_out_of_range_is_refused(value: Any) -> None:
    with pytest.raises(UpdateError, match="'n'"):
        check_metrics(_message(m={"n": value}), "n", 1e6)


def test_numbers_that_are_not_finite_are_refused_even_where_nothing_is_weighed() -> None:
    check_metrics(_message(m={"loss": 1.0}, m2={"x": 1}), None, 1e6)
    for bad in (float("nan"), [1.0, float("inf")]):
        with pytest.raises(UpdateError, match="'loss' is not finite"):
            check_metrics(_message(m={"loss": bad}), None, 1e6)


def test_the_most_common_form_is_kept_in_order_and_ties_go_to_the_first() -> None:
    a, b, c = (_message(m={"n": i}) for i in range(3))
    odd = [_message(m={"k": 1}), _message(x={"n": 1}), _message(m={"n": [1]}), _message(m={"n": 1}, m2={})]
    kept, others = alike([odd[0], a, odd[1], b, odd[2], c, odd[3]])
    assert kept == [a, b, c]
    assert others == odd
    assert alike([a, odd[0]]) == ([a], [odd[0]])
    assert alike([]) == ([], [])
