"""How many a round needs, who may take part, and what becomes of offenders."""

import numpy as np
import pytest

from fedge.config import Config, load_config
from fedge.federated.state import ClientRecord, FederationState
from fedge.federated.strategy import choose, eligible, enrolled, marked, needed, waited, wanted

EVERYONE = [f"c{i:02d}" for i in range(20)]


def _config(*settings: str) -> Config:
    return load_config(None, {}, settings)


def _state(number: int = 0) -> FederationState:
    return FederationState(number, {}, {}, clients={c: ClientRecord() for c in EVERYONE})


def test_over_selection_asks_more_than_it_wants() -> None:
    config = _config("rounds.fraction=0.5", "rounds.over_select=1.3")
    assert wanted(config, 20) == 10
    assert len(choose(config, 1, EVERYONE)) == 13


def test_nobody_is_asked_twice_and_never_more_than_there_are() -> None:
    chosen = choose(_config("rounds.over_select=3"), 1, EVERYONE)
    assert chosen == sorted(EVERYONE)


def test_whoever_has_answered_is_asked_again_when_the_round_is_tried_again() -> None:
    config = _config("rounds.fraction=0.3")
    first = choose(config, 4, EVERYONE)
    again = choose(config, 4, EVERYONE, kept=first[:3], attempt=1)
    assert set(first[:3]) <= set(again)
    assert len(again) == len(first)
    others = [set(choose(config, 4, EVERYONE, (), attempt)) for attempt in range(6)]
    assert len({frozenset(o) for o in others}) > 1  # a dead client is not drawn for ever


@pytest.mark.parametrize(
    ("settings", "least"),
    [((), 0), (("rounds.least=3",), 3), (("rounds.quorum=0.5",), 10), (("rounds.quorum=0.01",), 1),
     (("rounds.least=12", "rounds.quorum=0.5"), 12)],
)  # fmt: skip
def test_a_round_needs_the_larger_of_both_bounds(settings: tuple[str, ...], least: int) -> None:
    assert needed(_config(*settings), 20) == least


def test_offences_in_a_row_bar_a_client_and_longer_each_time() -> None:
    config, state = _config("rounds.offences=2", "rounds.barred_rounds=3"), _state()
    lengths = []
    for number in range(40):
        state = FederationState(number, {}, {}, clients=state.clients)
        if "c00" in eligible(state, EVERYONE):
            state = marked(config, state, (), {"c00"})
            if (until := state.clients["c00"].barred) > number:
                lengths.append(until - number - 1)
    assert lengths[:3] == [3, 6, 12]
    assert eligible(state, EVERYONE[1:]) == EVERYONE[1:]  # nobody else


def test_one_sound_update_wipes_the_slate() -> None:
    config, state = _config("rounds.offences=2"), _state()
    for _ in range(5):
        state = marked(config, marked(config, state, (), {"c01"}), {"c01"}, ())
    assert state.clients["c01"].offences == 0
    assert "c01" in eligible(state, EVERYONE)


def test_a_device_enrolled_while_the_server_runs_gets_a_record_and_keeps_the_others() -> None:
    before = _state()
    after = enrolled(before, [*EVERYONE, "new"])
    assert after.clients["new"] == ClientRecord()
    assert all(after.clients[c] == before.clients[c] for c in EVERYONE)
    assert enrolled(after, EVERYONE) is after


def test_standing_survives_the_journal() -> None:
    residual = {"a": np.zeros(2, np.float32)}
    record = ClientRecord(3, b"12345678", 2, 1, 17, 4)
    state = FederationState(3, {"a": np.ones(2, np.float32)}, residual, clients={"x": record})
    assert FederationState.from_bytes(state.to_bytes()).clients == {"x": record}


def test_a_federation_of_which_everyone_is_barred_is_not_stuck_for_ever() -> None:
    config, state = _config("rounds.offences=1", "rounds.barred_rounds=5"), _state()
    state = marked(config, state, (), EVERYONE)
    tries = 0
    while not eligible(state, EVERYONE):
        state, tries = waited(state), tries + 1
    assert tries == 6  # this round and the five after it
    assert all(r.bars == 1 for r in state.clients.values())  # the next one is longer
