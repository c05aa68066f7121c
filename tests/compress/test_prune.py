import itertools
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedge.compress.prune import (
    LEVELS,
    LayerSensitivity,
    allocate,
    gradient,
    least_mask,
    magnitude_mask,
    masks,
    measure,
    prunable,
    taylor,
)
from fedge.errors import ConfigError
from fedge.models.student import forward
from fedge.models.student_families import FAMILIES, SIZES, build_spec

from .students import noise, spec_for, weights


@st.composite
def sensitivities(draw: st.DrawFn, most_layers: int = 5) -> list[LayerSensitivity]:
    """Layers of any size with losses that mostly rise, as measured ones do, but need not."""
    count = draw(st.integers(1, most_layers))
    losses = st.lists(st.floats(0, 10), min_size=len(LEVELS), max_size=len(LEVELS))
    return [LayerSensitivity(f"l{i}", draw(st.integers(1, 3000)), tuple(draw(losses))) for i in range(count)]


def zeros(rows: list[LayerSensitivity], share: float) -> dict[str, int]:
    """How many weights of each layer ``allocate`` has set to zero, as ``magnitude_mask`` counts them."""
    shares = allocate(rows, share)
    assert list(shares) == [r.name for r in rows]
    return {r.name: int((magnitude_mask(torch.ones(r.weights), shares[r.name]) == 0).sum()) for r in rows}


@given(sensitivities(), st.floats(0, 0.9))
def test_the_stated_share_is_met_to_the_weight(rows: list[LayerSensitivity], share: float) -> None:
    total = sum(r.weights for r in rows)
    most = sum(round(LEVELS[-1] * r.weights) for r in rows)
    assert sum(zeros(rows, share).values()) == min(round(share * total), most)


@given(sensitivities(), st.floats(0.9, 0.95))
def test_no_layer_passes_the_highest_level(rows: list[LayerSensitivity], share: float) -> None:
    found = zeros(rows, share)
    assert all(found[r.name] <= round(LEVELS[-1] * r.weights) for r in rows)


def test_the_highest_share_that_a_scenario_may_state_fits_every_student() -> None:
    """Rounding per layer can leave fewer places than the share of the whole asks for."""
    for family, size, channels, classes in itertools.product(FAMILIES, SIZES, (1, 3, 6), (2, 3, 7, 16)):
        shapes = build_spec(family, size, (128, channels), classes).shapes()
        rows = [LayerSensitivity(n, torch.Size(s).numel(), LEVELS) for n, s in shapes.items() if len(s) > 1]
        total = sum(r.weights for r in rows)
        assert abs(sum(zeros(rows, 0.95).values()) - 0.95 * total) <= len(rows)


@given(sensitivities(), st.floats(0, 0.95), st.floats(0, 0.95))
def test_more_pruning_never_takes_a_weight_back(rows: list[LayerSensitivity], a: float, b: float) -> None:
    fewer, more = zeros(rows, min(a, b)), zeros(rows, max(a, b))
    assert all(fewer[n] <= more[n] for n in fewer)


def _rise(rows: list[LayerSensitivity], counts: Mapping[str, int]) -> float:
    """What pruning costs altogether, if the layers' losses add up."""
    return sum(float(np.interp(counts[r.name] / r.weights, LEVELS, r.losses)) - r.losses[0] for r in rows)


def _best(rows: list[LayerSensitivity], wanted: int) -> float:
    """The least possible rise, found by trying everything."""
    ranges = [range(round(LEVELS[-1] * r.weights) + 1) for r in rows[:-1]]
    rises = []
    for counts in itertools.product(*ranges):
        last = wanted - sum(counts)
        if 0 <= last <= round(LEVELS[-1] * rows[-1].weights):
            names = [r.name for r in rows]
            rises.append(_rise(rows, dict(zip(names, (*counts, last), strict=True))))
    return min(rises)


@pytest.mark.parametrize("share", [0.1, 0.35, 0.6, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_where_the_loss_rises_steadily_no_other_choice_is_better(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    rows = [LayerSensitivity(f"l{i}", int(n), tuple(1 + rng.uniform(0.1, 3) * n * np.array(LEVELS)))
            for i, n in enumerate(rng.choice([20, 40, 60], 3))]  # fmt: skip
    wanted = round(share * sum(r.weights for r in rows))
    assert _rise(rows, zeros(rows, share)) == pytest.approx(_best(rows, wanted), abs=1e-9)


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6])
@pytest.mark.parametrize("seed", range(4))
def test_where_the_loss_rises_faster_and_faster_the_choice_is_near_the_best(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    rows = [LayerSensitivity(f"l{i}", int(n), tuple(1 + rng.uniform(0.1, 3) * n * np.array(LEVELS) ** 2))
            for i, n in enumerate(rng.choice([20, 40, 60], 3))]  # fmt: skip
    counts = zeros(rows, share)
    assert _rise(rows, counts) <= 1.01 * _best(rows, sum(counts.values()))


def test_a_sensitive_layer_keeps_more_of_its_weights() -> None:
    cheap, dear = (tuple(f * s for s in LEVELS) for f in (0.1, 10))
    shares = allocate([LayerSensitivity("dear", 500, dear), LayerSensitivity("cheap", 500, cheap)], 0.4)
    assert shares["cheap"] == pytest.approx(0.8)
    assert shares["dear"] == 0


def test_the_same_rise_hurts_less_in_a_larger_layer() -> None:
    rise = tuple(s * s for s in LEVELS)
    shares = allocate([LayerSensitivity("few", 100, rise), LayerSensitivity("many", 1000, rise)], 0.4)
    assert shares["many"] > shares["few"]


def test_a_loss_that_falls_by_chance_is_no_reason_to_prune_more_than_a_flat_one() -> None:
    flat, falling = (1.0,) * len(LEVELS), (1.0, *(0.9 - 0.01 * i for i in range(len(LEVELS) - 1)))
    one = allocate([LayerSensitivity("a", 100, flat), LayerSensitivity("b", 100, falling)], 0.4)
    assert one == allocate([LayerSensitivity("a", 100, flat), LayerSensitivity("b", 100, flat)], 0.4)


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.floats(0, 1))
def test_the_smallest_magnitudes_go_and_of_equals_the_first(seed: int, n: int, share: float) -> None:
    weight = torch.from_numpy(np.random.default_rng(seed).integers(-3, 4, n).astype(np.float32))
    order = sorted(range(n), key=lambda i: (abs(float(weight[i])), i))
    gone = set(order[: round(share * n)])
    assert magnitude_mask(weight, share).tolist() == [0.0 if i in gone else 1.0 for i in range(n)]


def test_a_mask_has_the_shape_of_its_weight() -> None:
    weight = torch.arange(24.0).reshape(2, 3, 4)
    mask = magnitude_mask(weight, 0.5)
    assert mask.shape == weight.shape
    assert mask.flatten().tolist() == [0.0] * 12 + [1.0] * 12


PARAMS = {
    "a.weight": torch.tensor([[1.0, -2.0], [3.0, -4.0]]),
    "a.bias": torch.tensor([0.0, 1e-9]),
    "b.weight": torch.arange(1.0, 11.0).reshape(1, 2, 5),
}


def test_biases_are_never_pruned() -> None:
    assert prunable(PARAMS) == ["a.weight", "b.weight"]
    found = masks(PARAMS, {"a.weight": 0.5})
    assert found["a.weight"].tolist() == [[0, 0], [1, 1]]
    assert bool((found["a.bias"] == 1).all())
    assert bool((found["b.weight"] == 1).all())
    assert {n: m.shape for n, m in found.items()} == {n: p.shape for n, p in PARAMS.items()}


def test_each_layer_is_measured_alone() -> None:
    before = {n: p.clone() for n, p in PARAMS.items()}

    def loss(params: Mapping[str, Tensor]) -> float:
        changed = [n for n in PARAMS if not torch.equal(params[n], PARAMS[n])]
        assert len(changed) <= 1
        return float(sum(p.abs().sum() for p in params.values()))

    rows = measure(PARAMS, loss)
    total = float(sum(p.abs().sum() for p in PARAMS.values()))
    assert [(r.name, r.weights) for r in rows] == [("a.weight", 4), ("b.weight", 10)]
    # b holds 1..10: at a level of 10 k percent, 1..k are gone
    gone = [sum(range(1, round(10 * s) + 1)) for s in LEVELS]
    assert rows[1].losses == pytest.approx([total - g for g in gone])
    assert rows[0].losses[0] == pytest.approx(total)
    assert all(torch.equal(PARAMS[n], before[n]) for n in PARAMS)


Importances = dict[str, Tensor]


@st.composite
def importances(draw: st.DrawFn) -> Importances:
    """Tensors of any size with many equal values."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sizes = draw(st.lists(st.integers(1, 60), min_size=1, max_size=4))
    top = draw(st.sampled_from([2, 10, 10**6]))
    return {f"l{i}.weight": torch.from_numpy(rng.integers(0, top, (1, n)).astype(np.float32))
            for i, n in enumerate(sizes)}  # fmt: skip


def naive_ranking(importance: Importances, share: float) -> dict[str, set[int]]:
    """What goes: the least important of all, one by one; a layer that has lost its most is passed over."""
    total = sum(v.numel() for v in importance.values())
    most = {n: round(LEVELS[-1] * v.numel()) for n, v in importance.items()}
    order = sorted(
        (float(x), layer, i, name)
        for layer, (name, v) in enumerate(importance.items())
        for i, x in enumerate(v.flatten())
    )
    gone: dict[str, set[int]] = {n: set() for n in importance}
    for _, _, i, name in order:
        if sum(map(len, gone.values())) < round(share * total) and len(gone[name]) < most[name]:
            gone[name].add(i)
    return gone


@given(importances(), st.floats(0, 0.95))
def test_by_importance_the_least_important_weights_of_all_layers_go(found: Importances, share: float) -> None:
    expected = naive_ranking(found, share)
    got = masks(found, allocate(found, share), found)
    assert {n: {i for i, m in enumerate(v.flatten().tolist()) if m == 0} for n, v in got.items()} == expected


def test_no_layer_loses_all_of_its_weights_however_little_they_matter() -> None:
    found = {"dead.weight": torch.zeros(10, 10), "alive.weight": torch.rand(10, 10) + 1}
    assert allocate(found, 0.6) == {"dead.weight": 0.95, "alive.weight": pytest.approx(0.25)}


def test_masks_without_importance_go_by_magnitude() -> None:
    shares = {"a.weight": 0.5, "b.weight": 0.3}
    plain, asked = masks(PARAMS, shares), masks(PARAMS, shares, {n: PARAMS[n].abs() for n in shares})
    assert all(torch.equal(plain[n], asked[n]) for n in PARAMS)
    other = masks(PARAMS, shares, {n: -PARAMS[n].abs() for n in shares})
    assert other["a.weight"].tolist() == [[1, 1], [0, 0]]
    assert torch.equal(least_mask(PARAMS["a.weight"].abs(), 0.5), magnitude_mask(PARAMS["a.weight"], 0.5))


def test_taylor_is_the_mean_square_of_gradient_times_weight() -> None:
    gradients = [{n: torch.full_like(p, g) for n, p in PARAMS.items()} for g in (1.0, -3.0)]
    found = taylor(PARAMS, iter(gradients))
    assert list(found) == ["a.weight", "b.weight"]
    torch.testing.assert_close(found["a.weight"], 5 * PARAMS["a.weight"].square())  # not (1 - 3)^2 / 4
    with pytest.raises(ConfigError, match="at least one batch"):
        taylor(PARAMS, [])


@pytest.mark.parametrize(("family", "window"), [("plain", (30, 2)), ("separable", (9, 8, 1))])
def test_taylor_foretells_what_losing_one_weight_does_to_the_loss(
    family: str, window: tuple[int, ...]
) -> None:
    spec = spec_for(family, "tiny", window)
    params = {n: p.double() for n, p in weights(spec).items()}
    x = torch.from_numpy(noise(16, spec)).double()

    def loss(p: Mapping[str, Tensor]) -> Tensor:
        return forward(spec, p, x).square().mean()

    before = {n: p.clone() for n, p in params.items()}
    found = taylor(params, [gradient(params, loss)])
    assert all(torch.equal(before[n], params[n]) and not params[n].requires_grad for n in params)
    for name, importance in found.items():
        at = int(importance.flatten().argmax())
        small = 1e-5
        moved = params[name].clone()
        moved.view(-1)[at] *= 1 - small  # a little of the way to zero
        change = float(loss({**params, name: moved}) - loss(params)) / small
        assert change**2 == pytest.approx(float(importance.flatten()[at]), rel=1e-2)


def test_a_parameter_that_the_loss_does_not_see_has_no_gradient() -> None:
    found = gradient(PARAMS, lambda p: p["a.weight"].sum())
    assert bool((found["a.weight"] == 1).all())
    assert not found["b.weight"].any()
