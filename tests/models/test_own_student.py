import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fedge.errors import ConfigError
from fedge.models.normalised import Normalised
from fedge.models.own_student import load_spec, spec_from
from fedge.models.student import Conv, forward
from fedge.models.student_families import FAMILIES, build_spec

WINDOW = (50, 6)
IMAGE = (16, 16, 3)


def end(width: int, outputs: int = 4) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, outputs)]


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv1d:
    return nn.Conv1d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)


def own() -> nn.Sequential:
    """What a user might write: nested, with and without BatchNorm."""
    first = nn.Sequential(conv(6, 8, 5, 2), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1))
    second = nn.Sequential(conv(8, 8, groups=8), nn.ReLU(), conv(8, 12, 1), nn.ReLU(inplace=True))
    return nn.Sequential(first, nn.Identity(), second, *end(12))


def test_layers_are_read_in_order() -> None:
    spec = spec_from(own(), WINDOW, 4)
    assert spec.convs == (
        Conv("conv1", 6, 8, 5, 2),
        Conv("conv2", 8, 8, 3, 1, 8),
        Conv("conv3", 8, 12, 1, 1),
    )
    assert (spec.window, spec.outputs, spec.reconstruction) == (WINDOW, 4, None)


def test_the_description_computes_what_the_module_computes() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(conv(6, 8, 5, 2), nn.ReLU(), conv(8, 8, 4, 1, 8), nn.ReLU(), *end(8))
    image = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 5, padding="same"), nn.ReLU(),
        nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    for module, window in ((plain, WINDOW), (image, IMAGE)):
        spec = spec_from(module, window, 4)
        params = dict(zip(spec.shapes(), module.parameters(), strict=True))
        x = torch.randn(3, *spec.input)
        torch.testing.assert_close(forward(spec, params, x), module(x))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("window", [WINDOW, IMAGE])
def test_every_built_in_student_could_have_been_a_users(family: str, window: tuple[int, ...]) -> None:
    spec = build_spec(family, "tiny", window, 4)
    model = Normalised(spec)
    layers: list[nn.Module] = []
    for one, norm in zip(model.convs, model.norms, strict=True):
        layers += [one, norm, nn.ReLU()]
    pool = nn.AdaptiveAvgPool1d(1) if len(window) == 2 else nn.AdaptiveAvgPool2d(1)
    read = spec_from(nn.Sequential(*layers, pool, nn.Flatten(), model.head), window, 4)
    assert list(read.shapes().values()) == list(spec.shapes().values())
    assert [c.stride for c in read.convs] == [c.stride for c in spec.convs]


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv1d(6, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)  # type: ignore[no-any-return]


class Skipping(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)  # type: ignore[no-any-return]


R, C = nn.ReLU, conv
REFUSED: list[tuple[list[nn.Module], str]] = [
    ([nn.LSTM(6, 8), *end(8)], r"layer 1 \(0: LSTM\): use convolutions: dynamic quantization gains nothing"),
    ([nn.GRU(6, 8), *end(8)], r"\(0: GRU\): use convolutions"),
    (
        [C(6, 8), nn.GroupNorm(2, 8), R(), *end(8)],
        r"layer 2 \(1: GroupNorm\): int8 becomes slower than float",
    ),
    ([C(6, 8), nn.LayerNorm(50), R(), *end(8)], r"LayerNorm\).*use BatchNorm, which is folded away"),
    ([C(6, 8), nn.InstanceNorm1d(8), R(), *end(8)], "InstanceNorm1d.*use BatchNorm"),
    ([C(6, 8), nn.GELU(), *end(8)], r"layer 2 \(1: GELU\): use ReLU: "),
    ([C(6, 8), nn.ReLU6(), *end(8)], "ReLU6.*use ReLU: "),
    ([C(6, 8), nn.Sigmoid(), *end(8)], "Sigmoid.*use ReLU: "),
    ([nn.Conv1d(6, 8, 5), R(), *end(8)], r"layer 1 \(0: Conv1d\): use padding=2 \(kernel // 2\)"),
    ([nn.Conv1d(6, 8, 5, padding="valid"), R(), *end(8)], "use padding=2"),
    ([nn.Conv1d(6, 8, 3, padding=1, padding_mode="circular"), R(), *end(8)], "padding_mode='zeros'"),
    ([nn.Conv1d(6, 8, 3, padding=1, dilation=2), R(), *end(8)], "use dilation=1"),
    ([C(6, 8, groups=2), R(), *end(8)], "groups=1, or depthwise: groups=6 and as many"),
    ([C(6, 12, groups=6), R(), *end(12)], "groups=1, or depthwise"),
    ([C(6, 8), C(8, 8), R(), *end(8)], r"layer 1 \(0: Conv1d\): put a ReLU after it"),
    ([C(6, 8), *end(8)], r"layer 1 \(0: Conv1d\): put a ReLU after it"),
    ([C(6, 8), R(), C(9, 8), R(), *end(8)], r"layer 3 \(2: Conv1d\): it takes 9 channels but gets 8"),
    ([C(5, 8), R(), *end(8)], "takes 5 channels but gets 6"),
    ([C(6, 8), R(), nn.MaxPool1d(2), *end(8)], "MaxPool1d.*a stride in the convolution instead"),
    ([C(6, 8), R(), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(8, 4)], "AdaptiveMaxPool1d.*stride"),
    ([C(6, 8), R(), *end(8, 16), nn.Linear(16, 4)], r"layer 6 \(5: Linear\): a student has one Linear"),
    ([C(6, 8), R(), *end(8), nn.Softmax(1)], "Softmax.*leave it out: the loss"),
    ([C(6, 8), R(), *end(8), R()], "nothing may follow the Linear"),
    ([C(6, 8), R(), nn.Flatten(), nn.Linear(400, 4)], r"layer 3 \(2: Flatten\): put AdaptiveAvgPool1d\(1\)"),
    ([C(6, 8), R(), nn.Linear(8, 4)], r"layer 3 \(2: Linear\): put AdaptiveAvgPool1d\(1\) and Flatten"),
    ([C(6, 8), R(), nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(16, 4)], "use output size 1"),
    ([C(6, 8), R(), nn.AdaptiveAvgPool1d(1), nn.Flatten(0), nn.Linear(8, 4)], r"use Flatten\(\)"),
    ([C(6, 8), R(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)], r"use AdaptiveAvgPool1d\(1\)"),
    ([C(6, 8), R(), *end(8, 5)], r"layer 5 \(4: Linear\): must be Linear\(8, 4\)"),
    ([C(6, 8), R(), *end(9)], r"must be Linear\(8, 4\)"),
    ([C(6, 8), R(), nn.AdaptiveAvgPool1d(1)], r"it must end in Linear\(8, 4\)"),
    ([*end(6)], "there is no convolution in it"),
    ([nn.BatchNorm1d(6), C(6, 8), R(), *end(8)], "between a convolution and its ReLU"),
    ([C(6, 8), R(), nn.BatchNorm1d(8), *end(8)], "between a convolution and its ReLU"),
    ([C(6, 8), nn.BatchNorm1d(8), nn.BatchNorm1d(8), R(), *end(8)], r"layer 3 \(2: BatchNorm1d\): put it"),
    ([C(6, 8), nn.BatchNorm1d(9), R(), *end(8)], "takes 9 channels but gets 8"),
    ([R(), C(6, 8), R(), *end(8)], "no convolution before it"),
    ([nn.Conv2d(6, 8, 3, padding=1), R(), *end(8)], r"use Conv1d for windows \[time, channels\]"),
    ([C(6, 8), R(), *end(8)[:2], C(8, 8), R(), nn.Linear(8, 4)], "it comes after the mean"),
    ([nn.ConvTranspose1d(6, 8, 3), R(), *end(8)], "a student only narrows"),
    ([nn.Embedding(3, 4), *end(8)], "it cannot be in a student; known are Conv"),
    (
        [Custom(), R(), *end(8)],
        r"layer 1 \(0: Custom\): its forward cannot be read; write it as an nn.Sequen",
    ),
    ([Skipping(C(6, 6), R()), *end(6)], r"layer 1 \(0: Skipping\): its forward cannot be read"),
]


@pytest.mark.parametrize(("layers", "message"), REFUSED, ids=[m[:40] for _, m in REFUSED])
def test_what_cannot_be_in_a_student_is_named_with_what_to_do(layers: list[nn.Module], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        spec_from(nn.Sequential(*layers), WINDOW, 4)
    assert str(refused.value).startswith("student.module: ")
    assert "\n" not in str(refused.value)


def test_images_have_their_own_layers() -> None:
    tail = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
    for layer, message in (
        (nn.Conv2d(3, 8, (3, 5), padding=(1, 2)), "square kernel"),
        (nn.Conv2d(3, 8, 3, (1, 2), 1), "same stride both ways"),
        (nn.Conv2d(3, 8, 3, padding=(1, 0)), "use padding=1"),
        (nn.Conv1d(3, 8, 3, padding=1), r"use Conv2d for images \[height, width, channels\]"),
    ):
        with pytest.raises(ConfigError, match=message):
            spec_from(nn.Sequential(layer, nn.ReLU(), *tail), IMAGE, 4)


def test_places_are_those_of_the_users_module() -> None:
    block = nn.Sequential(conv(6, 8), nn.ReLU(), nn.Sequential(conv(8, 8), nn.GELU()))
    with pytest.raises(ConfigError, match=r"layer 4 \(0\.2\.1: GELU\)"):
        spec_from(nn.Sequential(block, *end(8)), WINDOW, 4)
    named = nn.Sequential()
    named.add_module("lstm", nn.LSTM(6, 8))
    with pytest.raises(ConfigError, match=r"layer 1 \(lstm: LSTM\)"):
        spec_from(named, WINDOW, 4)
    with pytest.raises(ConfigError, match=r"layer 1 \(Custom\): its forward"):
        spec_from(Custom(), WINDOW, 4)


def test_the_first_few_problems_come_in_one_message() -> None:
    bad = nn.Sequential(*(nn.LSTM(6, 6) for _ in range(9)))
    with pytest.raises(ConfigError, match=r"layer 1 .*layer 2 .*layer 4 .*; and 7 more$"):
        spec_from(bad, WINDOW, 4)


def test_a_student_beyond_the_limits_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"student.module: .*too large"):
        spec_from(nn.Sequential(conv(6, 9000, 1), nn.ReLU(), *end(9000)), (65_000, 6), 4)


MODULE = """
import torch
from torch import nn
def good(window, outputs):
    return nn.Sequential(
        nn.Conv1d(window[1], 8, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, outputs))
def number(window, outputs):
    return 5
def broken(window, outputs):
    raise RuntimeError("no luck\\nat all")
def recurrent(window, outputs):
    return nn.LSTM(window[1], 8)
def none():
    return None
"""


def test_a_students_function_is_imported_and_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_students.py").write_text(MODULE)
    (tmp_path / "half_student.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    spec = load_spec("my_students:good", WINDOW, 4)
    assert (spec.window, spec.outputs, len(spec.convs)) == (WINDOW, 4, 1)
    for name, message in (
        ("my_students", "not of the form 'package.module:function'"),
        ("my_students:", "not of the form"),
        (":good", "not of the form"),
        ("my_student_s:good", "'my_student_s' cannot be imported: .*is its folder on PYTHONPATH"),
        ("half_student:good", "'half_student' cannot be imported: .*a_package_that_is_not_there'$"),
        ("my_students:goood", "my_students:goood' failed: AttributeError"),
        ("my_students:number", "gives a int, not a torch module"),
        ("my_students:broken", "failed: RuntimeError: no luck$"),
        ("my_students:none", "failed: TypeError: none"),
        ("my_students:recurrent", "LSTM.*use convolutions"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_spec(name, WINDOW, 4)
    sys.modules.pop("my_students", None)
