"""``quantized``: zeros stay, means are exact, the size is the entropy's, budgets hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import entropy

from fedge.codec import Limits
from fedge.codec._container import seal, varint
from fedge.codec._flat import Layout
from fedge.errors import ConfigError, PayloadError

from .cases import Named, any_arrays, flat, heavy, limits, make

MODEL = {"c1": (32, 3, 5), "b1": (32,), "c2": (48, 32, 5), "b2": (48,), "c3": (64, 48, 3), "fc": (12, 64)}


def _sent(arrays: Named, **knobs: object) -> tuple[bytes, Named]:
    codec = make("quantized", **knobs)
    _, payload = codec.encode(codec.init({k: v.shape for k, v in arrays.items()}), arrays)
    return payload, codec.decode(payload, limits(arrays))


def _levels(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Levels of decoded values, in units of the scale that explains them."""
    sizes = np.unique(np.abs(values[values != 0]).astype(np.float64))
    if not len(sizes):
        return np.zeros(len(values), np.int64)
    steps = [sizes[0] / m for m in range(1, 128)]
    fitting = [s for s in steps if np.abs(sizes / s - np.rint(sizes / s)).max() < 1e-3]
    return np.rint(values / fitting[0]).astype(np.int64)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("knobs", [{}, {"stochastic": True}, {"dead_zone": 0.3}, {"budget_bytes": 900}])
def test_zeros_stay_zeros_and_levels_stay_in_range(bits: int, knobs: dict[str, object]) -> None:
    arrays = heavy(MODEL)
    masks = {k: np.random.default_rng(1).random(v.shape) < 0.3 for k, v in arrays.items()}
    masked = {k: np.where(masks[k], np.float32(-0.0), v) for k, v in arrays.items()}
    _, decoded = _sent(masked, bits=bits, **knobs)
    assert not any(decoded[k][masks[k]].any() for k in arrays)
    if "budget_bytes" not in knobs:
        assert all(np.abs(_levels(v.reshape(-1))).max() <= 2 ** (bits - 1) - 1 for v in decoded.values())


@pytest.mark.parametrize("bits", range(2, 9))
def test_all_levels_come_back_at_every_width(bits: int) -> None:
    """At 8 bits the levels span 255 of the 256 values of a byte."""
    top = 2 ** (bits - 1) - 1
    x = np.arange(-top, top + 1).astype(np.float32) * np.float32(0.25)
    assert np.array_equal(_sent({"a": x}, bits=bits, stochastic=True)[1]["a"], x)


def test_rounding_is_to_the_nearest_level_of_each_tensor() -> None:
    arrays = heavy(MODEL)
    _, decoded = _sent(arrays, bits=6)
    for name, x in arrays.items():
        y = decoded[name]
        step = float(np.abs(y[y != 0]).min())
        inside = np.abs(x) < step * 31
        assert float(np.abs(x - y)[inside].max()) <= step * 0.5001


def test_stochastic_rounding_is_right_on_average_and_repeats_itself() -> None:
    x = heavy({"a": (400,)}, seed=3)
    codec = make("quantized", bits=3, stochastic=True, seed=5, error_feedback=False)
    state, draws = codec.init({"a": (400,)}), []
    for _ in range(300):
        state, payload = codec.encode(state, x)
        draws.append(codec.decode(payload, limits(x))["a"])
    # A draw is off by a step at most, so its standard deviation is half a step at most.
    deviation = float(np.abs(x["a"]).max()) / 3 * (1 + 1 / 255) / 2
    off = np.mean(draws, axis=0, dtype=np.float64) - x["a"]
    assert float(np.abs(off).max()) < 5 * deviation / np.sqrt(300)
    assert abs(float((off * np.sign(x["a"])).mean())) < 5 * deviation / np.sqrt(300 * 400)
    assert len({d.tobytes() for d in draws}) == 300
    again = make("quantized", bits=3, stochastic=True, seed=5, error_feedback=False)
    other = make("quantized", bits=3, stochastic=True, seed=6, error_feedback=False)
    first = codec.encode(codec.init({"a": (400,)}), x)[1]
    assert again.encode(again.init({"a": (400,)}), x)[1] == first
    assert other.encode(other.init({"a": (400,)}), x)[1] != first


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("entries", [8_000, 100_000])
def test_the_payload_is_within_two_percent_of_the_entropy_of_its_levels(bits: int, entries: int) -> None:
    rng = np.random.default_rng(bits)
    x = {"a": rng.laplace(size=entries).astype(np.float32)}
    payload, decoded = _sent(x, bits=bits)
    counts = np.unique(_levels(decoded["a"]), return_counts=True)[1]
    ideal = entries * float(entropy(counts, base=2)) / 8
    assert len(payload) >= 1000
    assert len(payload) <= 1.02 * ideal


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_payload_of_many_tensors_is_within_five_percent_from_a_kilobyte(bits: int) -> None:
    entries = {2: 700, 4: 350, 8: 180}[bits]
    shapes = {f"t{i}": (entries,) for i in range(10)}
    payload, decoded = _sent(heavy(shapes, seed=bits), bits=bits)
    levels = np.concatenate([_levels(v) for v in decoded.values()])
    ideal = len(levels) * float(entropy(np.unique(levels, return_counts=True)[1], base=2)) / 8
    assert len(payload) >= 1000
    assert len(payload) <= 1.05 * ideal


def test_only_as_many_bits_are_used_as_the_levels_need() -> None:
    x = {"a": np.array([0, 1, -1, 0, 1] * 40, np.float32)}
    assert len(_sent(x, bits=2)[0]) < 60
    assert _sent({"a": np.zeros(10**5, np.float32)}, bits=8)[0].hex().startswith("230800")
    assert len(_sent({"a": np.zeros(10**5, np.float32)}, bits=8)[0]) == 7


@settings(max_examples=60, deadline=None)
@given(any_arrays(), st.integers(24, 300), st.booleans())
def test_a_budget_is_never_exceeded(arrays: Named, budget: int, stochastic: bool) -> None:
    assert len(_sent(arrays, budget_bytes=budget, stochastic=stochastic)[0]) <= budget


def test_a_budget_is_used_and_more_of_it_is_never_worse() -> None:
    arrays = heavy(MODEL, seed=4)
    x, errors = flat(arrays), []
    for budget in (100, 300, 1000, 2000, 4000, 8000, 16_000):
        payload, y = _sent(arrays, budget_bytes=budget)
        assert len(payload) <= budget
        assert len(payload) >= 0.97 * budget - 10 or budget == 16_000
        errors.append(float(np.linalg.norm(x - flat(y))))
    assert errors == sorted(errors, reverse=True)


def test_a_budget_beats_every_setting_of_bits_at_its_size() -> None:
    arrays = heavy(MODEL, seed=5)
    x = flat(arrays)
    for bits in (2, 3, 4, 5, 6):
        payload, y = _sent(arrays, bits=bits)
        _, best = _sent(arrays, budget_bytes=len(payload))
        assert np.linalg.norm(x - flat(best)) <= np.linalg.norm(x - flat(y))


def test_the_dead_zone_under_a_budget_is_near_the_best() -> None:
    arrays = {"a": np.random.default_rng(0).laplace(size=30_000).astype(np.float32)}
    for bits_each in (0.3, 1, 2, 4):
        budget = int(30_000 * bits_each / 8)
        chosen = np.linalg.norm(arrays["a"] - _sent(arrays, budget_bytes=budget)[1]["a"])
        tried = [
            np.linalg.norm(arrays["a"] - _sent(arrays, budget_bytes=budget, dead_zone=z)[1]["a"])
            for z in (0.0, 0.1, 0.2, 0.3, 0.4)
        ]
        assert chosen <= 1.01 * min(tried)


def test_settings_that_cannot_work_are_refused() -> None:
    wrong: list[dict[str, object]] = [
        {"bits": 1},
        {"bits": 9},
        {"dead_zone": 0.6},
        {"dead_zone": -0.1},
        {"dead_zone": 0.1, "stochastic": True},
        {"seed": -1},
        {"seed": 2**64},
        {"budget_bytes": 23},
    ]
    for knobs in wrong:
        with pytest.raises(ConfigError):
            make("quantized", **knobs)


def test_tensors_without_a_lane_send_their_scales_apart() -> None:
    arrays = {f"t{i}": np.full(1, i + 1, np.float32) for i in range(40)}
    _, decoded = _sent(arrays, bits=2, stochastic=True)
    assert np.array_equal(flat(decoded), flat(arrays))
    mixed = arrays | {f"e{i}": np.zeros(0, np.float32) for i in range(40)}
    assert np.array_equal(flat(_sent(mixed, bits=2, stochastic=True)[1]), flat(arrays))


@pytest.mark.parametrize(
    ("head", "lanes", "rest", "words"),
    [
        (0x07, 1, b"", "9 bits"),
        (0x30, 1, b"", "table kind 3"),
        (0x00, 1, b"\x3c" + b"\0" * 40, "lanes; expected at least 12"),
        (0x00, 100_001, b"\0" * 40, "a number above"),
        (0x00, 0, b"\0", "trailing"),
    ],
)
def test_forged_fields_are_refused(head: int, lanes: int, rest: bytes, words: str) -> None:
    shapes = {"a": (100_000,)}
    forged = seal(3, bytes([head]) + varint(lanes) + rest, Layout.of(shapes).digest)
    with pytest.raises(PayloadError, match=words):
        make("quantized").decode(forged, Limits(shapes, 1 << 20))
