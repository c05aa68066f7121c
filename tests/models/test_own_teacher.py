"""A user's own teacher: what fits is taken, what does not is refused with what is wrong."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from fedge.errors import ConfigError
from fedge.models import own_teacher
from fedge.models.own_teacher import OnnxTeacher, load_module, load_onnx
from fedge.models.teacher import check_teacher, feature_width

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width, depth=1):
        super().__init__()
        pairs = zip([6] + [width] * depth, [width] * depth)
        self.body = nn.Sequential(*(nn.Conv1d(i, o, 3, padding=1) for i, o in pairs))
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.norm(self.body(x)).mean(2))

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(4, 4, bias=False)
        self.two = nn.Linear(4, 4, bias=False)
        self.two.weight = self.one.weight

class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.LazyLinear(3)

class Other:
    pass

def make(width=4):
    return Net(width)

def makes_nothing():
    return 3

ready = Net(4)
number = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with the user's code in it."""
    (tmp_path / "my_net.py").write_text(CODE)
    (tmp_path / "broken.py").write_text("def broken(:\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "needs.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for name in ("my_net", "broken", "leaves", "needs"):
        sys.modules.pop(name, None)


def trained(**settings: Any) -> nn.Module:
    torch.manual_seed(1)
    module = load_module("my_net:Net", None, settings)
    with torch.no_grad():
        module.norm.running_mean.normal_()  # type: ignore[operator, union-attr]
    return module


def test_a_module_from_the_current_folder_with_its_weights_answers_as_it_did(folder: Path) -> None:
    one = trained(width=8, depth=2).eval()
    save_file(one.state_dict(), folder / "net.safetensors")
    other = load_module("my_net:Net", folder / "net.safetensors", {"width": 8, "depth": 2}).eval()
    assert all(torch.equal(v, other.state_dict()[n]) for n, v in one.state_dict().items())
    check_teacher(other, (32, 6), 3)
    assert feature_width(other, (32, 6)) is None
    x = torch.randn(4, 6, 32)
    assert torch.equal(one(x), other(x))


def test_a_function_may_make_the_module() -> None:
    assert sum(p.numel() for p in load_module("my_net:make", None, {"width": 5}).parameters()) == 123


def test_a_user_without_anything_in_the_current_folder_is_not_shadowed_by_it(folder: Path) -> None:
    (folder / "numpy.py").write_text("raise RuntimeError('shadowed')")
    with pytest.raises(ConfigError, match="numpy has no Net"):
        load_module("numpy:Net", None, {})
    assert sys.path[-1] == str(folder)


@pytest.mark.parametrize(
    ("path", "settings", "message"),
    [
        ("my_net", {}, r"write package\.module:Name"),
        ("my_net.py:Net", {}, r"write package\.module:Name"),
        ("./my_net:Net", {}, r"write package\.module:Name"),
        (":Net", {}, r"write package\.module:Name"),
        ("my_net:Net()", {}, r"write package\.module:Name"),
        ("no_such_module:Net", {}, "there is no module 'no_such_module'; it must be installed"),
        ("needs:Net", {}, "needs needs 'a_package_that_nobody_has', which is not installed"),
        ("broken:Net", {}, "importing broken failed: SyntaxError"),
        ("leaves:Net", {}, "importing leaves failed: SystemExit"),
        ("my_net:Nett", {}, "my_net has no Nett; did you mean 'Net'"),
        ("my_net:Other", {}, "is a class, but no torch.nn.Module"),
        ("my_net:number", {}, "is a int; name a subclass"),
        ("my_net:ready", {}, "is a Net; name a subclass"),
        ("my_net:makes_nothing", {}, "returns a int, not a torch.nn.Module"),
        ("my_net:Lazy", {}, "lazy layers"),
        ("my_net:Net", {}, "missing 1 required .* 'width'; teacher.settings: required width; optional depth"),
        ("my_net:Net", {"width": 4, "dept": 1}, "unexpected keyword argument 'dept'"),
        ("my_net:Net", {"width": "wide"}, "TypeError"),
        ("json:JSONDecoder", {}, "is a class, but no torch.nn.Module"),
    ],
)
def test_a_module_that_cannot_be_made_is_refused_with_the_reason(
    path: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_module(path, None, settings)
    assert "\n" not in str(caught.value)


def changed(change: Callable[[dict[str, Tensor]], object]) -> dict[str, Tensor]:
    state = trained(width=4).state_dict()
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("head.bias"), "does not fit teacher.module my_net:Net: missing 'head.bias'"),
        (lambda s: s.update(extra=torch.zeros(1)), "unknown 'extra'"),
        (
            lambda s: s.update({"head.weight": torch.zeros(7, 4)}),
            r"'head.weight' is \[7, 4\] in the file, \[3, 4\] in the module",
        ),
        (
            lambda s: s.update({"head.bias": torch.zeros(3, dtype=torch.int8)}),
            "'head.bias' is I8 in the file",
        ),
        (
            lambda s: s.update({"head.bias": torch.full((3,), torch.nan)}),
            "'head.bias' has values that are not",
        ),
        (lambda s: s.clear(), "missing 'body.0.weight'.*; and 6 more"),
    ],
)
def test_weights_of_another_module_are_refused_with_the_first_differences(
    folder: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    save_file(changed(change), folder / "net.safetensors")
    with pytest.raises(ConfigError, match=message):
        load_module("my_net:Net", folder / "net.safetensors", {"width": 4})


def test_weights_in_half_precision_are_widened(folder: Path) -> None:
    save_file({n: v.half() if v.is_floating_point() else v for n, v in trained(width=4).state_dict().items()},
              folder / "net.safetensors")  # fmt: skip
    module = load_module("my_net:Net", folder / "net.safetensors", {"width": 4})
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_a_weight_with_two_names_need_be_in_the_file_once(folder: Path) -> None:
    one = load_module("my_net:Tied", None, {})
    save_model(one, str(folder / "tied.safetensors"))
    two = load_module("my_net:Tied", folder / "tied.safetensors", {})
    assert torch.equal(two.two.weight, one.one.weight)  # type: ignore[union-attr]


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}x"])
def test_files_that_are_no_safetensors_are_refused(folder: Path, content: bytes) -> None:
    (folder / "net.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=r"teacher.weights .*net.safetensors"):
        load_module("my_net:Net", folder / "net.safetensors", {"width": 4})


def test_a_truncated_file_is_refused(folder: Path) -> None:
    save_file(trained(width=4).state_dict(), folder / "net.safetensors")
    whole = (folder / "net.safetensors").read_bytes()
    for kept in (9, len(whole) // 2, len(whole) - 1):
        (folder / "net.safetensors").write_bytes(whole[:kept])
        with pytest.raises(ConfigError, match="no safetensors file"):
            load_module("my_net:Net", folder / "net.safetensors", {"width": 4})


def test_a_pickle_is_never_opened(folder: Path) -> None:
    torch.save(trained(width=4).state_dict(), folder / "net.pt")
    with pytest.raises(ConfigError, match=r"only \.safetensors files are read"):
        load_module("my_net:Net", folder / "net.pt", {"width": 4})


def test_missing_files_and_folders_and_large_files_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_teacher, "MAX_FILE_BYTES", 10)
    (folder / "folder.safetensors").mkdir()
    (folder / "large.safetensors").write_bytes(bytes(11))
    cases = {"none": "No such file", "folder": "this is no file", "large": "11 bytes; at most 10"}
    for name, message in cases.items():
        with pytest.raises(ConfigError, match=message):
            load_module("my_net:Net", folder / f"{name}.safetensors", {"width": 4})
        with pytest.raises(ConfigError, match=message):
            load_onnx(folder / f"{name}.safetensors")


WEIGHT = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)


def onnx_file(
    path: Path,
    shape: Sequence[int | str | None] = ("n", 6, 16),
    kind: int = TensorProto.FLOAT,
    inputs: int = 1,
    first: str = "scores",
    reshape: bool = False,
) -> Path:
    """The mean over time, times ``WEIGHT``; a second output; names of its own."""
    nodes = [
        helper.make_node("ReduceMean", ["first in"], ["mean"], axes=[2], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["scores"]),
        helper.make_node("ArgMax", ["mean"], ["best"], axis=1, keepdims=0),
    ]
    weights = [numpy_helper.from_array(WEIGHT.astype(helper.tensor_dtype_to_np_dtype(kind)), "weight")]
    if reshape:
        nodes[1].output[0] = "any"
        nodes.append(helper.make_node("Reshape", ["any", "one"], ["scores"]))
        weights.append(numpy_helper.from_array(np.array([1, 3]), "one"))
    ports = {
        "scores": helper.make_tensor_value_info("scores", kind, None),
        "best": helper.make_tensor_value_info("best", TensorProto.INT64, None),
    }
    outputs = [ports.pop(first), *ports.values()]
    given = [helper.make_tensor_value_info("first in", kind, shape)]
    given += [helper.make_tensor_value_info(f"more {i}", kind, ["n"]) for i in range(inputs - 1)]
    graph = helper.make_graph(nodes, "mine", given, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path


def test_an_onnx_model_answers_in_batches_as_its_own_arithmetic_says(folder: Path) -> None:
    teacher = load_onnx(onnx_file(folder / "net.onnx"))
    check_teacher(teacher, (16, 6), 3)
    x = torch.randn(600, 6, 16, generator=torch.Generator().manual_seed(2))
    np.testing.assert_allclose(teacher(x).numpy(), x.numpy().mean(2) @ WEIGHT, rtol=1e-4, atol=1e-5)
    assert (teacher.weights, teacher.size_bytes) == (18, (folder / "net.onnx").stat().st_size)
    assert teacher(x[:0]).shape == (0, 3)


class Counting:
    """A session that passes on to another, and writes down the sizes of its batches."""

    def __init__(self, session: Any) -> None:
        self.session, self.sizes = session, list[int]()

    def run(self, outputs: list[str], inputs: dict[str, Any]) -> Any:
        self.sizes += [len(v) for v in inputs.values()]
        return self.session.run(outputs, inputs)


def test_no_call_of_onnx_runtime_is_larger_than_a_batch(folder: Path) -> None:
    teacher = load_onnx(onnx_file(folder / "net.onnx"))
    teacher._session = counting = Counting(teacher._session)  # type: ignore[assignment]
    teacher(torch.zeros(600, 6, 16))
    assert counting.sizes == [256, 256, 88]


def test_an_onnx_model_gives_no_gradient_and_has_nothing_to_train(folder: Path) -> None:
    teacher = load_onnx(onnx_file(folder / "net.onnx"))
    turned = torch.randn(2, 16, 6).requires_grad_().transpose(1, 2)  # not contiguous, wants a gradient
    assert not teacher(turned).requires_grad
    assert not list(teacher.parameters())
    assert isinstance(teacher.eval(), OnnxTeacher)
    assert feature_width(teacher, (16, 6)) is None


@pytest.mark.parametrize(
    ("window", "outputs", "message"),
    [
        ((16, 6), 4, r"gives float32 \[2, 3\]; .* needs float32 \[2, 4\]"),
        ((17, 6), 3, r"the teacher fails: .*\[2, 6, 17\]"),
        ((16, 16, 6), 3, r"the teacher fails: .*\[2, 6, 16, 16\]"),
    ],
)
def test_an_onnx_model_for_another_task_is_refused(
    folder: Path, window: tuple[int, ...], outputs: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_teacher(load_onnx(onnx_file(folder / "net.onnx")), window, outputs)


def test_a_batch_size_that_is_fixed_inside_is_found_by_trying(folder: Path) -> None:
    with pytest.raises(ConfigError, match="the teacher fails"):
        check_teacher(load_onnx(onnx_file(folder / "net.onnx", reshape=True)), (16, 6), 3)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"shape": (1, 6, 16)}, r"'first in' is \[1, 6, 16\], with a fixed batch size"),
        ({"kind": TensorProto.DOUBLE}, r"input 'first in' is tensor\(double\); it must be float32"),
        ({"inputs": 2}, "exactly one input and an output; its inputs: first in, more 0"),
        ({"first": "best"}, r"first output 'best' is tensor\(int64\)"),
    ],
)
def test_onnx_models_with_other_ports_are_refused(folder: Path, how: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_onnx(onnx_file(folder / "net.onnx", **how))


@pytest.mark.parametrize("content", [b"", b"not an ONNX model", b"ORTM" * 8, b"\x08\x08"])
def test_files_that_are_no_onnx_model_are_refused(folder: Path, content: bytes) -> None:
    (folder / "net.onnx").write_bytes(content)
    with pytest.raises(ConfigError, match=r"no ONNX model|does not open"):
        load_onnx(folder / "net.onnx")


def test_an_onnx_model_with_weights_in_another_file_is_refused(folder: Path) -> None:
    model = onnx.load(onnx_file(folder / "net.onnx"))
    onnx.save(model, folder / "two.onnx", save_as_external_data=True, location="two.data", size_threshold=0)
    with pytest.raises(ConfigError, match="external_data=False"):
        load_onnx(folder / "two.onnx")
