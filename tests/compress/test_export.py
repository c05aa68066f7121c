import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from fedge.compress.export import export_float, export_int8, quantized_weight
from fedge.compress.quantize import Calibration, Scales, bounded, calibrate, fake_quantized
from fedge.edge._processor import adds_exactly
from fedge.edge.runtime import Runtime
from fedge.models.student import SPREAD_FLOOR, Number, StudentSpec, activations, forward, scores
from fedge.models.student_families import FAMILIES, SIZES, build_spec
from fedge.preprocess import Preprocess

from . import integer
from .students import ALL, Windows, arrays, movement, noise, same_class, spec_for, student, weights

TIMES = [4, 9, 30, 131]
CHANNELS = [1, 6]
Params = dict[str, Tensor]


def plain(spec: StudentSpec) -> Preprocess:
    """Preprocessing that does nothing."""
    return Preprocess(np.zeros(spec.channels, np.float32), np.ones(spec.channels, np.float32), 1e30)


def run(model: bytes, x: Windows) -> Windows:
    """Scores of windows ``[n, channels, *size]`` on the device's path."""
    return Runtime(model).predict(np.moveaxis(x, 1, -1))


def fake(spec: StudentSpec, params: Params, scales: Scales, x: Windows) -> Windows:
    with torch.no_grad():
        windows = torch.from_numpy(x)
        outputs = forward(spec, params, windows, fake_quantized(spec, scales))
        answers: Windows = scores(spec, windows, outputs).numpy()
    return answers


def calibrated(spec: StudentSpec, params: Params, x: Windows) -> dict[str, float]:
    return calibrate(spec, params, torch.from_numpy(x), Calibration())


@dataclass(frozen=True, eq=False)
class Exported:
    """A student, and the two models made from it."""

    spec: StudentSpec
    params: Params
    int8: bytes
    float32: bytes


def exported(
    size: str = "tiny",
    window: tuple[int, ...] = (30, 3),
    family: str = "plain",
    rebuilds: bool = False,
) -> Exported:
    spec = spec_for(family, size, window, rebuilds)
    params = weights(spec)
    scales, made = calibrated(spec, params, noise(50, spec)), arrays(params)
    return Exported(
        spec,
        params,
        export_int8(spec, made, scales, plain(spec)),
        export_float(spec, made, scales, plain(spec)),
    )


@pytest.mark.parametrize("size", ["tiny", "small"])
@pytest.mark.parametrize("time", TIMES)
def test_a_device_answers_what_the_clients_trained(size: str, time: int) -> None:
    for channels in CHANNELS:
        spec, params = student(size, channels, time)
        for make in (noise, movement):
            x = make(400, spec)
            scales = calibrated(spec, params, x[:100])
            got = run(export_int8(spec, arrays(params), scales, plain(spec)), x)
            trained = fake(spec, params, scales, x)
            assert same_class(got, trained) >= 0.995
            assert np.abs(got - trained).max() < 0.1 * trained.std()
            assert np.mean(np.abs(got - trained) < 1e-4 * trained.std()) > 0.9  # mostly the same bits


@pytest.mark.parametrize(("family", "size", "window", "rebuilds"), ALL)
def test_every_student_ships_as_it_was_trained(
    family: str, size: str, window: tuple[int, ...], rebuilds: bool
) -> None:
    spec = spec_for(family, size, window, rebuilds)
    params, x = weights(spec), noise(40, spec)
    scales = calibrated(spec, params, x)
    trained = fake(spec, params, scales, x)
    got = run(export_int8(spec, arrays(params), scales, plain(spec)), x)
    assert got.shape == trained.shape == (40, 1 if rebuilds else 7)
    assert np.abs(got - trained).max() < 0.1 * trained.std()
    assert np.mean(np.abs(got - trained) < 1e-4 * trained.std()) > 0.8  # mostly the same bits
    for windows in (x, 100 * x):  # the second reach every bound
        with torch.no_grad():
            inputs = torch.from_numpy(windows)
            expected = scores(spec, inputs, forward(spec, params, inputs, bounded(spec, scales))).numpy()
        float32 = run(export_float(spec, arrays(params), scales, plain(spec)), windows)
        np.testing.assert_allclose(float32, expected, rtol=1e-3, atol=1e-3 * float(np.abs(expected).max()))


def test_an_anomaly_score_is_how_far_the_reconstruction_is_off() -> None:
    spec = spec_for("plain", "tiny", (30, 4), rebuilds=True)
    params, x = weights(spec), movement(20, spec)
    scales = calibrated(spec, params, x)
    assert spec.reconstruction is not None
    with torch.no_grad():
        said = forward(spec, params, torch.from_numpy(x), bounded(spec, scales)).numpy()
    expected = []
    for window, answer in zip(x, said, strict=True):
        end = window[:, 15:].astype(np.float64)
        real = [*end.mean(axis=1), *np.log(end.std(axis=1) + SPREAD_FLOOR)]
        off = [a - r / s for a, r, s in zip(answer, real, spec.reconstruction.scale, strict=True)]
        expected.append([np.mean(np.square(off))])
    got = run(export_float(spec, arrays(params), scales, plain(spec)), x)
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_a_number_is_shipped_in_its_own_units() -> None:
    spec = replace(build_spec("plain", "tiny", (30, 3), 1), number=Number(120.0, 40.0))
    params, x = weights(spec), noise(20, spec)
    scales = calibrated(spec, params, x)
    with torch.no_grad():
        outputs = forward(spec, params, torch.from_numpy(x), bounded(spec, scales)).numpy()
    got = run(export_float(spec, arrays(params), scales, plain(spec)), x)
    np.testing.assert_allclose(got, 120 + 40 * outputs, rtol=1e-4, atol=1e-3)
    int8 = run(export_int8(spec, arrays(params), scales, plain(spec)), x)
    np.testing.assert_allclose(int8, fake(spec, params, scales, x), rtol=1e-4, atol=0.05 * got.std())


def test_a_constant_window_has_a_score() -> None:
    """Its spread is zero, and the logarithm of zero is no number."""
    made = exported(window=(30, 4), rebuilds=True)
    x = np.zeros((2, 4, 30), np.float32)
    for model in (made.int8, made.float32):
        assert np.isfinite(run(model, x)).all()


def test_a_device_answers_what_integers_compute() -> None:
    spec, params = student("tiny", 6, 50)
    x = movement(400, spec)
    scales = calibrated(spec, params, x[:100])
    got = run(export_int8(spec, arrays(params), scales, plain(spec)), x)
    reference = integer.outputs(spec, arrays(params), scales, x.astype(np.float64))
    assert same_class(got, reference.astype(np.float32)) >= 0.995
    assert np.abs(got - reference).max() < 0.05 * reference.std()


@pytest.mark.parametrize("case", ["dead output", "dead class", "dead layer", "tiny weights", "far outside"])
def test_odd_students_ship_as_they_were_trained(case: str) -> None:
    """A bias that does not fit int32 at its channel's scale once wrapped around."""
    spec, params = student("tiny", 6, 64)
    x = movement(200, spec)
    if case == "dead output":
        params["conv2.weight"][3], params["conv2.bias"][3] = 0, 2
    if case == "dead class":
        params["head.weight"][2], params["head.bias"][2] = 0, 3
    if case == "dead layer":
        params["conv2.bias"] -= 1000
    if case == "tiny weights":
        params["conv3.weight"] *= 1e-9
    scales = calibrated(spec, params, x)
    if case == "far outside":
        x = x * 1000
    trained = fake(spec, params, scales, x)
    got = run(export_int8(spec, arrays(params), scales, plain(spec)), x)
    assert same_class(got, trained) >= 0.995
    assert np.abs(got - trained).max() < 0.05 * max(float(trained.std()), float(np.abs(trained).max()))


def test_a_channels_step_makes_room_for_its_bias_and_no_more() -> None:
    weight = np.array([[1.27, -0.5], [0, 0], [1e-12, 0]], np.float32)
    ints, step = quantized_weight(weight, np.array([1e-9, 1e-3, 0], np.float32))
    np.testing.assert_allclose(step, [0.01, 1e-3, 1e-8], rtol=1e-6)
    assert ints.dtype == np.int8
    assert ints.tolist() == [[127, -50], [0, 0], [0, 0]]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("time", TIMES)
def test_the_float_model_computes_the_bounded_forward_pass(size: str, time: int) -> None:
    spec, params = student(size, 3, time)
    x = movement(50, spec)
    scales = calibrated(spec, params, x)
    for windows in (x, 100 * x):  # the second reach every bound
        with torch.no_grad():
            expected = forward(spec, params, torch.from_numpy(windows), bounded(spec, scales)).numpy()
        got = run(export_float(spec, arrays(params), scales, plain(spec)), windows)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_a_batch_and_single_windows_get_the_same_answers(size: str) -> None:
    made = exported(size)
    x = noise(20, made.spec, seed=8)
    alone = np.concatenate([run(made.int8, window[None]) for window in x[:5]])
    np.testing.assert_allclose(run(made.int8, x)[:5], alone, rtol=1e-6, atol=1e-6)


def _graph(content: bytes) -> onnx.GraphProto:
    return onnx.load_from_string(content).graph


@pytest.mark.parametrize("size", SIZES)
def test_nothing_but_plain_operators_is_shipped(size: str) -> None:
    """In particular no normalisation: with it int8 is slower than float."""
    plain = {"Conv", "GlobalAveragePool", "Flatten", "Gemm"}
    plain |= {"Expand", "Sub", "Div", "Clip", "Transpose", "Reshape"}  # preprocessing and layout
    plain |= {"Cast", "Mul"}  # of constants
    made = exported(size)
    rounding = {"Relu", "QuantizeLinear", "DequantizeLinear"}
    assert {n.op_type for n in _graph(made.int8).node} <= plain | rounding
    assert {n.op_type for n in _graph(made.float32).node} <= plain


def _constants(content: bytes) -> dict[str, NDArray[Any]]:
    return {c.name: numpy_helper.to_array(c) for c in _graph(content).initializer}


@pytest.mark.parametrize("size", SIZES)
def test_weights_are_shipped_as_int8_only(size: str) -> None:
    made = exported(size)
    spec, params, constants = made.spec, made.params, _constants(made.int8)
    weights = {n: c for n, c in constants.items() if c.ndim > 1 and not n.endswith(".step")}
    assert sorted(c.shape for c in weights.values()) == sorted(
        s for s in spec.shapes().values() if len(s) > 1
    )
    assert {c.dtype for c in weights.values()} == {np.dtype(np.int8)}
    ours = {n for n in constants if n.startswith("preprocess.")}
    floats = {n: c for n, c in constants.items() if c.dtype.kind == "f" and n not in ours}
    assert all(n.endswith(".step") and c.dtype == np.float32 for n, c in floats.items())
    # One step for a tensor (a scalar, as ONNX wants it), or one for each output.
    outputs = {c.name: c.outputs for c in spec.convs} | {"head": spec.outputs}
    for name, step in floats.items():
        layer, *part = name.split(".")[:-1]
        if part == ["weight"] and layer == "head":
            assert step.shape == (outputs[layer], 1)
        else:
            assert step.shape == ((outputs[layer],) if part else ())
    for layer in [c.name for c in spec.convs] + ["head"]:
        ints, steps = integer.weight_ints(params[f"{layer}.weight"].numpy())
        shipped = constants[f"{layer}.weight.int8"].astype(int)
        np.testing.assert_allclose(constants[f"{layer}.weight.step"].ravel(), steps, rtol=1e-6)
        assert np.abs(shipped - ints).max() <= 1  # a tie may fall to either side
        assert np.mean(shipped == ints) > 0.999


def test_pruned_weights_are_shipped_as_zeros() -> None:
    spec, params = student("small", 6, 64)
    params["conv2.weight"][params["conv2.weight"].abs() < 0.1] = 0
    content = export_int8(spec, arrays(params), calibrated(spec, params, noise(20, spec)), plain(spec))
    shipped = _constants(content)["conv2.weight.int8"]
    assert (shipped[params["conv2.weight"].numpy() == 0] == 0).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("level", ["ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
@pytest.mark.parametrize("window", [(128, 6), (32, 32, 3)])
@pytest.mark.parametrize("family", FAMILIES)
def test_onnx_runtime_really_runs_integer_kernels(
    size: str, level: str, window: tuple[int, ...], family: str, tmp_path: Path
) -> None:
    made = exported(size, window, family)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(made.int8, options, providers=["CPUExecutionProvider"])
    ran = [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert ran.count("QLinearConv") == len(made.spec.convs)
    assert ran.count("QLinearGlobalAveragePool") == 1
    assert not {"Conv", "FusedConv", "MatMul", "Relu", "Cast", "Mul", "Expand"} & set(ran)
    assert ran.count("QuantizeLinear") == 1  # the window
    assert ran.count("DequantizeLinear") == ran.count("Gemm") == 1  # few products are quicker in float


@pytest.mark.parametrize("precise", [False, True])
def test_the_largest_sums_do_not_overflow(precise: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All activations and weights at their largest: where products are added in 16 bits, they are clipped."""
    monkeypatch.setattr("fedge.edge.runtime.adds_exactly", lambda: not precise and adds_exactly())
    spec, params = student("tiny", 6, 64)
    params = {n: torch.full_like(p, float(n.endswith("weight"))) for n, p in params.items()}
    x = np.full((2, 6, 64), 9.0, np.float32)
    scales = calibrate(spec, params, torch.from_numpy(x), Calibration(headroom=1.0))
    got = run(export_int8(spec, arrays(params), scales, plain(spec)), x)
    np.testing.assert_allclose(got, fake(spec, params, scales, x), rtol=1e-5)


def test_the_int8_model_is_about_a_quarter_of_the_float_model() -> None:
    made = exported("medium", (128, 6))
    assert made.spec.parameters() < len(made.int8) < 0.35 * len(made.float32)


@pytest.mark.parametrize(
    ("window", "rebuilds", "inputs", "answers"),
    [((30, 3), False, [30, 3], 7), ((8, 9, 1), False, [8, 9, 1], 7), ((30, 3), True, [30, 3], 1)],
)
def test_ports_are_those_that_a_device_expects(
    window: tuple[int, ...], rebuilds: bool, inputs: list[int], answers: int
) -> None:
    made = exported(window=window, rebuilds=rebuilds)
    for model in (made.int8, made.float32):
        graph = _graph(model)
        ports = [(p.name, [d.dim_param or d.dim_value for d in p.type.tensor_type.shape.dim])
                 for p in (*graph.input, *graph.output)]  # fmt: skip
        assert ports == [("window", ["batch", *inputs]), ("scores", ["batch", answers])]
        assert [o.version for o in onnx.load_from_string(model).opset_import] == [17]


@pytest.mark.parametrize(
    ("family", "window", "rebuilds"),
    [("plain", (31, 3), False), ("separable", (9, 8, 1), False), ("plain", (30, 2), True)],
)
def test_shapes_said_of_what_lies_between_are_those_it_has(
    family: str, window: tuple[int, ...], rebuilds: bool
) -> None:
    """A model is cut there into parts for several devices, each of which must know what comes in."""
    made = exported("tiny", window, family, rebuilds)
    for content, end, kind in ((made.int8, ".uint8", np.uint8), (made.float32, ".clipped", np.float32)):
        model = onnx.load_from_string(content)
        said = {
            v.name: [d.dim_value for d in v.type.tensor_type.shape.dim[1:]] for v in model.graph.value_info
        }
        path = [f"{name}{end}" for name in activations(made.spec)]
        assert list(said) == path + ["summary"] * rebuilds
        model.graph.output.extend(model.graph.value_info)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        answers = session.run(list(said), {"window": np.zeros((5, *window), np.float32)})
        assert [list(a.shape) for a in answers] == [[5, *shape] for shape in said.values()]
        assert {a.dtype for n, a in zip(said, answers, strict=True) if n != "summary"} == {np.dtype(kind)}


def test_preprocessing_in_the_model_gives_the_bits_of_preprocessing_outside() -> None:
    rng = np.random.default_rng(4)
    for rebuilds in (False, True):
        made = exported("tiny", (30, 3), rebuilds=rebuilds)
        how = Preprocess(np.array([9, -2, 0.1], np.float32), np.array([0.3, 7, 0.01], np.float32), 4.0)
        raw = rng.normal(5, 9, (20, 30, 3)).astype(np.float32)
        scales, ours = calibrated(made.spec, made.params, noise(50, made.spec)), arrays(made.params)
        for export in (export_int8, export_float):
            inside = Runtime(export(made.spec, ours, scales, how)).predict(raw)
            outside = run(export(made.spec, ours, scales, plain(made.spec)), how.apply(raw))
            assert inside.tobytes() == outside.tobytes()


def test_preprocessing_is_small_in_the_file_and_done_once() -> None:
    """Mean and scale take a number a channel there, and are spread over a window when it is opened."""
    sizes = [len(exported("tiny", (time, 3)).int8) for time in (30, 3000)]
    assert abs(sizes[1] - sizes[0]) < 20


_DIGEST = """
import hashlib
from compress.test_export import exported
made = exported()
print(hashlib.sha256(made.int8 + made.float32).hexdigest())
"""


def test_the_same_weights_give_the_same_bytes_in_every_process() -> None:
    """A release is named by the hash of its model."""
    tests = Path(__file__).parent.parent
    path = os.pathsep.join([str(tests.parent), str(tests)])
    seen = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", _DIGEST], env=environment, check=True, capture_output=True, text=True
        )
        seen.add(done.stdout.strip())
    assert len(seen) == 1
    assert exported().int8 == exported().int8 != exported(window=(31, 3)).int8
