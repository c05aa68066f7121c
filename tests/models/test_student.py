import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fedge.errors import ConfigError, PayloadError
from fedge.models.student import (
    SIZES,
    Conv,
    Normalised,
    Numerics,
    StudentSpec,
    activations,
    build_spec,
    forward,
)

SMALL = StudentSpec(2, 9, 3, (Conv("one", 2, 4, 5, 2), Conv("two", 4, 3, 4, 3)))
SPECS = st.builds(
    build_spec, st.sampled_from(sorted(SIZES)), st.integers(1, 24), st.integers(1, 300), st.integers(1, 30)
)


def random_params(spec: StudentSpec, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in spec.shapes().items()}


def naive(spec: StudentSpec, params: dict[str, Tensor], window: NDArray[np.float64]) -> list[float]:
    """Logits of one window ``[channels, time]``, sum by sum."""
    arrays = {n: p.numpy() for n, p in params.items()}
    x = window
    for c in spec.convs:
        weight, bias = arrays[f"{c.name}.weight"], arrays[f"{c.name}.bias"]
        padding = c.kernel // 2
        starts = range(-padding, x.shape[1] + padding - c.kernel + 1, c.stride)
        y = np.zeros((c.outputs, len(starts)))
        for o in range(c.outputs):
            for place, start in enumerate(starts):
                total = bias[o]
                for i in range(c.inputs):
                    for k in range(c.kernel):
                        if 0 <= start + k < x.shape[1]:
                            total += weight[o, i, k] * x[i, start + k]
                y[o, place] = max(total, 0)
        x = y
    mean = [sum(row) / len(row) for row in x.tolist()]
    head = zip(arrays["head.weight"].tolist(), arrays["head.bias"].tolist(), strict=True)
    return [b + sum(w * m for w, m in zip(row, mean, strict=True)) for row, b in head]


@pytest.mark.parametrize("spec", [SMALL, build_spec("tiny", 1, 4, 2), build_spec("tiny", 3, 19, 4)])
def test_the_forward_pass_is_what_the_description_says(spec: StudentSpec) -> None:
    params = random_params(spec)
    x = torch.randn(
        2, spec.channels, spec.time, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    got = forward(spec, params, x)
    for window, logits in zip(x.numpy(), got.numpy(), strict=True):
        np.testing.assert_allclose(logits, naive(spec, params, window), rtol=1e-9)


@pytest.mark.parametrize(("size", "thousands"), [("tiny", 5.1), ("small", 19.0), ("medium", 56.2)])
def test_parameter_counts_are_as_documented(size: str, thousands: float) -> None:
    spec = build_spec(size, channels=6, time=128, classes=7)
    assert spec.parameters() == pytest.approx(thousands * 1000, rel=0.01)
    assert spec.parameters() == sum(p.numel() for p in Normalised(spec).folded().values())


@settings(max_examples=25, deadline=None)
@given(SPECS)
def test_multiply_adds_are_those_that_torch_counts(spec: StudentSpec) -> None:
    params = {n: p.float() for n, p in random_params(spec).items()}
    with FlopCounterMode(display=False) as counter:
        forward(spec, params, torch.zeros(1, spec.channels, spec.time))
    assert counter.get_total_flops() == 2 * spec.multiply_adds()


@given(SPECS)
def test_any_window_has_a_student_that_fits_it(spec: StudentSpec) -> None:
    left = spec.time
    for c in spec.convs:
        left = (left + 2 * (c.kernel // 2) - c.kernel) // c.stride + 1
    assert left >= min(spec.time, 4)
    assert list(spec.shapes()) == [f"{layer}.{part}" for layer in [*(c.name for c in spec.convs), "head"]
                                   for part in ("weight", "bias")]  # fmt: skip
    assert activations(spec) == ["input", *(c.name for c in spec.convs), "mean"]


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="known: tiny, small, medium"):
        build_spec("huge", 1, 8, 2)


def test_numerics_see_every_tensor_once_and_in_order() -> None:
    seen: list[str] = []

    def weights(layer: str, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(f"weights of {layer}")
        return weight, bias

    def activation(name: str, values: Tensor) -> Tensor:
        seen.append(name)
        return values

    x = torch.zeros(1, 2, 9, dtype=torch.float64)
    forward(SMALL, random_params(SMALL), x, Numerics(weights, activation))
    expected = ["input", "weights of one", "one", "weights of two", "two", "mean", "weights of head"]
    assert seen == expected
    assert [s for s in seen if not s.startswith("weights")] == activations(SMALL)


@pytest.mark.parametrize("size", sorted(SIZES))
@pytest.mark.parametrize("time", [4, 9, 128])
def test_folding_batchnorm_away_changes_nothing(size: str, time: int) -> None:
    generator = torch.Generator().manual_seed(time)
    model = Normalised(build_spec(size, 3, time, 5)).double()
    with torch.no_grad():
        for value in [*model.parameters(), *model.buffers()]:
            if value.is_floating_point():
                value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64))
        for norm in model.norms:
            norm.get_buffer("running_var").abs_().add_(1e-3)
    x = torch.randn(8, 3, time, generator=generator, dtype=torch.float64)
    folded = model.folded()
    assert {n: tuple(p.shape) for n, p in folded.items()} == model.spec.shapes()
    assert list(folded) == list(model.spec.shapes())
    with torch.no_grad():
        expected = model.eval()(x)
    torch.testing.assert_close(forward(model.spec, folded, x), expected, rtol=1e-9, atol=1e-9)


def test_folded_weights_are_copies() -> None:
    model = Normalised(SMALL)
    kept = {n: p.clone() for n, p in model.folded().items()}
    folded = model.folded()
    for value in folded.values():
        value.add_(1)
    assert all(torch.equal(p, kept[n]) for n, p in model.folded().items())
    assert not any(p.requires_grad for p in folded.values())


@given(SPECS)
def test_a_description_survives_json(spec: StudentSpec) -> None:
    assert StudentSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


GOOD: dict[str, Any] = json.loads(json.dumps(SMALL.to_dict()))


def _changed(conv: int | None = None, /, **changes: Any) -> dict[str, Any]:
    """The good description with some keys changed, of itself or of one layer."""
    raw: dict[str, Any] = json.loads(json.dumps(GOOD))
    (raw if conv is None else raw["convs"][conv]).update(changes)
    return raw


HUGE = _changed(
    channels=60_000,
    convs=[{"name": "a", "inputs": 60_000, "outputs": 60_000, "kernel": 60_000, "stride": 1}],
)
NO_LAYERS: list[object] = [None, 5, "ab", {}, [], [5], [{}], [None], [[["name", "a"]]]]
HOSTILE: list[object] = [
    None, 5, "student", [], {}, [1], {1: 2, "convs": []},
    {k: v for k, v in GOOD.items() if k != "time"},
    _changed(extra=1),
    *(_changed(convs=c) for c in NO_LAYERS),
    _changed(convs=[{**GOOD["convs"][0], "name": f"c{i}", "outputs": 2} for i in range(33)]),
    *(_changed(**{key: value}) for key in ("channels", "time", "classes")
      for value in (0, -1, True, 1.0, "2", None, [2], float("nan"), 65_537, 10**30)),
    *(_changed(0, **{key: value}) for key in ("inputs", "outputs", "kernel", "stride")
      for value in (0, -1, True, 4.0, "4", None, float("inf"), 65_537, 10**30)),
    *(_changed(0, name=name) for name in ("", "a.b", "a b", "../x", "1a", "two", "head", "input", "mean",
                                          None, 5, ["one"], "a\0")),
    _changed(0, extra=1),
    _changed(1, inputs=5),
    _changed(channels=3),
    HUGE,
]  # fmt: skip


@pytest.mark.parametrize("raw", HOSTILE, ids=lambda raw: repr(raw)[:60])
def test_a_hostile_description_is_refused(raw: object) -> None:
    with pytest.raises(PayloadError, match="not a description of a student"):
        StudentSpec.from_dict(raw)


def test_the_description_that_the_hostile_ones_are_made_of_is_good() -> None:
    assert StudentSpec.from_dict(_changed()) == SMALL


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**70) | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(GOOD)), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=300)
@given(st.sampled_from([*GOOD, *GOOD["convs"][0]]), JSON, st.integers(0, 1))
def test_any_other_value_is_refused_or_makes_a_whole_student(key: str, value: object, conv: int) -> None:
    raw = _changed(**{key: value}) if key in GOOD else _changed(conv, **{key: value})
    try:
        spec = StudentSpec.from_dict(raw)
    except PayloadError:
        return
    assert len(spec.shapes()) == 2 * len(spec.convs) + 2
    assert spec.parameters() <= 50_000_000
