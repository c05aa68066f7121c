import collections
import random
from collections.abc import Sequence
from fractions import Fraction
from functools import reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedge.errors import UpdateError
from fedge.update import Sum, Term, Update, weights_hash

Named = dict[str, NDArray[np.float32]]


def clients(seed: int, n: int, spread: float = 6) -> list[tuple[Named, int]]:
    """Changes of many magnitudes, whose sums in float would depend on the order."""
    rng = np.random.default_rng(seed)

    def values(*shape: int) -> NDArray[np.float32]:
        return (rng.normal(size=shape) * 10 ** rng.uniform(-spread, 1, shape)).astype(np.float32)

    return [({"w": values(3, 4), "b": values(3)}, int(rng.integers(1, 5000))) for _ in range(n)]


def updates(seed: int, n: int) -> list[Update]:
    return [Update.of(arrays, weight, 5) for arrays, weight in clients(seed, n)]


def added(some: Sequence[Update]) -> Update:
    return reduce(lambda a, b: a + b, some)


def grouped(some: list[Update], rng: random.Random) -> Update:
    """Their sum, added up as a random tree."""
    if len(some) == 1:
        return some[0]
    cut = rng.randint(1, len(some) - 1)
    return grouped(some[:cut], rng) + grouped(some[cut:], rng)


@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.randoms(use_true_random=False))
def test_order_and_grouping_of_arrival_change_no_bit(seed: int, n: int, rng: random.Random) -> None:
    some = updates(seed, n)
    straight = added(some)
    rng.shuffle(some)
    other = grouped(some, rng)
    assert (other.weight, other.base) == (straight.weight, straight.base)
    for name, value in straight.mean().items():
        assert value.tobytes() == other.mean()[name].tobytes()
        assert np.array_equal(straight.total[name], other.total[name])


def test_the_same_sum_in_float_would_depend_on_the_order() -> None:
    """So the law above is not true by itself."""
    some = [a["w"] * np.float32(w) for a, w in clients(0, 12)]
    assert np.sum(some, axis=0, dtype=np.float32).tobytes() != reduce(np.add, some[::-1]).tobytes()


@given(st.integers(0, 2**32 - 1), st.integers(1, 10))
def test_mean_is_the_weighted_mean_of_exact_arithmetic(seed: int, n: int) -> None:
    some = clients(seed, n)
    mean = added([Update.of(a, w, 0) for a, w in some]).mean()
    total = sum(w for _, w in some)
    for name in ("w", "b"):
        for index in np.ndindex(some[0][0][name].shape):
            exact = sum((Fraction(float(a[name][index])) * w for a, w in some), Fraction(0)) / total
            step = n * 2.0**-33 / total  # each update is rounded once, by half a step at most
            assert abs(Fraction(float(mean[name][index])) - exact) <= step + abs(exact) * Fraction(2) ** -24
            assert mean[name].dtype == np.float32


def test_mean_agrees_with_float64() -> None:
    some = clients(3, 40, spread=2)
    mean = added([Update.of(a, w, 0) for a, w in some]).mean()
    weights = [w for _, w in some]
    for name in ("w", "b"):
        reference = np.average([a[name].astype(np.float64) for a, _ in some], axis=0, weights=weights)
        np.testing.assert_allclose(mean[name], reference, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 2.0**30])
def test_values_that_are_not_finite_or_would_overflow_are_refused(value: float) -> None:
    arrays = {"w": np.array([0, 1, value], np.float32)}
    with pytest.raises(UpdateError, match="'w'"):
        Update.of(arrays, 1, 0)


@given(st.floats(2.0**-20, 2.0**40), st.integers(1, 10**9))
def test_a_single_update_never_wraps_around(value: float, weight: int) -> None:
    arrays = {"w": np.array([value, -value], np.float32)}
    try:
        total = Update.of(arrays, weight, 0).total["w"]
    except UpdateError:
        assert float(np.float32(value)) * weight >= 2**29.99
    else:
        assert abs(int(total[0])) < 2**62
        assert total[0] == -total[1]
        assert total[0] >= 0


@pytest.mark.parametrize("sign", [1, -1])
def test_a_sum_that_would_wrap_around_is_refused(sign: int) -> None:
    large = Update.of({"w": np.array([0, sign * 2.0**29.9], np.float32)}, 1, 0)
    two = large + large
    with pytest.raises(UpdateError, match="overflows"):
        two + two
    opposite = Update.of({"w": np.array([0, -sign * 2.0**29.9], np.float32)}, 1, 0)
    assert (two + opposite + opposite).total["w"].tolist() == [0, 0]


@pytest.mark.parametrize("weight", [0, -1])
def test_an_update_that_counts_for_nothing_is_refused(weight: int) -> None:
    with pytest.raises(UpdateError, match="weight"):
        Update.of({"w": np.ones(2, np.float32)}, weight, 0)


def _other(**changes: Any) -> Update:
    return Update.of(changes.get("arrays", {"w": np.ones(2, np.float32)}), 1, changes.get("base", 4))


@pytest.mark.parametrize(
    "other",
    [
        _other(base=5),
        _other(arrays={"v": np.ones(2, np.float32)}),
        _other(arrays={}),
        _other(arrays={"w": np.ones(2, np.float32), "v": np.ones(2, np.float32)}),
        _other(arrays={"w": np.ones(3, np.float32)}),
        _other(arrays={"w": np.ones(1, np.float32)}),
        _other(arrays={"w": np.ones((2, 1), np.float32)}),
        _other(arrays={"w": np.float32(1).reshape(())}),
    ],
)
def test_updates_of_other_weights_are_never_added(other: Update) -> None:
    mine = _other()
    with pytest.raises(UpdateError):
        mine + other
    with pytest.raises(UpdateError):
        other + mine


def test_adding_leaves_both_updates_as_they_were() -> None:
    one, two = updates(1, 2)
    before = [{n: v.copy() for n, v in u.total.items()} for u in (one, two)]
    one + two
    for update, kept in zip((one, two), before, strict=True):
        assert all(np.array_equal(update.total[n], kept[n]) for n in kept)


WEIGHTS: Named = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.array([0.5, -0.5], np.float32),
}


def _renamed() -> Named:
    return {"b.weight": WEIGHTS["a.weight"], "a.bias": WEIGHTS["a.bias"]}


def _changed(name: str, value: NDArray[np.float32]) -> Named:
    return {**WEIGHTS, name: value}


@pytest.mark.parametrize(
    "other",
    [
        _renamed(),
        dict(reversed(WEIGHTS.items())),
        _changed("a.weight", WEIGHTS["a.weight"].reshape(3, 2)),
        _changed("a.weight", WEIGHTS["a.weight"].reshape(6)),
        _changed("a.weight", np.ascontiguousarray(WEIGHTS["a.weight"][::-1])),
        _changed("a.weight", np.nextafter(WEIGHTS["a.weight"], np.float32(9))),
        _changed("a.weight", np.negative(WEIGHTS["a.weight"], where=WEIGHTS["a.weight"] == 0,
                                         out=WEIGHTS["a.weight"].copy())),  # minus zero
        {"a.weight": WEIGHTS["a.weight"]},
        {},
    ],
    ids=["name", "order", "shape", "flat", "values", "last bit", "minus zero", "one missing", "nothing"],
)  # fmt: skip
def test_the_hash_names_exactly_these_weights(other: Named) -> None:
    assert weights_hash(other) != weights_hash(WEIGHTS)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_the_hash_does_not_depend_on_the_memory_layout(seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(4, 5)).astype(np.float32)
    for same in (np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], x.astype(">f4")):
        assert weights_hash({"w": same}) == weights_hash({"w": x})
    assert len(weights_hash({"w": x})) == 8


def summed(some: Sequence[tuple[Named, int]], base: int) -> Update:
    total = Sum(base)
    for arrays, weight in some:
        total.add(Term.of(arrays, weight))
    found = total.update()
    assert found is not None
    return found


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.floats(0, 1))
def test_a_sum_in_place_has_the_bits_of_updates_added_one_by_one(seed: int, n: int, filled: float) -> None:
    """Whatever share of the entries is zero, and whether that is sent as 0 or as -0."""
    rng = np.random.default_rng(seed)
    some = clients(seed, n)
    for arrays, _ in some:
        for value in arrays.values():
            value[rng.random(value.shape) >= filled] = rng.choice([0.0, -0.0])
    whole, slow = summed(some, 7), added([Update.of(a, w, 7) for a, w in some])
    assert (whole.weight, whole.base, list(whole.total)) == (slow.weight, 7, list(slow.total))
    for name, value in slow.total.items():
        assert whole.total[name].dtype == np.int64
        assert np.array_equal(whole.total[name], value)
        assert whole.mean()[name].tobytes() == slow.mean()[name].tobytes()


def test_a_sum_of_nothing_is_nothing_and_one_taken_earlier_does_not_change() -> None:
    total = Sum(0)
    assert total.update() is None
    total.add(Term.of({"w": np.ones(2, np.float32)}, 3))
    early = total.update()
    total.add(Term.of({"w": np.ones(2, np.float32)}, 3))
    assert early is not None
    assert early.total["w"].tolist() == [3 << 32] * 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.4e38, 2.0**30])
@pytest.mark.parametrize("zeros", [0, 100])
def test_a_term_is_refused_where_an_update_is(value: float, zeros: int) -> None:
    arrays = {"v": np.ones(1, np.float32), "w": np.array([value] + [0] * zeros, np.float32)}
    with pytest.raises(UpdateError, match="'w'"):
        Term.of(arrays, 1)
    with pytest.raises(UpdateError, match="weight"):
        Term.of({"w": np.ones(2, np.float32)}, 0)


@pytest.mark.parametrize("zeros", [0, 100])
@pytest.mark.parametrize("sign", [1, -1])
def test_nothing_of_a_term_that_would_overflow_is_added(sign: int, zeros: int) -> None:
    total = Sum(0)
    large = Term.of({"w": np.array([1, sign * 2.0**29.9] + [0] * zeros, np.float32)}, 1)
    for _ in range(2):
        total.add(large)
    before = total.update()
    with pytest.raises(UpdateError, match="overflows"):
        collections.deque((total.add(large) for _ in range(3)), maxlen=0)
    after = total.update()
    assert before is not None
    assert after is not None
    assert after.total["w"][0] == after.weight << 32
    assert int(after.total["w"][1]) == after.weight * int(before.total["w"][1]) // 2


@pytest.mark.parametrize(
    "other",
    [
        {"v": np.ones(2, np.float32)},
        {"w": np.ones(3, np.float32)},
        {"w": np.ones((2, 1), np.float32)},
        {"w": np.ones(1, np.float32), "v": np.ones(1, np.float32)},
    ],
)
def test_terms_of_other_weights_are_never_summed(other: Named) -> None:
    total = Sum(0)
    total.add(Term.of({"w": np.ones(2, np.float32)}, 1))
    with pytest.raises(UpdateError):
        total.add(Term.of(other, 1))
