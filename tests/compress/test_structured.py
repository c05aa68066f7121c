from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from fedge.compress.export import export_int8
from fedge.compress.prune import gradient
from fedge.compress.quantize import Calibration, calibrate, fake_quantized
from fedge.compress.structured import (
    DEPTHWISE_STEP,
    LEAST,
    STEP,
    Budget,
    channel_importance,
    cut,
    narrowed,
    plan_cut,
    runs,
    shrink,
    smallest,
    work,
)
from fedge.errors import ConfigError
from fedge.models.student import Conv, Params, StudentSpec, forward, scores
from fedge.preprocess import Preprocess

from .students import ALL, arrays, noise, spec_for, weights

TINY = [k for k in ALL if k[1] in ("tiny", "small")]
ODD = StudentSpec(  # depthwise on the input, two depthwise in a row, one at the end
    6,
    (20,),
    3,
    (
        Conv("first", 6, 6, 3, 1, 6),
        Conv("mix", 6, 20, 5, 2),
        Conv("deep1", 20, 20, 3, 1, 20),
        Conv("deep2", 20, 20, 5, 2, 20),
        Conv("point", 20, 18, 1, 1),
        Conv("deep3", 18, 18, 3, 1, 18),
    ),
)


def some(spec: StudentSpec, seed: int = 0) -> dict[str, list[int]]:
    """Any channels of each run, at least one."""
    rng = np.random.default_rng(seed)
    found = {}
    for run in runs(spec):
        kept = rng.choice(run.width, int(rng.integers(1, run.width + 1)), replace=False)
        found[run.name] = sorted(int(i) for i in kept)
    return found


def silenced(spec: StudentSpec, params: Params, keep: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The uncut student, deaf to the removed channels: whatever reads one reads it with weight zero."""
    made = {n: p.clone() for n, p in params.items()}
    source = None
    for name in [*(c.name for c in spec.convs if c.groups == 1), "head"]:
        if source is not None:
            for i in set(range(made[f"{name}.weight"].shape[1])) - set(keep[source]):
                made[f"{name}.weight"][:, i] = 0
        source = name
    return made


def x_for(spec: StudentSpec, n: int = 12) -> Tensor:
    return torch.from_numpy(noise(n, spec))


@pytest.mark.parametrize("spec", [*(spec_for(*k) for k in TINY), ODD])
def test_a_cut_student_computes_what_the_uncut_one_does_when_nothing_reads_the_removed_channels(
    spec: StudentSpec,
) -> None:
    params = {n: p.double() for n, p in weights(spec).items()}
    x = x_for(spec).double()
    for seed in range(3):
        keep = some(spec, seed)
        small, fewer = cut(spec, params, keep)
        assert {n: tuple(p.shape) for n, p in fewer.items()} == small.shapes()
        assert small.parameters() == sum(p.numel() for p in fewer.values())
        expected = forward(spec, silenced(spec, params, keep), x)
        torch.testing.assert_close(forward(small, fewer, x), expected, rtol=1e-9, atol=1e-9)


def test_without_depthwise_convolutions_the_removed_channels_are_those_that_are_always_zero() -> None:
    spec = spec_for("plain", "tiny", (30, 2))
    params, keep = weights(spec), some(spec)
    zeroed = {n: p.clone() for n, p in params.items()}
    for name, kept in keep.items():
        for i in set(range(len(zeroed[f"{name}.bias"]))) - set(kept):
            zeroed[f"{name}.weight"][i], zeroed[f"{name}.bias"][i] = 0, 0
    x = x_for(spec)
    torch.testing.assert_close(forward(*cut(spec, params, keep), x), forward(spec, zeroed, x))


def test_cutting_changes_nothing_that_was_given() -> None:
    spec = spec_for("separable", "tiny", (30, 4), rebuilds=True)
    params = weights(spec)
    before = {n: p.clone() for n, p in params.items()}
    small, fewer = cut(spec, params, some(spec))
    for value in fewer.values():
        value.add_(1)
    assert all(torch.equal(p, before[n]) for n, p in params.items())
    assert (small.window, small.outputs, small.reconstruction) == (
        spec.window,
        spec.outputs,
        spec.reconstruction,
    )
    whole, same = cut(spec, params, {})
    assert whole == spec
    assert all(torch.equal(same[n], before[n]) for n in before)


@pytest.mark.parametrize(
    "keep",
    [{"none": [0]}, {"depth2": [0]}, {"conv1": []}, {"conv1": [1, 0]}, {"conv1": [0, 0]}, {"conv1": [-1]},
     {"conv1": [16]}],
)  # fmt: skip
def test_channels_that_cannot_be_kept_are_refused(keep: dict[str, list[int]]) -> None:
    spec = spec_for("separable", "tiny", (30, 2))
    with pytest.raises(ConfigError, match="cut: "):
        cut(spec, weights(spec), keep)


def test_a_run_goes_on_through_depthwise_convolutions_to_the_layer_that_mixes() -> None:
    found = [(r.name, [c.name for c in r.convs], r.reader, r.width) for r in runs(ODD)]
    assert found == [
        ("mix", ["mix", "deep1", "deep2"], "point", 20),
        ("point", ["point", "deep3"], "head", 18),
    ]


# Importance


def batches(spec: StudentSpec, count: int = 3) -> list[Callable[[Params], Tensor]]:
    torch.manual_seed(0)
    target = torch.randn(16, spec.outputs, dtype=torch.float64)
    inputs = [torch.from_numpy(noise(16, spec, seed=s)).double() for s in range(count)]
    return [lambda p, x=x: (forward(spec, p, x) - target).square().mean() for x in inputs]  # type: ignore[misc]


@pytest.mark.parametrize("spec", [spec_for("plain", "tiny", (8, 8, 1)), ODD])
def test_taylor_foretells_what_losing_a_channel_does_to_the_loss(spec: StudentSpec) -> None:
    params = {n: p.double() for n, p in weights(spec).items()}
    losses = batches(spec)
    found = channel_importance(spec, params, (gradient(params, one) for one in losses), "taylor")
    assert {n: len(v) for n, v in found.items()} == {r.name: r.width for r in runs(spec)}
    step = 1e-5
    for run in runs(spec):
        reader = f"{run.reader}.weight"
        for i in (0, run.width - 1):
            quieter = params[reader].clone()
            quieter[:, i] *= 1 - step
            changes = [float(one({**params, reader: quieter}) - one(params)) / step for one in losses]
            expected = np.mean(np.square(changes))
            assert float(found[run.name][i]) == pytest.approx(expected, rel=1e-2, abs=1e-8)


def test_taylor_sees_the_filters_that_make_a_channel() -> None:
    """Where ReLU is all there is in between, gradient times weight is the same sum on either side of it."""
    params = {n: p.double() for n, p in weights(ODD).items()}
    for one in batches(ODD):
        slopes = gradient(params, one)
        found = channel_importance(ODD, params, [slopes], "taylor")
        for run in runs(ODD):
            last = run.convs[-1].name
            own = (slopes[f"{last}.weight"] * params[f"{last}.weight"]).flatten(1).sum(1)
            own = own + slopes[f"{last}.bias"] * params[f"{last}.bias"]
            torch.testing.assert_close(found[run.name], own.square())


def test_magnitude_does_not_change_when_a_channel_grows_and_its_reader_shrinks() -> None:
    params = weights(ODD)
    before = channel_importance(ODD, params, None, "magnitude")
    params["mix.weight"][3] *= 7
    params["mix.bias"][3] *= 7
    params["deep1.weight"][3] /= 7  # the same function
    params["deep3.weight"][5] *= 3
    params["deep3.bias"][5] *= 3
    params["head.weight"][:, 5] /= 3
    after = channel_importance(ODD, params, None, "magnitude")
    for name, value in before.items():
        torch.testing.assert_close(after[name], value)
        assert float(value.sum()) == pytest.approx(1)


@pytest.mark.parametrize("layer", ["mix", "deep1", "deep2", "point"])
def test_a_channel_that_any_layer_of_its_run_silences_does_not_matter(layer: str) -> None:
    params = weights(ODD)
    if layer == "point":  # it reads the channel, the others make it
        params["point.weight"][:, 2] = 0
    else:
        params[f"{layer}.weight"][2] = 0
    found = channel_importance(ODD, params, None, "magnitude")["mix"]
    assert float(found[2]) == 0
    assert int((found > 0).sum()) == 19


def test_importance_asks_for_what_it_needs() -> None:
    params = weights(ODD)
    with pytest.raises(ConfigError, match="known: magnitude, taylor"):
        channel_importance(ODD, params, None, "random")
    for nothing in (None, []):
        with pytest.raises(ConfigError, match="at least one batch"):
            channel_importance(ODD, params, nothing, "taylor")


# Planning

Planned = tuple[StudentSpec, dict[str, list[int]]]


def planned(spec: StudentSpec, budget: Budget, seed: int = 0) -> Planned:
    importance = channel_importance(spec, weights(spec, seed), None, "magnitude")
    keep = plan_cut(spec, importance, budget)
    return narrowed(spec, {n: len(k) for n, k in keep.items()}), keep


@pytest.mark.parametrize(("family", "size", "window", "rebuilds"), ALL)
@pytest.mark.parametrize("share", [0.75, 0.5])
def test_a_budget_is_met_with_widths_that_are_fast(
    family: str, size: str, window: tuple[int, ...], rebuilds: bool, share: float
) -> None:
    spec = spec_for(family, size, window, rebuilds)
    if smallest(spec).multiply_adds() > share * spec.multiply_adds():
        with pytest.raises(ConfigError, match="the least this student can be cut to"):
            planned(spec, Budget(share))
        return
    small, _ = planned(spec, Budget(share))
    assert small.multiply_adds() <= share * spec.multiply_adds()
    for before, after in zip(runs(spec), runs(small), strict=True):
        step, least = (DEPTHWISE_STEP, DEPTHWISE_STEP) if len(after.convs) > 1 else (STEP, LEAST)
        assert after.width in (before.width, least) or after.width % step == 0
        assert after.width >= min(before.width, least)
    assert small.multiply_adds() > 0.6 * share * spec.multiply_adds()  # and not much more than was asked


def test_the_least_important_channels_of_a_run_go() -> None:
    spec = spec_for("plain", "small", (50, 6))
    importance = channel_importance(spec, weights(spec), None, "magnitude")
    for name, kept in plan_cut(spec, importance, Budget(0.4)).items():
        gone = [float(v) for i, v in enumerate(importance[name]) if i not in kept]
        assert max(gone, default=0.0) <= min(float(importance[name][i]) for i in kept)
        assert kept == sorted(kept)


def test_a_run_that_matters_is_spared() -> None:
    spec = spec_for("plain", "small", (50, 6))
    importance = {r.name: torch.ones(r.width) for r in runs(spec)}
    importance["conv2"] *= 1000
    keep = plan_cut(spec, importance, Budget(0.6))
    assert len(keep["conv2"]) == 32
    assert len(keep["conv3"]) < 48


def test_a_whole_budget_keeps_everything() -> None:
    for key in ALL:
        spec = spec_for(*key)
        assert planned(spec, Budget())[0] == spec


def test_parameters_and_time_are_bounds_too() -> None:
    spec = spec_for("separable", "medium", (50, 6))
    small, _ = planned(spec, Budget(parameters=spec.parameters() // 2))
    assert small.parameters() <= spec.parameters() // 2
    importance = channel_importance(spec, weights(spec), None, "magnitude")
    took = lambda s: work(s) / 1e4  # noqa: E731
    keep = plan_cut(spec, importance, Budget(latency_us=0.5 * took(spec)), took)
    quick = narrowed(spec, {n: len(k) for n, k in keep.items()})
    assert 0.3 * took(spec) < took(quick) <= 0.5 * took(spec)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(0.01), r"student.keep: 0.01 is below 0\.\d+, the least"),
        (Budget(parameters=100), r"student.most_parameters: 100 is below \d+, the least"),
        (Budget(latency_us=1.0), "student.most_us: 1 is below 7, the least"),
    ],
)
def test_an_impossible_budget_is_refused_with_what_is_possible(budget: Budget, message: str) -> None:
    spec = spec_for("plain", "tiny", (50, 6))
    trained: list[object] = []
    with pytest.raises(ConfigError, match=message):
        shrink(spec, weights(spec), budget, 2, _no_training(trained), _magnitude, lambda _: 7.0)
    assert not trained


def test_what_the_message_calls_possible_is_possible() -> None:
    for key in TINY:
        spec = spec_for(*key)
        with pytest.raises(ConfigError) as refused:
            planned(spec, Budget(0.001))
        share = float(str(refused.value).split("below ")[1].split(",")[0])
        assert planned(spec, Budget(share))[0].multiply_adds() <= share * spec.multiply_adds()


def test_a_bound_on_the_time_needs_something_that_measures_it() -> None:
    spec = spec_for("plain", "tiny", (50, 6))
    with pytest.raises(ConfigError, match="needs a function that measures it"):
        planned(spec, Budget(latency_us=10.0))


def test_times_that_vary_end_at_the_smallest_student() -> None:
    spec = spec_for("plain", "tiny", (50, 6))
    times = iter([1.0] + [100.0] * 1000)  # the smallest fits once, then nothing does
    importance = channel_importance(spec, weights(spec), None, "magnitude")
    keep = plan_cut(spec, importance, Budget(latency_us=10.0), lambda _: next(times))
    assert narrowed(spec, {n: len(k) for n, k in keep.items()}) == smallest(spec)


def test_a_block_that_is_not_full_costs_as_much_as_a_full_one() -> None:
    spec = spec_for("plain", "small", (50, 6))
    assert work(narrowed(spec, {"conv2": 30})) == work(narrowed(spec, {"conv2": 32}))
    assert work(narrowed(spec, {"conv2": 28})) < work(narrowed(spec, {"conv2": 30}))
    deep = spec_for("separable", "small", (50, 6))
    assert work(narrowed(deep, {"point2": 49})) == work(narrowed(deep, {"point2": 64}))


# Step by step


def _magnitude(spec: StudentSpec, params: Params) -> dict[str, Tensor]:
    return channel_importance(spec, params, None, "magnitude")


def _no_training(seen: list[object]) -> Callable[[StudentSpec, Params], Params]:
    def retrain(spec: StudentSpec, params: Params) -> Params:
        assert {n: tuple(p.shape) for n, p in params.items()} == spec.shapes()
        seen.append(spec.multiply_adds())
        return params

    return retrain


def test_shrinking_goes_down_in_equal_ratios_and_trains_after_each_cut() -> None:
    spec = spec_for("plain", "large", (50, 6))
    seen: list[object] = []
    small, params = shrink(spec, weights(spec), Budget(0.25), 3, _no_training(seen), _magnitude)
    assert [s / spec.multiply_adds() for s in seen] == pytest.approx([0.63, 0.397, 0.25], rel=0.04)  # type: ignore[operator]
    assert small.multiply_adds() == seen[-1] <= 0.25 * spec.multiply_adds()
    assert {n: tuple(p.shape) for n, p in params.items()} == small.shapes()


def test_one_step_is_a_plan_and_a_cut() -> None:
    spec = spec_for("separable", "small", (16, 16, 3))
    params = weights(spec)
    small, fewer = shrink(spec, params, Budget(0.6), 1, lambda _s, p: p, _magnitude)
    expected, same = cut(spec, params, plan_cut(spec, _magnitude(spec, params), Budget(0.6)))
    assert small == expected
    assert all(torch.equal(fewer[n], same[n]) for n in same)


def test_all_bounds_hold_in_the_end() -> None:
    spec = spec_for("plain", "medium", (50, 6))
    budget = Budget(0.7, spec.parameters() // 2, work(spec) * 0.6)
    small, _ = shrink(spec, weights(spec), budget, 4, lambda _s, p: p, _magnitude, lambda s: float(work(s)))
    assert small.multiply_adds() <= 0.7 * spec.multiply_adds()
    assert small.parameters() <= spec.parameters() // 2
    assert work(small) <= 0.6 * work(spec)


def test_nothing_is_trained_where_nothing_is_cut() -> None:
    spec, seen = spec_for("plain", "tiny", (50, 6)), []  # type: ignore[var-annotated]
    params = weights(spec)
    assert shrink(spec, params, Budget(), 3, _no_training(seen), _magnitude)[0] == spec
    assert not seen
    with pytest.raises(ConfigError, match="cut_steps"):
        shrink(spec, params, Budget(0.5), 0, _no_training(seen), _magnitude)


@pytest.mark.parametrize("key", [k for k in ALL if k[1] == "small"])
def test_a_cut_student_is_exported_like_any_other(key: tuple[str, str, tuple[int, ...], bool]) -> None:
    spec = spec_for(*key)
    params = weights(spec)
    spec, params = cut(spec, params, plan_cut(spec, _magnitude(spec, params), Budget(0.6)))
    assert StudentSpec.from_dict(spec.to_dict()) == spec
    x = x_for(spec, 20)
    scales = calibrate(spec, params, x, Calibration())
    with torch.no_grad():
        trained = scores(spec, x, forward(spec, params, x, fake_quantized(spec, scales))).numpy()
    none = Preprocess(np.zeros(spec.channels, np.float32), np.ones(spec.channels, np.float32), 1e30)
    session = onnxruntime.InferenceSession(
        export_int8(spec, arrays(params), scales, none), providers=["CPUExecutionProvider"]
    )
    got = session.run(None, {"window": x.movedim(1, -1).numpy()})[0]
    assert np.abs(got - trained).max() < 0.1 * trained.std()


def test_a_description_with_other_widths_is_checked() -> None:
    spec = spec_for("separable", "tiny", (50, 6))
    made = narrowed(spec, {"conv1": 5, "point2": 7})
    assert [(c.inputs, c.outputs, c.groups) for c in made.convs[:4]] == [
        (6, 5, 1),
        (5, 5, 5),
        (5, 7, 1),
        (7, 7, 7),
    ]
    assert replace(made, convs=spec.convs) == spec
