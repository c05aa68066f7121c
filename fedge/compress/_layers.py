"""A student's convolutions as they are written into a model: the same sums, laid out for quick kernels.

ONNX Runtime's integer kernels are quickest for channels by fours, its float kernels for images
(``docs/decisions/onnx-for-speed.md``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedge.models.student import StudentSpec

_TOGETHER = 4  # channels that an integer kernel takes at once


@dataclass(frozen=True, eq=False)
class Layer:
    """One convolution with bias.

    Attributes:
        name: of the layer.
        weight: ``[outputs, inputs / groups, *kernel]`` float32.
        bias: ``[outputs]`` float32.
        strides: along each axis.
        pads: zeros before the first place of each axis, then after the last of each.
        groups: of channels.
        shape: of its result, without the batch: ``(outputs, *size)``.
    """

    name: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    groups: int
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Stack:
    """Convolutions, one after the other, and the shape ``(*size, channels)`` in which they take a window."""

    window: tuple[int, ...]
    layers: tuple[Layer, ...]

    @property
    def input(self) -> tuple[int, ...]:
        """The shape of a window, channels first."""
        return (self.window[-1], *self.window[:-1])


def as_described(spec: StudentSpec, arrays: Mapping[str, NDArray[np.float32]]) -> Stack:
    """The convolutions of ``spec`` with weights ``arrays``."""
    flat = len(spec.size)
    layers = tuple(
        Layer(
            c.name,
            arrays[f"{c.name}.weight"],
            arrays[f"{c.name}.bias"],
            (c.stride,) * flat,
            (c.kernel // 2,) * 2 * flat,
            c.groups,
            (c.outputs, *size),
        )
        for c, size in zip(spec.convs, spec.sizes(), strict=True)
    )
    return Stack(spec.window, layers)


def side_by_side(stack: Stack) -> Stack:
    """Windows with the samples of a stride side by side, as channels of one sample, where that makes fours.

    A window ``[time, channels]`` becomes ``[time / stride, stride * channels]``, which moves nothing in
    memory, and the first convolution takes the same products at stride 1.
    """
    first, *others = stack.layers
    *size, channels = stack.window
    step = first.strides[0]
    fits = len(size) == 1 and size[0] % step == 0 and first.groups == 1
    if not fits or channels % _TOGETHER == 0 or step * channels % _TOGETHER != 0:
        return stack
    weight, pads = _over_steps(first.weight, first.pads[0], step)
    made = replace(first, weight=weight, strides=(1,), pads=pads)
    return Stack((size[0] // step, step * channels), (made, *others))


def _over_steps(
    weight: NDArray[np.float32], pad: int, step: int
) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """A kernel ``[outputs, inputs, places]`` of stride ``step`` for samples side by side, and its pads.

    Its places, ``-pad`` to ``places - 1 - pad`` from where it is applied, fall into steps ``first`` to
    ``last``; where they do not fill these, there are zeros.
    """
    outputs, inputs, places = weight.shape
    first, last = -pad // step, (places - 1 - pad) // step
    before = -pad - first * step
    after = (last + 1 - first) * step - before - places
    whole = np.pad(weight, ((0, 0), (0, 0), (before, after)))
    split = whole.reshape(outputs, inputs, last + 1 - first, step)
    made = np.moveaxis(split, 3, 1).reshape(outputs, step * inputs, -1)
    return np.ascontiguousarray(made), (-first, last)


def as_images(stack: Stack) -> Stack:
    """Windows ``[time, channels]`` as images of one row."""
    if len(stack.window) == 3:
        return stack
    layers = tuple(
        replace(
            layer,
            weight=layer.weight[:, :, None],
            strides=(1, *layer.strides),
            pads=(0, layer.pads[0], 0, layer.pads[1]),
            shape=(layer.shape[0], 1, layer.shape[1]),
        )
        for layer in stack.layers
    )
    return Stack((1, *stack.window), layers)
