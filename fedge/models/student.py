"""The student: a small convolutional network, as a description and a pure forward pass.

A student is data, not a class: ``StudentSpec`` says which layers there are, and ``forward`` runs them on
named tensors. The same description is run in float, run with fake quantization (``fedge.compress.quantize``),
exported to ONNX (``fedge.compress.export``), cut down (``fedge.compress.structured``) and counted, so these
cannot drift apart. There is no normalisation layer in it: the server distils with BatchNorm (``normalised``)
and folds it away before anything is sent (Jacob et al. 2018, section 3.2), because with one in the graph int8
is slower than float. The named sizes are in ``student_families``.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from torch import Tensor

from fedge.errors import PayloadError

Params = Mapping[str, Tensor]

SPREAD_FLOOR = 0.1
"""Added to a channel's spread before its logarithm is taken, in standard deviations of the channel."""

_MOST_PARAMETERS = 50_000_000
_MOST_ACTIVATIONS = 1 << 24  # of one layer, for one window
_NOT_ONE = "not a description of a student"


@dataclass(frozen=True)
class Conv:
    """A convolution with bias and ReLU; padding ``kernel // 2`` on both sides.

    ``groups`` is 1, or ``inputs`` for a depthwise one. Images have square kernels.
    """

    name: str
    inputs: int
    outputs: int
    kernel: int
    stride: int
    groups: int = 1

    @property
    def depthwise(self) -> bool:
        """Whether each channel is filtered by itself."""
        return self.groups > 1


@dataclass(frozen=True)
class Reconstruction:
    """What a student for anomalies reconstructs of a window ``[channels, time]``: what its end is like.

    For each channel, the mean over the last ``recent`` samples, and the logarithm of the standard deviation
    there (plus ``SPREAD_FLOOR``): its level and its spread. Each is divided by ``scale``, so that all of them
    vary alike where nothing is wrong. The anomaly score of a window is the mean squared difference between
    what the student says and what is.

    Attributes:
        recent: samples.
        scale: ``2 * channels`` numbers above 0: how much each of the two varies in normal windows.
    """

    recent: int
    scale: tuple[float, ...]


@dataclass(frozen=True)
class Number:
    """What turns the output of a student for a number into the number: ``offset + scale * output``."""

    offset: float
    scale: float


@dataclass(frozen=True)
class StudentSpec:
    """The layers of a student: convolutions, the mean over time or area, one dense layer.

    Attributes:
        channels: of a window or an image.
        size: ``(time,)`` or ``(height, width)``.
        outputs: numbers that the dense layer gives: one a class, one, or a reconstruction.
        convs: the convolutions, in order.
        reconstruction: set for a student whose score is how far its reconstruction is off.
        number: set for a student that says a number.
    """

    channels: int
    size: tuple[int, ...]
    outputs: int
    convs: tuple[Conv, ...]
    reconstruction: Reconstruction | None = None
    number: Number | None = None

    @property
    def window(self) -> tuple[int, ...]:
        """Shape of a window as data have it: ``(time, channels)`` or ``(height, width, channels)``."""
        return (*self.size, self.channels)

    @property
    def input(self) -> tuple[int, ...]:
        """Shape of a window as the student takes it: channels first."""
        return (self.channels, *self.size)

    @property
    def features(self) -> int:
        """Length of the vector that the dense layer sees."""
        return self.convs[-1].outputs

    @property
    def scores(self) -> int:
        """Numbers in one answer."""
        return 1 if self.reconstruction else self.outputs

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights, in the order in which they travel."""
        shapes: dict[str, tuple[int, ...]] = {}
        for c in self.convs:
            shapes[f"{c.name}.weight"] = (c.outputs, c.inputs // c.groups, *[c.kernel] * len(self.size))
            shapes[f"{c.name}.bias"] = (c.outputs,)
        shapes["head.weight"] = (self.outputs, self.features)
        shapes["head.bias"] = (self.outputs,)
        return shapes

    def parameters(self) -> int:
        """Number of weights and biases."""
        return sum(math.prod(s) for s in self.shapes().values())

    def sizes(self) -> list[tuple[int, ...]]:
        """What is left of ``size`` after each convolution."""
        sizes, size = [], self.size
        for c in self.convs:
            size = tuple((s + 2 * (c.kernel // 2) - c.kernel) // c.stride + 1 for s in size)
            sizes.append(size)
        return sizes

    def multiply_adds(self) -> int:
        """Multiply-adds for one window."""
        total = self.outputs * self.features
        for c, size in zip(self.convs, self.sizes(), strict=True):
            total += c.outputs * (c.inputs // c.groups) * c.kernel ** len(size) * math.prod(size)
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
            size, rebuilt = tuple(fields.pop("size")), fields.pop("reconstruction", None)
            if rebuilt is not None:
                rebuilt = Reconstruction(rebuilt["recent"], tuple(rebuilt["scale"]))
            number = fields.pop("number", None)
            if number is not None:
                number = Number(float(number["offset"]), float(number["scale"]))
            spec = StudentSpec(convs=convs, size=size, reconstruction=rebuilt, number=number, **fields)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise PayloadError(f"{_NOT_ONE}: {error}") from None
        return checked(spec)


def checked(spec: StudentSpec) -> StudentSpec:
    """``spec``, if its layers fit each other and it is of a size that a device can be asked to hold.

    Raises:
        PayloadError: otherwise; the message says what does not fit.
    """
    numbers = [spec.channels, *spec.size, spec.outputs]
    numbers += [n for c in spec.convs for n in (c.inputs, c.outputs, c.kernel, c.stride, c.groups)]
    if not 1 <= len(spec.convs) <= 64 or not all(type(n) is int and 1 <= n <= 65_536 for n in numbers):
        raise PayloadError(f"{_NOT_ONE}: a layer count or size is out of range")
    if len(spec.size) not in (1, 2):
        raise PayloadError(f"{_NOT_ONE}: it takes windows [time] or images [height, width], not {spec.size}")
    names = [str(c.name) for c in spec.convs]
    if len(set(names)) < len(names) or {"input", "mean", "head"} & set(names):
        raise PayloadError(f"{_NOT_ONE}: a layer's name is taken")
    before = spec.channels
    for c in spec.convs:
        if c.inputs != before or not isinstance(c.name, str) or not c.name.isidentifier():
            raise PayloadError(f"{_NOT_ONE}: layer {c.name!r} does not fit the one before")
        if c.groups != 1 and not c.groups == c.inputs == c.outputs:
            raise PayloadError(f"{_NOT_ONE}: layer {c.name!r} has groups but is not depthwise")
        before = c.outputs
    _check_extent(spec)
    return spec


def _check_extent(spec: StudentSpec) -> None:
    if spec.parameters() > _MOST_PARAMETERS:
        raise PayloadError(f"{_NOT_ONE}: more than {_MOST_PARAMETERS} parameters")
    widest = max(spec.channels, *(c.outputs for c in spec.convs))
    if math.prod(spec.size) * widest > _MOST_ACTIVATIONS:
        raise PayloadError(f"{_NOT_ONE}: a layer's output is too large")
    if (n := spec.number) is not None and not (
        spec.outputs == 1 and abs(n.offset) < 1e12 and 1e-12 < n.scale < 1e12 and not spec.reconstruction
    ):
        raise PayloadError(f"{_NOT_ONE}: the number that it says is out of range")
    if (r := spec.reconstruction) is None:
        return
    if len(spec.size) != 1 or spec.outputs != 2 * spec.channels or len(r.scale) != spec.outputs:
        raise PayloadError(f"{_NOT_ONE}: it does not reconstruct two numbers a channel of a window")
    if type(r.recent) is not int or not 1 <= r.recent <= spec.size[0]:
        raise PayloadError(f"{_NOT_ONE}: it reconstructs more than its window")
    if not all(isinstance(s, float) and 1e-6 <= s <= 1e6 for s in r.scale):
        raise PayloadError(f"{_NOT_ONE}: a scale of its reconstruction is out of range")


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


def features(spec: StudentSpec, params: Params, x: Tensor, numerics: Numerics = FLOAT) -> Tensor:
    """What the dense layer sees, ``[n, features]``, of windows ``x [n, channels, *size]``."""
    convolve = F.conv1d if len(spec.size) == 1 else F.conv2d
    x = numerics.activation("input", x)
    for c in spec.convs:
        weight, bias = numerics.weights(c.name, params[f"{c.name}.weight"], params[f"{c.name}.bias"])
        x = F.relu(convolve(x, weight, bias, stride=c.stride, padding=c.kernel // 2, groups=c.groups))
        x = numerics.activation(c.name, x)
    return numerics.activation("mean", x.mean(dim=tuple(range(2, x.dim()))))


def head(params: Params, seen: Tensor, numerics: Numerics = FLOAT) -> Tensor:
    """Outputs ``[n, outputs]`` of features ``[n, features]``."""
    weight, bias = numerics.weights("head", params["head.weight"], params["head.bias"])
    return F.linear(seen, weight, bias)


def forward(spec: StudentSpec, params: Params, x: Tensor, numerics: Numerics = FLOAT) -> Tensor:
    """Outputs ``[n, outputs]`` of windows ``x [n, channels, *size]``: logits, a number, a reconstruction."""
    return head(params, features(spec, params, x, numerics), numerics)


def summary(r: Reconstruction, x: Tensor) -> Tensor:
    """What there is to reconstruct, ``[n, 2 * channels]``, of windows ``x [n, channels, time]``."""
    end = x[:, :, -r.recent :]
    level = end.mean(dim=2)
    spread = ((end - level[:, :, None]).square().mean(dim=2)).sqrt()
    return torch.cat([level, torch.log(spread + SPREAD_FLOOR)], dim=1) / torch.tensor(r.scale)


def scores(spec: StudentSpec, x: Tensor, outputs: Tensor) -> Tensor:
    """Answers ``[n, scores]``: the outputs themselves, the number, or how far the reconstruction is off."""
    if spec.number is not None:
        return outputs * spec.number.scale + spec.number.offset
    if spec.reconstruction is None:
        return outputs
    return (outputs - summary(spec.reconstruction, x)).square().mean(dim=1, keepdim=True)
