from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from federated.build import same_weights
from fedge.errors import PayloadError
from fedge.federated.frames import Scores, Step, StepKind
from fedge.federated.state import Candidate, ClientRecord, FederationState

_STEP = st.builds(Step, st.sampled_from(StepKind), st.binary(max_size=20))
_RECORD = st.builds(
    ClientRecord, st.none() | st.integers(0, 10**6), st.binary(max_size=8), st.integers(0, 10**6)
)
_NUMBER = st.floats(allow_infinity=False, width=32)
_SCORES = st.builds(Scores, st.integers(1, 10**6), _NUMBER, _NUMBER, _NUMBER, _NUMBER)
_CANDIDATE = st.builds(
    Candidate, st.integers(0, 99), _STEP, st.dictionaries(st.text(max_size=5), _SCORES, max_size=3)
)


def _weights(seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    bits = random.integers(0, 2**32, (3, 4, 2), dtype=np.uint32)  # any bits: NaN, denormal, minus zero
    return {"a.weight": bits.view(np.float32), "a.bias": random.normal(size=3).astype(np.float32)}


@given(
    seed=st.integers(0, 1000),
    number=st.integers(0, 10**9),
    history=st.dictionaries(st.integers(0, 10**9), st.lists(_STEP, max_size=2).map(tuple), max_size=4),
    clients=st.dictionaries(st.text(max_size=10), _RECORD, max_size=5),
    candidate=st.none() | _CANDIDATE,
    released=st.integers(0, 99),
    nudged=st.booleans(),
    taught=st.integers(0, 99),
)
def test_the_state_comes_back_bit_for_bit(seed: int, number: int, **rest: Any) -> None:
    residual = {"flat": _weights(seed + 1)["a.bias"], "calls": np.array(seed, np.int64)}
    optimizer = {"rounds": np.array(seed, np.int64), "first/a.bias": _weights(seed + 2)["a.bias"]}
    state = FederationState(number, _weights(seed), residual, optimizer=optimizer, **rest)
    back = FederationState.from_bytes(state.to_bytes())
    assert back.to_bytes() == state.to_bytes()
    assert same_weights(back.weights, state.weights)
    assert same_weights(back.residual, residual)
    assert same_weights(back.optimizer, optimizer)
    assert (back.round, back.released, back.nudged, back.taught) == (
        number,
        state.released,
        state.nudged,
        state.taught,
    )
    assert repr(back.candidate) == repr(state.candidate)  # NaN is not equal to itself
    assert back.history == state.history
    assert back.clients == state.clients


STATE = FederationState(
    2,
    _weights(0),
    {"flat": np.zeros(3, np.float32)},
    {2: (Step(StepKind.UPDATE, b"abc"),)},
    {"c1": ClientRecord(1, b"8 bytes!", 2)},
    Candidate(2, Step(StepKind.CHANGE, b"xyz"), {"p1": Scores(3, 0.5, 0.25, 0.5, float("nan"))}),
    1,
    {"h/a": np.zeros(3, np.float32)},
    nudged=True,
    taught=2,
)


def test_a_truncated_state_is_refused() -> None:
    content = STATE.to_bytes()
    for end in range(len(content)):
        with pytest.raises(PayloadError):
            FederationState.from_bytes(content[:end])


def test_a_damaged_state_raises_nothing_but_payload_errors() -> None:
    content = STATE.to_bytes()
    for at in range(len(content)):
        for flip in (1, 2, 16, 64, 255):
            damaged = content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :]
            try:
                FederationState.from_bytes(damaged)
            except PayloadError:
                continue


_TRIED = Candidate(2, Step(StepKind.CHANGE, b"xyz"))


def test_states_that_differ_anywhere_have_other_bytes() -> None:
    others = [
        replace(STATE, round=3),
        replace(STATE, weights=_weights(1)),
        replace(STATE, residual={"flat": np.ones(3, np.float32)}),
        replace(STATE, history={}),
        replace(STATE, clients={"c1": ClientRecord(None, b"8 bytes!", 2)}),
        replace(STATE, clients={"c1": ClientRecord(1, b"8 others", 2)}),
        replace(STATE, clients={"c1": ClientRecord(1, b"8 bytes!", 1)}),
        replace(STATE, candidate=None),
        replace(STATE, candidate=replace(_TRIED, scores={})),
        replace(STATE, candidate=replace(_TRIED, scores={"p1": Scores(3, 0.5, 0.25, 0.5, 0.0)})),
        replace(STATE, released=2),
        replace(STATE, optimizer={"h/a": np.ones(3, np.float32)}),
        replace(STATE, nudged=False),
        replace(STATE, taught=1),
    ]
    assert len({s.to_bytes() for s in [STATE, *others]}) == len(others) + 1
