import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.errors import PayloadError
from fedge.federated.coding import (
    Support,
    apply_step,
    build_codec,
    decode_dense,
    encode_dense,
    snapshot_step,
)
from fedge.federated.frames import Step, StepKind
from fedge.federated.plan import Coding

_Weights = dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]
SHAPES = {"a.weight": (4, 3, 5), "a.bias": (4,), "head.weight": (3, 4), "head.bias": (3,)}
DOWN = build_codec(Coding("ternary", {"share": 0.3}))


def _weights(seed: int, zeros: float = 0.4) -> _Weights:
    random = np.random.default_rng(seed)
    made = {n: random.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}
    for name, value in made.items():
        if value.ndim > 1:
            value[random.random(value.shape) < zeros] = 0
        else:
            made[name][0] = 0  # a bias that happens to be zero is alive all the same
    return made


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_gather_and_scatter_are_inverse_and_count_what_lives(seed: int, zeros: float) -> None:
    weights = _weights(seed, zeros)
    support = Support.of(weights)
    gathered = support.gather(weights)
    assert {n: g.shape for n, g in gathered.items()} == support.shapes()
    assert support.shapes() == {
        n: (int(np.count_nonzero(w)) if w.ndim > 1 else w.size,) for n, w in weights.items()
    }
    back = support.scatter(gathered)
    again = support.gather(back)
    for name in weights:
        assert back[name].tobytes() == weights[name].tobytes()
        assert again[name].tobytes() == gathered[name].tobytes()


@given(st.integers(0, 10**6))
def test_adding_a_change_is_the_naive_loop(seed: int) -> None:
    weights, change = _weights(seed), _weights(seed + 1)
    support = Support.of(weights)
    gathered = support.gather(change)
    added = support.add(weights, gathered)
    for name, alive in support.alive.items():
        values = iter(gathered[name])
        for place in np.ndindex(*alive.shape):
            expected = weights[name][place] + next(values) if alive[place] else np.float32(0)
            assert added[name][place] == expected
    assert all(added[n].dtype == np.float32 for n in added)


def test_the_share_of_zeros_counts_weights_and_not_biases() -> None:
    weights = {"w": np.array([[0, 1], [2, 0], [0, 3]], np.float32), "b": np.zeros(5, np.float32)}
    assert Support.of(weights).zero_share() == 0.5


@given(st.integers(0, 10**6), st.integers(2, 8))
def test_zeros_stay_exactly_zero_through_every_kind_of_step(seed: int, bits: int) -> None:
    weights, change = _weights(seed), _weights(seed + 1, zeros=0)
    support = Support.of(weights)
    gathered = support.gather(change)
    steps = [
        Step(StepKind.UPDATE, DOWN.encode(DOWN.init(support.shapes()), gathered)[1]),
        Step(StepKind.CHANGE, encode_dense(gathered, bits)),
        Step(StepKind.SNAPSHOT, encode_dense(gathered, bits)),
        snapshot_step(change, support, bits),
    ]
    for step in steps:
        weights = apply_step(step, weights, support, DOWN)
        for name, alive in support.alive.items():
            assert not weights[name][~alive].any()
            assert weights[name].dtype == np.float32
            assert weights[name].shape == SHAPES[name]


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(2, 8))
def test_a_snapshot_replaces_whatever_was_held(seed: int, before: int, bits: int) -> None:
    """Two clients with any weights hold the same bits after it: those that travelled, and nothing else."""
    weights = _weights(seed)
    support = Support.of(weights)
    step = snapshot_step(weights, support, bits)
    assert step.kind is StepKind.SNAPSHOT
    one = apply_step(step, _weights(before), support, DOWN)
    other = apply_step(step, {n: np.full(s, np.nan, np.float32) for n, s in SHAPES.items()}, support, DOWN)
    sent = decode_dense(step.payload, support.shapes())
    for name, alive in support.alive.items():
        assert one[name].tobytes() == other[name].tobytes()
        assert one[name][alive].tobytes() == sent[name].tobytes()


@pytest.mark.parametrize("bits", range(3, 9))
def test_a_snapshot_is_as_close_as_its_bits_and_no_longer_than_they_are(bits: int) -> None:
    """The error of a uniform quantizer with as many levels, without clipping: half a step at most."""
    weights = {"w.weight": np.random.default_rng(bits).normal(size=(60, 70)).astype(np.float32)}
    support = Support.of(weights)
    step = snapshot_step(weights, support, bits)
    taken = apply_step(step, weights, support, DOWN)["w.weight"]
    naive = np.abs(weights["w.weight"]).max() / (2 ** (bits - 1) - 1)
    uniform = np.round(weights["w.weight"] / naive) * naive
    assert (
        np.mean((taken - weights["w.weight"]) ** 2) <= np.mean((uniform - weights["w.weight"]) ** 2) * 1.001
    )
    assert len(step.payload) <= weights["w.weight"].size * bits / 8 + 64


@given(st.integers(0, 10**6), st.integers(3, 8))
def test_a_dense_change_comes_back_within_half_a_step(seed: int, bits: int) -> None:
    arrays = _weights(seed)
    decoded = decode_dense(encode_dense(arrays, bits), SHAPES)
    assert list(decoded) == list(SHAPES)
    for name, value in arrays.items():
        top = 2 ** ((8 if name.endswith("bias") else bits) - 1) - 1
        assert decoded[name].shape == value.shape
        error = np.abs(decoded[name] - value)
        assert np.sqrt(np.mean(error**2)) <= np.abs(value).max() / top  # one step, whatever is clipped
        assert not decoded[name][value == 0].any()


def test_coding_dense_values_twice_changes_nothing_more() -> None:
    once = decode_dense(encode_dense(_weights(3), 4), SHAPES)
    coded = encode_dense(once, 8)
    twice = decode_dense(coded, SHAPES)
    for name in SHAPES:
        np.testing.assert_allclose(twice[name], once[name], rtol=0.01, atol=1e-6)
    assert encode_dense(once, 8) == coded


def test_a_damaged_or_truncated_snapshot_raises_nothing_but_payload_errors() -> None:
    coded = encode_dense(_weights(3), 4)
    for end in range(len(coded)):
        with pytest.raises(PayloadError):
            decode_dense(coded[:end], SHAPES)
    random = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(coded)
        damaged[random.integers(len(coded))] ^= int(random.integers(1, 256))
        try:
            decode_dense(bytes(damaged), SHAPES)
        except PayloadError:
            continue


def test_a_snapshot_for_another_student_is_refused() -> None:
    coded = encode_dense(_weights(3), 4)
    with pytest.raises(PayloadError):
        decode_dense(coded, SHAPES | {"a.weight": (4, 3, 6)})
    with pytest.raises(PayloadError):
        apply_step(Step(StepKind.SNAPSHOT, b""), _weights(3), Support.of(_weights(3)), DOWN)
