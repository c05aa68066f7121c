"""The student: a small convolutional classifier for windows, as a description and a pure forward pass.

A student is data, not a class: ``StudentSpec`` says which layers there are, and ``forward`` runs them on
named tensors. The same description is run in float, run with fake quantization (``fedge.compress.quantize``),
exported to ONNX (``fedge.compress.export``) and counted, so the four cannot drift apart. There is no
normalisation layer in it: the server distils with BatchNorm (``Normalised``) and folds it away before
anything is sent (Jacob et al. 2018, section 3.2), because with one in the graph int8 is slower than float.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from torch import Tensor, nn

from fedge.errors import ConfigError, PayloadError

Params = Mapping[str, Tensor]

SIZES: dict[str, tuple[int, int, int, int]] = {
    "tiny": (12, 16, 24, 32),
    "small": (24, 32, 48, 64),
    "medium": (48, 64, 80, 96),
}
"""Output channels of the four convolutions: about 5 k, 19 k and 56 k parameters on six channels."""

_KERNELS = (5, 5, 3, 3)
_EPSILON = 1e-5  # of BatchNorm
_MOST_PARAMETERS = 50_000_000
_MOST_ACTIVATIONS = 1 << 24  # of one layer, for one window
_SHORTEST = 8  # samples below which a convolution no longer strides


@dataclass(frozen=True)
class Conv:
    """A 1-D convolution over time with bias and ReLU; padding ``kernel // 2`` on both sides."""

    name: str
    inputs: int
    outputs: int
    kernel: int
    stride: int


@dataclass(frozen=True)
class StudentSpec:
    """The layers of a student: convolutions, the mean over time, one dense layer.

    Attributes:
        channels: sensor channels of a window.
        time: samples of a window.
        classes: number of classes.
        convs: the convolutions, in order.
    """

    channels: int
    time: int
    classes: int
    convs: tuple[Conv, ...]

    @property
    def features(self) -> int:
        """Length of the vector that the dense layer sees."""
        return self.convs[-1].outputs

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights, in the order in which they travel."""
        shapes: dict[str, tuple[int, ...]] = {}
        for c in self.convs:
            shapes[f"{c.name}.weight"] = (c.outputs, c.inputs, c.kernel)
            shapes[f"{c.name}.bias"] = (c.outputs,)
        shapes["head.weight"] = (self.classes, self.features)
        shapes["head.bias"] = (self.classes,)
        return shapes

    def parameters(self) -> int:
        """Number of weights and biases."""
        return sum(torch.Size(s).numel() for s in self.shapes().values())

    def multiply_adds(self) -> int:
        """Multiply-adds for one window."""
        total, time = self.classes * self.features, self.time
        for c in self.convs:
            time = (time + 2 * (c.kernel // 2) - c.kernel) // c.stride + 1
            total += c.outputs * c.inputs * c.kernel * time
        return total

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a plan or a manifest."""
        return asdict(self)

    @staticmethod
    def from_dict(raw: object) -> "StudentSpec":
        """Parse what ``to_dict`` wrote.

        Raises:
            PayloadError: not a student, or larger than anything a device should be asked to hold.
        """
        try:
            fields = dict(raw)  # type: ignore[call-overload]
            convs = tuple(Conv(**c) for c in fields.pop("convs"))
            spec = StudentSpec(convs=convs, **fields)
        except (TypeError, ValueError, KeyError) as error:
            raise PayloadError(f"not a description of a student: {error}") from None
        return _checked(spec)


def _checked(spec: StudentSpec) -> StudentSpec:
    numbers = [spec.channels, spec.time, spec.classes]
    numbers += [n for c in spec.convs for n in (c.inputs, c.outputs, c.kernel, c.stride)]
    if not 1 <= len(spec.convs) <= 32 or not all(type(n) is int and 1 <= n <= 65_536 for n in numbers):
        raise PayloadError("not a description of a student: a layer count or size is out of range")
    names = [str(c.name) for c in spec.convs]
    if len(set(names)) < len(names) or {"input", "mean", "head"} & set(names):
        raise PayloadError("not a description of a student: a layer's name is taken")
    before = spec.channels
    for c in spec.convs:
        if c.inputs != before or not isinstance(c.name, str) or not c.name.isidentifier():
            raise PayloadError(
                f"not a description of a student: layer {c.name!r} does not fit the one before"
            )
        before = c.outputs
    if spec.parameters() > _MOST_PARAMETERS:
        raise PayloadError(f"not a description of a student: more than {_MOST_PARAMETERS} parameters")
    if spec.time * max(spec.channels, *(c.outputs for c in spec.convs)) > _MOST_ACTIVATIONS:
        raise PayloadError("not a description of a student: a layer's output is too large")
    return spec


def build_spec(size: str, channels: int, time: int, classes: int) -> StudentSpec:
    """The student of one size for windows ``[time, channels]`` and so many classes.

    Convolutions halve the time while more than 8 samples are left, so short windows work too.

    Raises:
        ConfigError: no such size.
    """
    if size not in SIZES:
        raise ConfigError(f"student.size: unknown size {size!r}; known: {', '.join(SIZES)}")
    convs, before = [], channels
    left = time
    for i, (outputs, kernel) in enumerate(zip(SIZES[size], _KERNELS, strict=True)):
        stride = 2 if left > _SHORTEST and i < 3 else 1
        convs.append(Conv(f"conv{i + 1}", before, outputs, kernel, stride))
        before, left = outputs, -(-left // stride)
    return StudentSpec(channels, time, classes, tuple(convs))


@dataclass(frozen=True)
class Numerics:
    """How the numbers of a forward pass are represented: in float, or as if they were int8.

    Attributes:
        weights: ``(layer, weight, bias) -> (weight, bias)``, applied before a layer.
        activation: ``(name, values) -> values``, applied to the input, after each ReLU and to the mean.
    """

    weights: Callable[[str, Tensor, Tensor], tuple[Tensor, Tensor]]
    activation: Callable[[str, Tensor], Tensor]


FLOAT = Numerics(lambda _layer, weight, bias: (weight, bias), lambda _name, values: values)


def activations(spec: StudentSpec) -> list[str]:
    """Names of the tensors that ``Numerics.activation`` sees, in order."""
    return ["input", *(c.name for c in spec.convs), "mean"]


def forward(spec: StudentSpec, params: Params, x: Tensor, numerics: Numerics = FLOAT) -> Tensor:
    """Logits ``[n, classes]`` of windows ``x [n, channels, time]``."""
    x = numerics.activation("input", x)
    for c in spec.convs:
        weight, bias = numerics.weights(c.name, params[f"{c.name}.weight"], params[f"{c.name}.bias"])
        x = F.relu(F.conv1d(x, weight, bias, stride=c.stride, padding=c.kernel // 2))
        x = numerics.activation(c.name, x)
    x = numerics.activation("mean", x.mean(dim=2))
    weight, bias = numerics.weights("head", params["head.weight"], params["head.bias"])
    return F.linear(x, weight, bias)


class Normalised(nn.Module):
    """The student as the server first trains it: BatchNorm between convolution and ReLU."""

    def __init__(self, spec: StudentSpec) -> None:
        super().__init__()
        self.spec = spec
        self.convs = nn.ModuleList(
            nn.Conv1d(c.inputs, c.outputs, c.kernel, c.stride, c.kernel // 2, bias=False) for c in spec.convs
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(c.outputs, eps=_EPSILON) for c in spec.convs)
        self.head = nn.Linear(spec.features, spec.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[n, classes]`` of windows ``x [n, channels, time]``."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return self.head(x.mean(dim=2))  # type: ignore[no-any-return]

    @torch.no_grad()
    def folded(self) -> dict[str, Tensor]:
        """The same function without BatchNorm: weights for ``forward``, statistics frozen into them."""
        params: dict[str, Tensor] = {}
        for spec, conv, norm in zip(self.spec.convs, self.convs, self.norms, strict=True):
            kept: dict[str, Tensor] = {**conv.state_dict(prefix="conv."), **norm.state_dict(prefix="norm.")}
            gain = kept["norm.weight"] / torch.sqrt(kept["norm.running_var"] + _EPSILON)
            params[f"{spec.name}.weight"] = kept["conv.weight"] * gain[:, None, None]
            params[f"{spec.name}.bias"] = kept["norm.bias"] - kept["norm.running_mean"] * gain
        params["head.weight"] = self.head.weight.detach().clone()
        params["head.bias"] = self.head.bias.detach().clone()
        return params
