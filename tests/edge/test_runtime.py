import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fedge.edge import runtime as module
from fedge.edge.runtime import Runtime
from fedge.errors import DataError, ReleaseError, SetupError

from .build import (
    CHANNELS,
    CLASSES,
    COLOURS,
    HEIGHT,
    TIME,
    WIDTH,
    image_model,
    images,
    mean_times_weights,
    model,
    naive,
    naive_image,
    windows,
)

GOOD = model().SerializeToString()
IMAGES = image_model().SerializeToString()
FLOAT = TensorProto.FLOAT


@given(st.integers(0, 2**32 - 1), st.integers(0, 9))
@settings(deadline=None, max_examples=30)
def test_scores_are_those_of_numpy_for_any_number_of_windows(seed: int, n: int) -> None:
    x = windows(n, seed)
    scores = Runtime(GOOD).predict(x)
    assert scores.shape == (n, CLASSES)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, naive(x), rtol=1e-4, atol=1e-4)


def test_single_windows_and_batches_agree_across_the_batch_limit() -> None:
    x = windows(2 * module._BATCH + 3)
    runtime = Runtime(GOOD)
    single = np.concatenate([runtime.predict(x[i : i + 1]) for i in range(len(x))])
    np.testing.assert_allclose(runtime.predict(x), single, rtol=1e-5, atol=1e-6)


def test_sizes_are_those_of_a_window_as_it_is_given() -> None:
    one, two = Runtime(GOOD), Runtime(IMAGES)
    assert (one.window, one.outputs) == ((TIME, CHANNELS), CLASSES)
    assert (two.window, two.outputs) == ((HEIGHT, WIDTH, COLOURS), 2)


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.float32, np.float64])
def test_images_give_the_scores_of_numpy_one_by_one_and_together(kind: type) -> None:
    x = images(5)
    runtime, expected = Runtime(IMAGES), naive_image(x)
    single = np.concatenate([runtime.predict(x[i : i + 1].astype(kind)) for i in range(5)])
    np.testing.assert_allclose(single, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(runtime.predict(x.astype(kind)), expected, rtol=1e-4, atol=1e-4)


def test_long_list_of_images_is_answered_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few hundred large images at once would take gigabytes."""
    monkeypatch.setattr(module, "_VALUES", 2 * HEIGHT * WIDTH * COLOURS + 1)
    runtime, taken = Runtime(IMAGES), []
    monkeypatch.setattr(module, "check_finite", lambda x: taken.append(len(x)))
    np.testing.assert_allclose(runtime.predict(images(5)), naive_image(images(5)), rtol=1e-4, atol=1e-4)
    assert taken == [2, 2, 1]


@pytest.mark.parametrize(
    "shape",
    [
        (2, COLOURS, HEIGHT, WIDTH),
        (2, WIDTH, HEIGHT, COLOURS),
        (1, HEIGHT, WIDTH, 1),
        (1, HEIGHT, WIDTH),
        (HEIGHT, WIDTH, COLOURS),
        (1, HEIGHT * WIDTH, COLOURS),
        (),
    ],
)
def test_images_of_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="takes windows"):
        Runtime(IMAGES).predict(np.zeros(shape, np.uint8))


def test_model_that_answers_one_number_runs() -> None:
    content = image_model(outputs=1).SerializeToString()
    runtime = Runtime(content)
    assert runtime.outputs == 1
    np.testing.assert_allclose(runtime.predict(images(3)), naive_image(images(3), 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "output"),
    [
        (("batch", CHANNELS, 1 << 20), ("batch", CLASSES)),  # twice the limit
        (("batch", CHANNELS, 1 << 10, 1 << 10), ("batch", CLASSES)),
        (("batch", CHANNELS, 1 << 40, 1 << 40), ("batch", CLASSES)),
        (("batch", CHANNELS, TIME), ("batch", 1025)),
    ],
)
def test_sizes_above_the_limits_are_refused_before_memory_is_taken(shape: Any, output: Any) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["window"], ["mean"], axes=list(range(2, len(shape))), keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["scores"]),
    ]
    weights = np.ones((CHANNELS, output[1]), np.float32)
    built = model(nodes, weights, input_=("window", FLOAT, shape), output=("scores", FLOAT, output))
    with pytest.raises(ReleaseError, match="limit"):
        Runtime(built.SerializeToString())


@pytest.mark.parametrize("n", [1, 3])
def test_readings_at_the_end_of_float32_are_scored_without_a_warning(n: int) -> None:
    """The preprocessing clips them; an overflow on the way to that is nobody's fault."""
    runtime, x = Runtime(GOOD), windows(n)
    x[0, 0] = np.finfo(np.float32).max, np.finfo(np.float32).min
    with np.errstate(all="raise"):
        np.testing.assert_allclose(runtime.predict(x), naive(x.astype(np.float64)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", ["<U3", "complex64", "bool", "object"])
def test_windows_that_are_no_numbers_are_refused(n: int, kind: str) -> None:
    with pytest.raises(DataError, match="numbers"):
        Runtime(GOOD).predict(np.zeros((n, TIME, CHANNELS), kind))


def test_a_refused_window_leaves_a_runtime_that_answers() -> None:
    runtime, x = Runtime(GOOD), windows(1)
    expected = runtime.predict(x)
    for _ in range(3):
        with pytest.raises(DataError):
            runtime.predict(np.full_like(x, np.nan))
    assert runtime.predict(x).tobytes() == expected.tobytes()


def test_an_onnx_runtime_with_other_private_parts_answers_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python around ONNX Runtime's own call is left out where it can be."""
    x, real = windows(1), onnxruntime.InferenceSession

    class Session:
        def __init__(self, *parts: Any, **more: Any) -> None:
            self.hidden = real(*parts, **more)

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(name)
            return getattr(self.hidden, name)

    expected = Runtime(GOOD).predict(x)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    assert Runtime(GOOD).predict(x).tobytes() == expected.tobytes()


def test_answers_are_the_callers_own() -> None:
    runtime = Runtime(GOOD)
    first = runtime.predict(windows(1, 1))
    kept = first.copy()
    runtime.predict(windows(1, 2))
    assert first.tobytes() == kept.tobytes()


def test_window_that_is_clipped_or_of_another_type_takes_the_same_way() -> None:
    runtime = Runtime(GOOD)
    x = windows(1) * 1000
    np.testing.assert_allclose(runtime.predict(x), naive(x), rtol=1e-4, atol=1e-4)
    whole = x.astype(np.int32)
    assert runtime.predict(whole).tobytes() == runtime.predict(whole.astype(np.float32)).tobytes()
    reverse = np.asfortranarray(x[:, ::-1])
    np.testing.assert_allclose(runtime.predict(reverse), naive(reverse), rtol=1e-4, atol=1e-4)


def test_threads_do_not_mix_up_their_answers() -> None:
    runtime, x = Runtime(GOOD), windows(4)
    expected = [runtime.predict(x[i : i + 1]).tobytes() for i in range(4)]
    wrong: list[int] = []

    def ask(i: int) -> None:
        answers = [runtime.predict(x[i : i + 1]).tobytes() for _ in range(300)]
        wrong.extend(i for answer in answers if answer != expected[i])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_opening_a_model_leaves_no_identifier_and_starts_no_uploader(tmp_path: Path) -> None:
    """ONNX Runtime's own builds report to their maker unless they are told not to."""
    (tmp_path / "model.onnx").write_bytes(model().SerializeToString())
    code = (
        "import os, sys; from pathlib import Path; from fedge.edge.runtime import Runtime\n"
        "Runtime(Path(sys.argv[1])); print(len(os.listdir('/proc/self/task')))"
    )
    home = tmp_path / "home"
    home.mkdir()
    told = ("ORT_", "XDG_", "CI", "GITHUB_", "TF_BUILD", "JENKINS", "TRAVIS")
    env = {k: v for k, v in os.environ.items() if not k.startswith(told)} | {"HOME": str(home)}
    env |= {"OPENBLAS_NUM_THREADS": "1"}
    args = [sys.executable, "-c", code, str(tmp_path / "model.onnx")]
    done = subprocess.run(args, env=env, capture_output=True, text=True, check=True)
    assert list(home.rglob("*")) == []
    assert done.stdout == "1\n"  # its uploader would have threads of its own


def test_model_is_read_from_a_path(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(GOOD)
    x = windows(1)
    assert Runtime(path).predict(x).tobytes() == Runtime(GOOD).predict(x).tobytes()
    with pytest.raises(SetupError, match="none"):
        Runtime(tmp_path / "none.onnx")


def test_oversized_model_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ReleaseError, match="limit"):
        Runtime(path)


@pytest.mark.parametrize(
    "shape",
    [
        (1, CHANNELS, TIME),
        (1, TIME, CHANNELS + 1),
        (1, TIME - 1, CHANNELS),
        (2, TIME + 1, CHANNELS),
        (TIME, CHANNELS),
        (1, 1, TIME, CHANNELS),
        (0,),
    ],
)
def test_windows_of_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="takes windows"):
        Runtime(GOOD).predict(np.zeros(shape, np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_broken_readings_are_refused_not_scored(bad: float, n: int, kind: type) -> None:
    runtime = Runtime(GOOD)
    with np.errstate(over="ignore"):
        for at in np.ndindex(TIME, CHANNELS):
            x = windows(n).astype(kind)
            x[-1][at] = bad
            with pytest.raises(DataError, match="finite"):
                runtime.predict(x)
    np.testing.assert_allclose(runtime.predict(windows(n)), naive(windows(n)), rtol=1e-4, atol=1e-4)


WRONG_PORTS: list[dict[str, Any]] = [
    {"input_": ("x", FLOAT, ("batch", TIME, CHANNELS))},
    {"input_": ("window", FLOAT, (1, TIME, CHANNELS))},
    {"input_": ("window", FLOAT, ("batch", "time", CHANNELS))},
    {"input_": ("window", FLOAT, ("batch", TIME, "width", CHANNELS))},
    {"input_": ("window", FLOAT, ("batch", TIME, 1, 1, CHANNELS))},
    {"input_": ("window", FLOAT, ("batch", CHANNELS))},
    {"input_": ("window", FLOAT, None)},
    {"input_": ("window", FLOAT, ())},
    {"input_": ("window", TensorProto.DOUBLE, ("batch", TIME, CHANNELS))},
    {"output": ("scores", FLOAT, (1, CLASSES))},
    {"output": ("scores", FLOAT, ("batch", CLASSES, 1))},
    {"output": ("scores", TensorProto.INT64, ("batch", CLASSES))},
    {"output": ("mean", FLOAT, ("batch", CHANNELS))},
]


@pytest.mark.parametrize("change", WRONG_PORTS)
def test_model_with_other_ports_is_refused(change: dict[str, Any]) -> None:
    nodes = mean_times_weights()
    name = change.get("input_", ("window",))[0]
    nodes[0].input[0] = name
    with pytest.raises(ReleaseError):
        Runtime(model(nodes, **change).SerializeToString())


def test_model_with_a_second_port_is_refused() -> None:
    two_in, two_out = model(), model()
    two_in.graph.input.append(helper.make_tensor_value_info("more", FLOAT, ("batch", 1)))
    two_out.graph.output.append(helper.make_tensor_value_info("mean", FLOAT, ("batch", CHANNELS)))
    for built in (two_in, two_out):
        with pytest.raises(ReleaseError, match="exactly one"):
            Runtime(built.SerializeToString())


@pytest.mark.parametrize("n", [1, 2])
def test_model_that_lies_about_its_answers_shape_is_refused(n: int) -> None:
    """The declared number of classes cannot be seen to be wrong before the model runs."""
    start, end = (numpy_helper.from_array(np.array([v], np.int64), k) for k, v in (("s", 0), ("e", 2)))
    nodes = [
        *mean_times_weights("all"),
        helper.make_node("Shape", ["all"], ["shape"]),
        helper.make_node("Slice", ["shape", "s", "s"], ["nothing"]),
        helper.make_node("Size", ["nothing"], ["zero"]),
        helper.make_node("Reshape", ["zero", "one"], ["zeros"]),
        helper.make_node("Add", ["e", "zeros"], ["two"]),
        helper.make_node("Slice", ["all", "s", "two", "axis"], ["scores"]),
    ]
    one, axis = (numpy_helper.from_array(np.array([1], np.int64), k) for k in ("one", "axis"))
    runtime = Runtime(model(nodes, more=(start, end, one, axis)).SerializeToString())
    with pytest.raises(ReleaseError):
        runtime.predict(windows(n))


@pytest.mark.parametrize("n", [1, 2])
def test_model_that_fails_on_a_window_ends_in_release_error(n: int) -> None:
    target = numpy_helper.from_array(np.array([7, CLASSES], np.int64), "seven")
    nodes = [*mean_times_weights("flat"), helper.make_node("Reshape", ["flat", "seven"], ["scores"])]
    try:
        runtime = Runtime(model(nodes, more=(target,)).SerializeToString())
    except ReleaseError:
        return  # a later ONNX Runtime may notice at once that the batch is not free
    with pytest.raises(ReleaseError, match="fails on a window"):
        runtime.predict(windows(n))


def test_int8_qdq_model_runs() -> None:
    scale, zero = (
        numpy_helper.from_array(np.array(0.1, np.float32), "scale"),
        numpy_helper.from_array(np.array(0, np.int8), "zero"),
    )
    nodes = [
        helper.make_node("QuantizeLinear", ["window", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
        *mean_times_weights(window="dq"),
    ]
    x = windows(5)
    answer = Runtime(model(nodes, more=(scale, zero)).SerializeToString()).predict(x)
    np.testing.assert_allclose(answer, naive(x, None), atol=0.2)


def test_onnx_runtime_is_set_to_one_thread_that_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    real = onnxruntime.InferenceSession

    def session(content: bytes, options: Any, providers: list[str]) -> Any:
        opened.append((options, providers))
        return real(content, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    Runtime(GOOD)
    ((options, providers),) = opened
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.get_session_config_entry("session.load_model_format") == "ONNX"
    assert providers == ["CPUExecutionProvider"]


def test_nothing_is_written_to_the_terminal_whatever_the_model_does(
    capfd: pytest.CaptureFixture[str],
) -> None:
    target = numpy_helper.from_array(np.array([7, CLASSES], np.int64), "seven")
    nodes = [*mean_times_weights("flat"), helper.make_node("Reshape", ["flat", "seven"], ["scores"])]
    unused = numpy_helper.from_array(np.ones(3, np.float32), "unused")  # ONNX Runtime warns of it
    for content in (b"garbage", GOOD[:-20], model(nodes, more=(target, unused)).SerializeToString()):
        for n in (1, 2):
            with pytest.raises(ReleaseError):
                Runtime(content).predict(windows(n))
    wrong_type = onnx.ModelProto.FromString(GOOD)
    wrong_type.graph.node[1].op_type = "NoSuchOperator"
    with pytest.raises(ReleaseError, match="does not open"):
        Runtime(wrong_type.SerializeToString())
    assert capfd.readouterr() == ("", "")


def test_neither_torch_nor_flwr_nor_onnx_is_imported() -> None:
    code = (
        "import sys, fedge.edge.runtime, fedge.edge.gate, fedge.release.repository, fedge.edge.updater\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'torch', 'flwr', 'onnx', 'pandas'}))"
    )
    root = Path(module.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
