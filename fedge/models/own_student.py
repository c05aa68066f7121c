"""A user's own student: its description, read from a torch module, or what to change about the module.

A student has to be exported operator by operator, quantized, cut and counted (``student``), so not every
module can be one. Whatever stands in the way is named layer by layer, with what to put in its place, in the
manner of Opacus' module validator (Yousefpour et al. 2021).
"""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn

from fedge.errors import ConfigError, PayloadError
from fedge.models.student import Conv, StudentSpec, checked

_TOLD = 4  # problems named in one message

_IGNORED = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.RMSNorm, nn.LocalResponseNorm)
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)
_LAST = (nn.Softmax, nn.LogSoftmax)

_ADVICE: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    (_RECURRENT, "use convolutions: dynamic quantization gains nothing for recurrent layers"),
    (_NORMS, "int8 becomes slower than float with it; use BatchNorm, which is folded away"),
    (_POOLS, "use a stride in the convolution instead"),
    (_LAST, "leave it out: the loss and the device take the raw outputs"),
    ((nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder), "use convolutions"),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Upsample), "a student only narrows; use a convolution"),
)
_KNOWN = "known are Conv, BatchNorm, ReLU, AdaptiveAvgPool(1), Flatten, Dropout and Linear"


@dataclass
class _Reading:
    """What has been read so far of a module."""

    flat: bool  # windows, not images
    channels: int
    convs: list[Conv] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    pending: str = ""  # the convolution whose ReLU is still to come
    normed: bool = False  # and whether its BatchNorm has
    averaged: bool = False
    head: nn.Linear | None = None
    head_at: str = ""

    @property
    def width(self) -> int:
        return self.convs[-1].outputs if self.convs else self.channels

    @property
    def dimensions(self) -> str:
        return "1d" if self.flat else "2d"


def spec_from(module: nn.Module, window: tuple[int, ...], outputs: int) -> StudentSpec:
    """The description of ``module``: only its layers are read, its weights are not.

    ``module`` is an ``nn.Sequential``, which may hold others: convolutions (each with a ReLU, with or without
    BatchNorm before it), the mean over time or area, one ``nn.Linear``. Dropout is ignored. A convolution has
    padding ``kernel // 2``, no dilation, and groups 1 or as many as channels.

    Args:
        module: the user's.
        window: ``(time, channels)`` or ``(height, width, channels)``.
        outputs: numbers that the last layer must give.

    Raises:
        ConfigError: something in it cannot be in a student; the message says where, what, and what to do.
    """
    *size, channels = window
    state = _Reading(len(size) == 1, channels)
    for place, (path, layer) in enumerate(_layers(module), start=1):
        _read(state, f"layer {place} ({path + ': ' if path else ''}{type(layer).__name__})", layer)
    _finish(state, outputs)
    if state.problems:
        more = len(state.problems) - _TOLD
        told = "; ".join(state.problems[:_TOLD]) + (f"; and {more} more" if more > 0 else "")
        raise ConfigError(f"student.module: {told}")
    try:
        return checked(StudentSpec(channels, tuple(size), outputs, tuple(state.convs)))
    except PayloadError as error:
        raise ConfigError(f"student.module: {error}") from None


def load_spec(name: str, window: tuple[int, ...], outputs: int) -> StudentSpec:
    """Import a function ``package.module:function`` and read the module that ``(window, outputs)`` gives.

    Raises:
        ConfigError: it cannot be imported or called, or what it gives is no student (``spec_from``).
    """
    path, _, attribute = name.partition(":")
    if not path or not attribute:
        raise ConfigError(f"student.module: {name!r} is not of the form 'package.module:function'")
    try:
        made = getattr(importlib.import_module(path), attribute)(window, outputs)
    except ModuleNotFoundError as error:
        where = "; is its folder on PYTHONPATH?" if path.split(".")[0] == (error.name or "") else ""
        raise ConfigError(f"student.module: {path!r} cannot be imported: {error}{where}") from None
    except Exception as error:  # a user's code may fail in any way
        what = str(error).splitlines()[0] if str(error) else "no message"
        raise ConfigError(f"student.module: {name!r} failed: {type(error).__name__}: {what}") from error
    if not isinstance(made, nn.Module):
        raise ConfigError(f"student.module: {name!r} gives a {type(made).__name__}, not a torch module")
    return spec_from(made, window, outputs)


def _layers(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layers in order, with the names by which the user's module knows them."""
    if type(module).forward is not nn.Sequential.forward:
        yield path, module
        return
    for name, child in module.named_children():
        yield from _layers(child, f"{path}.{name}" if path else name)


def _read(state: _Reading, where: str, layer: nn.Module) -> None:
    if isinstance(layer, _IGNORED):
        return
    if state.head is not None:
        state.problems.append(f"{where}: {_after_head(layer)}")
    elif isinstance(layer, nn.Conv1d | nn.Conv2d):
        _convolution(state, where, layer)
    elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        _norm(state, where, layer)
    elif isinstance(layer, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d | nn.Flatten):
        _mean(state, where, layer)
    elif isinstance(layer, nn.Linear):
        _head(state, where, layer)
    else:
        if not isinstance(layer, nn.ReLU):
            state.problems.append(f"{where}: {_advice(layer)}")
        elif not state.pending:
            state.problems.append(f"{where}: there is no convolution before it; leave it out")
        if _activation(layer):  # told already: no second complaint that the ReLU is missing
            state.pending = ""


def _after_head(layer: nn.Module) -> str:
    if isinstance(layer, nn.Linear):
        return "a student has one Linear; leave out one of them"
    return _advice(layer) if isinstance(layer, _LAST) else "nothing may follow the Linear; leave it out"


def _activation(layer: nn.Module) -> bool:
    return type(layer).__module__ == "torch.nn.modules.activation" and not isinstance(
        layer, (*_LAST, nn.MultiheadAttention)
    )


def _advice(layer: nn.Module) -> str:
    for kinds, advice in _ADVICE:
        if isinstance(layer, kinds):
            return advice
    if _activation(layer):
        return "use ReLU: it becomes part of the int8 convolution, others run in float"
    if next(layer.children(), None) is not None:
        return f"its forward cannot be read; write it as an nn.Sequential ({_KNOWN})"
    return f"it cannot be in a student; {_KNOWN}"


def _close(state: _Reading) -> None:
    """Complain about a convolution without a ReLU before the next step begins."""
    if state.pending:
        state.problems.append(f"{state.pending}: put a ReLU after it")
    state.pending = ""


def _convolution(state: _Reading, where: str, layer: nn.Conv1d | nn.Conv2d) -> None:
    _close(state)
    if state.averaged:
        state.problems.append(f"{where}: it comes after the mean; put it before")
    if isinstance(layer, nn.Conv1d) is not state.flat:
        windows = "windows [time, channels]" if state.flat else "images [height, width, channels]"
        state.problems.append(f"{where}: use Conv{state.dimensions} for {windows}")
    state.problems += [f"{where}: {p}" for p in _conv_problems(layer, state.width)]
    name = f"conv{len(state.convs) + 1}"
    inputs, outputs, groups = layer.in_channels, layer.out_channels, layer.groups
    state.convs.append(Conv(name, inputs, outputs, layer.kernel_size[0], layer.stride[0], groups))
    state.pending, state.normed = where, False


def _conv_problems(layer: nn.Conv1d | nn.Conv2d, before: int) -> Iterator[str]:
    kernel = layer.kernel_size[0]
    if layer.in_channels != before:
        yield f"it takes {layer.in_channels} channels but gets {before}"
    if len(set(layer.kernel_size)) > 1 or len(set(layer.stride)) > 1:
        yield "use a square kernel and the same stride both ways"
    elif not _padded(layer):
        yield f"use padding={kernel // 2} (kernel // 2)"
    if layer.padding_mode != "zeros":
        yield f"use padding_mode='zeros', not {layer.padding_mode!r}"
    if set(layer.dilation) != {1}:
        yield "use dilation=1: a larger kernel or a stride sees as far"
    if layer.groups != 1 and not layer.groups == layer.in_channels == layer.out_channels:
        yield f"use groups=1, or depthwise: groups={layer.in_channels} and as many outputs as inputs"


def _padded(layer: nn.Conv1d | nn.Conv2d) -> bool:
    half = layer.kernel_size[0] // 2
    if isinstance(layer.padding, str):
        return half == 0 or (layer.padding == "same" and layer.kernel_size[0] % 2 == 1)
    return set(layer.padding) == {half}


def _norm(state: _Reading, where: str, layer: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    if not state.pending or state.normed:
        state.problems.append(f"{where}: put it between a convolution and its ReLU, where it is folded away")
    elif layer.num_features != state.width:
        state.problems.append(f"{where}: it takes {layer.num_features} channels but gets {state.width}")
    state.normed = True


def _mean(state: _Reading, where: str, layer: nn.Module) -> None:
    _close(state)
    if isinstance(layer, nn.Flatten):
        if not state.averaged:
            pool = f"AdaptiveAvgPool{state.dimensions}(1)"
            state.problems.append(f"{where}: put {pool} before it; the Linear sees the mean only")
        elif (layer.start_dim, layer.end_dim) != (1, -1):
            state.problems.append(f"{where}: use Flatten()")
    else:
        size = layer.output_size
        if (set(size) if isinstance(size, tuple) else {size}) != {1}:
            state.problems.append(f"{where}: use output size 1, the mean over everything")
        if isinstance(layer, nn.AdaptiveAvgPool1d) is not state.flat:
            state.problems.append(f"{where}: use AdaptiveAvgPool{state.dimensions}(1)")
    state.averaged = True


def _head(state: _Reading, where: str, layer: nn.Linear) -> None:
    _close(state)
    if not state.averaged:
        state.problems.append(f"{where}: put AdaptiveAvgPool{state.dimensions}(1) and Flatten before it")
    state.head, state.head_at = layer, where


def _finish(state: _Reading, outputs: int) -> None:
    _close(state)
    if not state.convs:
        state.problems.append("there is no convolution in it")
    if state.head is None:
        state.problems.append(f"it must end in Linear({state.width}, {outputs})")
    elif (state.head.in_features, state.head.out_features) != (state.width, outputs):
        state.problems.append(f"{state.head_at}: must be Linear({state.width}, {outputs})")
