import itertools
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fedge.errors import PayloadError
from fedge.models.student import (
    SPREAD_FLOOR,
    Conv,
    Number,
    Numerics,
    Reconstruction,
    StudentSpec,
    activations,
    forward,
    scores,
    summary,
)
from fedge.models.student_families import FAMILIES, SIZES, build_spec

SMALL = StudentSpec(2, (9,), 3, (Conv("one", 2, 4, 5, 2), Conv("two", 4, 3, 4, 3)))
DEEP = StudentSpec(
    2, (9,), 3, (Conv("on_input", 2, 2, 3, 1, 2), Conv("one", 2, 4, 5, 2), Conv("two", 4, 4, 4, 3, 4))
)
IMAGE = StudentSpec(
    2, (7, 6), 3, (Conv("one", 2, 4, 3, 2), Conv("two", 4, 4, 4, 1, 4), Conv("three", 4, 3, 1, 1))
)
WINDOWS = st.tuples(st.integers(1, 300), st.integers(1, 24))
IMAGES = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 4))
SPECS = st.builds(
    build_spec,
    st.sampled_from(sorted(FAMILIES)),
    st.sampled_from(SIZES),
    WINDOWS | IMAGES,
    st.integers(1, 30),
)
REBUILDING = replace(SMALL, outputs=4, reconstruction=Reconstruction(5, (1.0, 0.5, 2.0, 0.25)))
SAYING = replace(SMALL, outputs=1, number=Number(100.0, 20.0))


def random_params(spec: StudentSpec, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in spec.shapes().items()}


def naive(
    spec: StudentSpec, params: dict[str, Tensor], window: NDArray[np.float64]
) -> tuple[list[float], int]:
    """Outputs of one window ``[channels, *size]``, product by product, and how many products there are.

    A product with the padding counts.
    """
    arrays = {n: p.numpy() for n, p in params.items()}
    x, count = window, 0
    for c in spec.convs:
        weight, bias = arrays[f"{c.name}.weight"], arrays[f"{c.name}.bias"]
        half = c.kernel // 2
        starts = [range(-half, s + half - c.kernel + 1, c.stride) for s in x.shape[1:]]
        y = np.zeros((c.outputs, *map(len, starts)))
        each, reach = c.inputs // c.groups, [range(c.kernel)] * len(starts)
        for o in range(c.outputs):
            for place in itertools.product(*(range(len(s)) for s in starts)):
                total = bias[o]
                for i, offset in itertools.product(range(each), itertools.product(*reach)):
                    count += 1
                    at = [s[p] + k for s, p, k in zip(starts, place, offset, strict=True)]
                    if all(0 <= a < n for a, n in zip(at, x.shape[1:], strict=True)):
                        source = o if c.groups > 1 else i
                        total += weight[(o, i, *offset)] * x[(source, *at)]
                y[(o, *place)] = max(total, 0)
        x = y
    mean = [float(row.sum()) / row.size for row in x]
    head = zip(arrays["head.weight"].tolist(), arrays["head.bias"].tolist(), strict=True)
    out = [b + sum(w * m for w, m in zip(row, mean, strict=True)) for row, b in head]
    return out, count + spec.outputs * len(mean)


@pytest.mark.parametrize(
    "spec",
    [SMALL, DEEP, IMAGE]
    + [build_spec(f, "tiny", w, 2) for f in FAMILIES for w in ((4, 1), (19, 3), (5, 4, 1))],
)
def test_the_forward_pass_is_what_the_description_says(spec: StudentSpec) -> None:
    params = random_params(spec)
    x = torch.randn(2, *spec.input, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    got = forward(spec, params, x)
    for window, outputs in zip(x.numpy(), got.numpy(), strict=True):
        expected, products = naive(spec, params, window)
        np.testing.assert_allclose(outputs, expected, rtol=1e-9)
        assert products == spec.multiply_adds()


@settings(max_examples=25, deadline=None)
@given(SPECS)
def test_multiply_adds_are_those_that_torch_counts(spec: StudentSpec) -> None:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        params = {n: torch.empty(shape) for n, shape in spec.shapes().items()}
        forward(spec, params, torch.empty(1, *spec.input))
    assert counter.get_total_flops() == 2 * spec.multiply_adds()


@given(SPECS)
def test_names_and_sizes_follow_the_layers(spec: StudentSpec) -> None:
    assert list(spec.shapes()) == [f"{layer}.{part}" for layer in [*(c.name for c in spec.convs), "head"]
                                   for part in ("weight", "bias")]  # fmt: skip
    assert activations(spec) == ["input", *(c.name for c in spec.convs), "mean"]
    assert (spec.window, spec.input) == ((*spec.size, spec.channels), (spec.channels, *spec.size))
    assert len(spec.sizes()) == len(spec.convs)
    assert min(spec.sizes()[-1]) >= 1


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


def test_a_reconstruction_is_of_level_and_spread_at_the_end() -> None:
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 2, 9)))
    assert REBUILDING.reconstruction is not None
    got = summary(REBUILDING.reconstruction, x).numpy()
    end = x.numpy()[:, :, -5:]
    real = np.concatenate([end.mean(axis=2), np.log(end.std(axis=2) + SPREAD_FLOOR)], axis=1)
    np.testing.assert_allclose(got, real / [1.0, 0.5, 2.0, 0.25], rtol=1e-6)
    off = np.random.default_rng(1).normal(size=got.shape)
    score = scores(REBUILDING, x, torch.from_numpy(got + off))
    assert (tuple(score.shape), REBUILDING.scores) == ((3, 1), 1)
    np.testing.assert_allclose(score.numpy()[:, 0], np.square(off).mean(axis=1), rtol=1e-6)


def test_only_what_happens_at_the_end_of_a_window_is_reconstructed() -> None:
    x = torch.randn(2, 2, 9, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, :, :4] += 5
    assert REBUILDING.reconstruction is not None
    assert torch.equal(summary(REBUILDING.reconstruction, x), summary(REBUILDING.reconstruction, changed))


def test_answers_are_the_outputs_or_a_number_in_its_units() -> None:
    outputs, x = torch.tensor([[1.0], [-2.0]]), torch.zeros(2, 2, 9)
    assert torch.equal(scores(SMALL, x, outputs), outputs)
    assert scores(SAYING, x, outputs).tolist() == [[120.0], [60.0]]
    assert (SMALL.scores, SAYING.scores) == (3, 1)


@given(SPECS | st.sampled_from([SMALL, DEEP, IMAGE, REBUILDING, SAYING]))
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
    convs=[{"name": "a", "inputs": 60_000, "outputs": 60_000, "kernel": 60_000, "stride": 1, "groups": 1}],
)
WIDE = _changed(size=[65_536], convs=[{**GOOD["convs"][0], "outputs": 60_000}])
_REBUILT: dict[str, Any] = {"recent": 5, "scale": [1.0, 0.5, 2.0, 0.25]}
NO_RECONSTRUCTION: list[object] = [
    5, "ab", [], {}, {"recent": 5}, {"scale": [1.0] * 4},
    *({**_REBUILT, "recent": v} for v in (0, -1, 10, 2.0, True, None, "5")),
    *({**_REBUILT, "scale": v} for v in (None, 5, [1.0] * 3, [1.0] * 5, [1, 1, 1, 1], [1.0, 1.0, 1.0, 0.0],
                                         [1.0, 1.0, 1.0, -1.0], [1.0, 1.0, 1.0, float("nan")],
                                         [1.0, 1.0, 1.0, float("inf")], ["1"] * 4)),
]  # fmt: skip
_SAID: dict[str, Any] = {"offset": 1.0, "scale": 2.0}
NO_NUMBER: list[object] = [
    5, "ab", [], {}, {"offset": 1.0}, {"scale": 1.0},
    *({**_SAID, "offset": v} for v in (None, "a", [1], float("nan"), float("inf"), 1e13)),
    *({**_SAID, "scale": v} for v in (None, 0, -1.0, float("nan"), float("inf"), 1e13)),
]  # fmt: skip
NO_LAYERS: list[object] = [None, 5, "ab", {}, [], [5], [{}], [None], [[["name", "a"]]]]
HOSTILE: list[object] = [
    None, 5, "student", [], {}, [1], {1: 2, "convs": []},
    {k: v for k, v in GOOD.items() if k != "size"},
    _changed(extra=1),
    *(_changed(convs=c) for c in NO_LAYERS),
    _changed(convs=[{**GOOD["convs"][0], "name": f"c{i}", "outputs": 2} for i in range(65)]),
    *(_changed(**{key: value}) for key in ("channels", "outputs")
      for value in (0, -1, True, 1.0, "2", None, [2], float("nan"), 65_537, 10**30)),
    *(_changed(size=value) for value in (None, 5, "9", [], [0], [-1], [True], [9.0], [9, None], [3, 3, 3],
                                         {}, [[9]], [65_537], [10**30])),
    *(_changed(outputs=4, reconstruction=value) for value in NO_RECONSTRUCTION),
    _changed(outputs=3, reconstruction=_REBUILT),
    _changed(outputs=4, size=[9, 9], reconstruction=_REBUILT),
    *(_changed(outputs=1, number=value) for value in NO_NUMBER),
    _changed(outputs=2, number=_SAID),
    _changed(outputs=4, reconstruction=_REBUILT, number=_SAID),
    *(_changed(0, groups=value) for value in (2, 4, 3, 0, -1, 1.0, "2")),  # not depthwise: 2 in, 4 out
    WIDE,
    *(_changed(0, **{key: value}) for key in ("inputs", "outputs", "kernel", "stride", "groups")
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
    assert StudentSpec.from_dict(_changed(outputs=4, reconstruction=_REBUILT)) == REBUILDING
    assert StudentSpec.from_dict(_changed(outputs=1, number={"offset": 100.0, "scale": 20.0})) == SAYING
    plain = {k: v for k, v in GOOD.items() if k not in ("reconstruction", "number")}
    assert StudentSpec.from_dict(plain) == SMALL


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
