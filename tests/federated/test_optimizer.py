import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedge.errors import ConfigError
from fedge.federated.optimizer import OPTIMIZERS, Optimizer
from fedge.packing import pack, unpack

Floats = NDArray[np.float32]
SHAPES = {"conv.weight": (3, 2, 5), "conv.bias": (3,), "empty": (0,)}

every_optimizer = pytest.mark.parametrize("name", sorted(OPTIMIZERS))


def rounds(number: int, seed: int = 0, zeros: float = 0.5) -> list[dict[str, Floats]]:
    """Mean updates as they are: small, and most entries of many rounds exactly zero."""
    rng = np.random.default_rng(seed)
    return [
        {
            n: (rng.normal(size=s, scale=0.01) * (rng.random(s) >= zeros)).astype(np.float32)
            for n, s in SHAPES.items()
        }
        for _ in range(number)
    ]


def run(how: Optimizer, updates: list[dict[str, Floats]], share: float = 0.25) -> list[dict[str, Floats]]:
    """The steps of all rounds."""
    optimizer, steps = OPTIMIZERS[how.name], []
    state = optimizer.init({n: u.shape for n, u in updates[0].items()})
    for update in updates:
        state, step = optimizer.step(how, state, update, share)
        steps.append(step)
    return steps


def one(how: Optimizer, entries: list[float], share: float = 0.25) -> list[float]:
    """The steps of a single entry."""
    updates = [{"w": np.array([u], np.float32)} for u in entries]
    return [float(s["w"][0]) for s in run(how, updates, share)]


# One entry after the other in Python's own numbers, as the papers state it.


def avg(how: Optimizer, entries: list[float], _share: float) -> list[float]:
    return [how.learning_rate * u for u in entries]


def avgm(how: Optimizer, entries: list[float], _share: float) -> list[float]:
    """Hsu et al. 2019 with the sum written out: every earlier update, faded."""
    return [
        how.learning_rate * sum(how.momentum ** (t - i) * entries[i] for i in range(t + 1))
        for t in range(len(entries))
    ]


def adam(how: Optimizer, entries: list[float], _share: float) -> list[float]:
    """Kingma and Ba 2015, algorithm 1, with the corrected moments and an epsilon that is corrected back."""
    m = v = 0.0
    steps = []
    for t, u in enumerate(entries, 1):
        m = how.momentum * m + (1 - how.momentum) * u
        v = how.beta2 * v + (1 - how.beta2) * u**2
        m_hat, v_hat = m / (1 - how.momentum**t), v / (1 - how.beta2**t)
        tau_hat = how.tau / math.sqrt(1 - how.beta2**t)
        steps.append(how.learning_rate * m_hat / (math.sqrt(v_hat) + tau_hat))
    return steps


def dyn(how: Optimizer, entries: list[float], share: float) -> list[float]:
    """Acar et al. 2021, algorithm 1, on weights instead of steps."""
    weight, h, steps, clients = 0.0, 0.0, [], 40
    for u in entries:
        present = [weight + u] * round(share * clients)
        h -= how.alpha * sum(w - weight for w in present) / clients
        new = sum(present) / len(present) - h / how.alpha
        steps.append(how.learning_rate * (new - weight))
        weight = new
    return steps


REFERENCES: Mapping[str, Callable[[Optimizer, list[float], float], list[float]]] = {
    "avg": avg,
    "avgm": avgm,
    "adam": adam,
    "dyn": dyn,
}


@every_optimizer
@settings(max_examples=50)
@given(
    st.lists(st.just(0.0) | st.floats(-1, 1, width=32), min_size=1, max_size=12),
    st.floats(0.01, 10),
    st.floats(0, 0.95),
    st.floats(0, 0.999),
    st.floats(1e-3, 1),
    st.sampled_from([0.025, 0.25, 1.0]),
)
def test_each_entry_moves_as_the_paper_says(
    name: str, entries: list[float], rate: float, momentum: float, beta2: float, small: float, share: float
) -> None:
    how = Optimizer(name, rate, momentum, beta2, tau=small, alpha=small)
    expected = REFERENCES[name](how, entries, share)
    np.testing.assert_allclose(one(how, entries, share), expected, rtol=1e-4, atol=1e-4 * rate)


@every_optimizer
def test_arrays_are_moved_entry_by_entry(name: str) -> None:
    how, updates = Optimizer(name, 0.1), rounds(6)
    steps = run(how, updates)
    for key, shape in SHAPES.items():
        for at in np.ndindex(shape):
            alone = one(how, [float(u[key][at]) for u in updates])
            assert [float(s[key][at]) for s in steps] == alone


def test_plain_averaging_is_federated_averaging_to_the_bit() -> None:
    (update,) = rounds(1)
    (step,) = run(Optimizer(), [update])
    assert all(np.array_equal(step[n], update[n]) for n in SHAPES)


def test_momentum_of_a_constant_update_is_a_geometric_sum() -> None:
    steps = one(Optimizer("avgm", momentum=0.9), [0.01] * 50)
    np.testing.assert_allclose(steps, [0.01 * (1 - 0.9**t) / (1 - 0.9) for t in range(1, 51)], rtol=1e-5)


@pytest.mark.parametrize("size", [1e-2, 1.0, 100.0])
def test_adam_steps_by_its_learning_rate_whatever_the_size_of_a_constant_update(size: float) -> None:
    """From the first round on: that is what the bias correction is for."""
    steps = one(Optimizer("adam", 0.05, tau=1e-9), [size] * 30)
    np.testing.assert_allclose(steps, 0.05, rtol=1e-4)


def test_tau_bounds_how_far_adam_adapts() -> None:
    """Far below tau an entry moves in proportion to its update."""
    small, smaller = (one(Optimizer("adam", tau=1.0), [u] * 5)[-1] for u in (1e-5, 1e-6))
    assert small / smaller == pytest.approx(10, rel=1e-3)


def test_without_memory_momentum_is_plain_averaging() -> None:
    updates = rounds(4)
    for a, b in zip(run(Optimizer("avgm", momentum=0), updates), run(Optimizer(), updates), strict=True):
        assert all(np.array_equal(a[n], b[n]) for n in SHAPES)


def test_dyn_goes_on_by_the_share_of_all_it_has_seen() -> None:
    """With everyone there, a constant update u becomes u (1 + t) in round t; alpha cancels on the server."""
    for alpha in (0.001, 0.01, 1.0):
        steps = one(Optimizer("dyn", alpha=alpha), [0.5] * 8, share=1.0)
        np.testing.assert_allclose(steps, [0.5 * (1 + t) for t in range(1, 9)], rtol=1e-5)
        half = one(Optimizer("dyn", alpha=alpha), [0.5] * 8, share=0.5)
        np.testing.assert_allclose(half, [0.5 * (1 + 0.5 * t) for t in range(1, 9)], rtol=1e-5)


def test_dyn_with_its_clients_reaches_the_optimum_that_averaging_misses() -> None:
    """Quadratic clients of unlike curvature, each solved to the end with the clients' half of FedDyn.

    A mean of the minima is where averaging ends; the minimum of the mean is what is wanted.
    """
    curvature, centre, alpha = np.array([1.0, 9.0, 2.0, 0.5]), np.array([1.0, -1.0, 4.0, 2.0]), 1.0
    optimum = (curvature * centre).sum() / curvature.sum()
    how, gradient, weight = Optimizer("dyn", alpha=alpha), np.zeros(4), 0.0
    state = OPTIMIZERS["dyn"].init({"w": (1,)})
    for _ in range(200):
        local = (curvature * centre + gradient + alpha * weight) / (curvature + alpha)
        gradient = gradient - alpha * (local - weight)
        update = {"w": np.array([(local - weight).mean()], np.float32)}
        state, step = OPTIMIZERS["dyn"].step(how, state, update, 1.0)
        weight += float(step["w"][0])
    assert weight == pytest.approx(optimum, abs=1e-3)
    assert abs(centre.mean() - optimum) > 0.5


@every_optimizer
def test_rounds_without_any_change_leave_zeros(name: str) -> None:
    """Nothing moves, nothing becomes NaN."""
    nothing = [{n: np.zeros(s, np.float32) for n, s in SHAPES.items()}] * 5
    for step in run(Optimizer(name), nothing):
        assert all(np.array_equal(v, np.zeros(SHAPES[n])) for n, v in step.items())


@every_optimizer
@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e6])
def test_extreme_updates_give_finite_steps(name: str, size: float) -> None:
    how = Optimizer(name, tau=1e-9, alpha=1e-3)
    updates = [{"w": np.array([size, -size, 0], np.float32)} for _ in range(20)]
    assert all(bool(np.isfinite(s["w"]).all()) for s in run(how, updates))


@every_optimizer
def test_steps_and_state_are_float32_whatever_the_settings(name: str) -> None:
    optimizer = OPTIMIZERS[name]
    state, (update,) = optimizer.init(SHAPES), rounds(1)
    after, step = optimizer.step(Optimizer(name, 1 / 3), state, update, 1 / 3)
    assert {n: v.shape for n, v in step.items()} == SHAPES
    assert all(v.dtype == np.float32 for v in step.values())
    assert {k: (v.dtype, v.shape) for k, v in after.items()} == {
        k: (v.dtype, v.shape) for k, v in state.items()
    }
    assert all(v.dtype == np.float32 for k, v in after.items() if k != "rounds")


@every_optimizer
def test_the_order_in_which_arrays_are_named_changes_no_bit(name: str) -> None:
    updates = rounds(5)
    backwards = [dict(reversed(list(u.items()))) for u in updates]
    for a, b in zip(run(Optimizer(name), updates), run(Optimizer(name), backwards), strict=True):
        assert all(np.array_equal(a[n], b[n]) for n in SHAPES)


@every_optimizer
def test_what_is_given_is_never_changed(name: str) -> None:
    optimizer, updates = OPTIMIZERS[name], rounds(3)
    state: Mapping[str, NDArray[Any]] = optimizer.init(SHAPES)
    for update in updates:
        kept = {**{k: v.copy() for k, v in state.items()}, **{n: u.copy() for n, u in update.items()}}
        for array in (*state.values(), *update.values()):
            array.setflags(write=False)
        first = optimizer.step(Optimizer(name), state, update, 0.5)
        again = optimizer.step(Optimizer(name), state, update, 0.5)
        now = {**state, **update}
        assert all(np.array_equal(now[k], v) for k, v in kept.items())
        assert all(np.array_equal(first[1][n], again[1][n]) for n in SHAPES)
        state = first[0]


@every_optimizer
def test_a_stored_state_goes_on_with_the_same_bits(name: str) -> None:
    optimizer, how, updates = OPTIMIZERS[name], Optimizer(name), rounds(6)
    expected, state = run(how, updates), optimizer.init(SHAPES)
    for update, wanted in zip(updates, expected, strict=True):
        state, step = optimizer.step(how, unpack(pack({}, state))[1], update, 0.25)
        assert all(np.array_equal(step[n], wanted[n]) for n in SHAPES)


@pytest.mark.parametrize("name", ["avgm", "adam", "dyn"])
def test_a_state_of_another_optimizer_or_of_other_arrays_is_refused(name: str) -> None:
    how, (update,) = Optimizer(name), rounds(1)
    step = OPTIMIZERS[name].step
    for other in sorted({"avg", "avgm", "adam", "dyn"} - {name}):
        with pytest.raises(ConfigError, match="state has no"):
            step(how, OPTIMIZERS[other].init(SHAPES), update, 0.5)
    for shapes in ({"conv.weight": (3, 2, 5)}, {**SHAPES, "conv.bias": (1,)}):
        with pytest.raises(ConfigError, match=r"state has no '\w+/\w+(.bias)?' float32\[\d+\]"):
            step(how, OPTIMIZERS[name].init(shapes), update, 0.5)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, math.nan])
def test_an_impossible_share_of_clients_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="share of the clients"):
        OPTIMIZERS["dyn"].step(Optimizer("dyn"), OPTIMIZERS["dyn"].init(SHAPES), rounds(1)[0], share)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        *[(n, "learning_rate", v) for n in sorted(OPTIMIZERS) for v in (0.0, -1.0, math.nan, math.inf)],
        *[("avgm", "momentum", v) for v in (-0.1, 1.0, math.nan)],
        *[("adam", "beta2", v) for v in (-0.1, 1.0, math.nan)],
        *[("adam", "tau", v) for v in (0.0, -1.0, math.nan, 1e-50)],
        *[("dyn", "alpha", v) for v in (0.0, -1.0, math.nan, 1e-50)],
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(name: str, key: str, value: float) -> None:
    good = Optimizer(name)
    with pytest.raises(ConfigError, match=key):
        replace(good, **{key: value})  # type: ignore[arg-type]


def test_a_setting_of_another_optimizer_is_ignored() -> None:
    assert one(Optimizer("avg", alpha=0.0, tau=0.0), [0.5]) == [0.5]


def test_an_unknown_optimizer_is_answered_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"unknown server optimizer 'adams'; did you mean 'adam'\?"):
        Optimizer("adams")
