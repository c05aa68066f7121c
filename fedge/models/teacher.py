"""Teachers, which only the server holds: built-in families by name, and the check that any teacher fits."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedge.errors import ConfigError
from fedge.models.teacher_autoencoder import Autoencoder
from fedge.models.teacher_inception import FILTERS, Inception
from fedge.models.teacher_residual import WIDTHS, Residual
from fedge.plugins import nearest

FAMILIES = ("residual", "inception", "autoencoder")
SIZES = ("small", "base", "large", "huge")
"""About 0.23, 0.7, 2.5 and 10 million parameters."""

_CHECKED = (2, 1)  # windows of the batches that a teacher is tried with


def build_teacher(family: str, size: str, window: tuple[int, ...], outputs: int) -> nn.Module:
    """A fresh teacher from ``[n, channels, time]`` or ``[n, channels, height, width]`` to ``[n, outputs]``.

    It also has ``features(x) -> [n, d]``, and ``head``, which makes the outputs of them.

    Args:
        family: one of ``FAMILIES``.
        size: one of ``SIZES``.
        window: ``(time, channels)``, or ``(height, width, channels)`` for images.
        outputs: classes, or 1 for a number, or the length of what an autoencoder reconstructs.

    Raises:
        ConfigError: no such family or size, or the family is not for such windows.
    """
    if family not in FAMILIES:
        raise ConfigError(f"teacher.family: unknown family {family!r}; {nearest(family, list(FAMILIES))}")
    if size not in SIZES:
        raise ConfigError(f"teacher.size: unknown size {size!r}; {nearest(size, list(SIZES))}")
    if len(window) not in (2, 3) or min(*window, outputs) < 1:
        raise ConfigError(f"no teacher from windows {list(window)} to {outputs} outputs")
    if family == "inception":
        if len(window) != 2:
            raise ConfigError(
                "teacher.family: inception is for windows [time, channels]; images need residual"
            )
        return Inception(FILTERS[size], window[1], outputs)
    widths = WIDTHS[len(window) - 1][size]
    return (Residual if family == "residual" else Autoencoder)(widths, window, outputs)


def check_teacher(teacher: nn.Module, window: tuple[int, ...], outputs: int) -> None:
    """Try a teacher on two windows of noise, and on one; its weights and mode stay as they are.

    Args:
        teacher: from float32 ``[n, channels, *size]`` to float32 ``[n, outputs]``.
        window: ``(*size, channels)``.
        outputs: what the task needs.

    Raises:
        ConfigError: it fails, answers with anything else, with values that are not finite, or with
            probabilities, which the losses would soften a second time. It says what the teacher gives.
    """
    for n in _CHECKED:
        x = _noise(n, window)
        need = f"the task gives a teacher float32 {list(x.shape)} and needs float32 {[n, outputs]}"
        try:
            answer = _tried(teacher, teacher, x)
        except Exception as error:  # whatever the user's own code raises
            raise ConfigError(f"the teacher fails: {first_line(error)}; {need}") from error
        if not isinstance(answer, Tensor):
            raise ConfigError(f"the teacher gives a {type(answer).__name__}; {need}")
        if answer.shape != (n, outputs) or answer.dtype != torch.float32:
            kind = str(answer.dtype).removeprefix("torch.")
            raise ConfigError(f"the teacher gives {kind} {list(answer.shape)}; {need}")
        if not answer.isfinite().all():
            raise ConfigError("the teacher's answer to standard normal noise is not finite")
        if outputs > 1 and (answer >= 0).all() and torch.allclose(answer.sum(1), torch.ones(n), atol=1e-4):
            raise ConfigError("the teacher gives probabilities; give logits: leave its softmax out")


def feature_width(teacher: nn.Module, window: tuple[int, ...]) -> int | None:
    """``d`` of the teacher's ``features(x) -> [n, d]``; None where it has none, or of another shape."""
    features = getattr(teacher, "features", None)
    if not callable(features):
        return None
    x = _noise(_CHECKED[0], window)
    try:
        given = _tried(teacher, features, x)
    except Exception:  # the user's own code; a loss that needs features will say that there are none
        return None
    if isinstance(given, Tensor) and given.dim() == 2 and len(given) == len(x):
        return int(given.shape[1])
    return None


def _noise(n: int, window: tuple[int, ...]) -> Tensor:
    """Standard normal windows ``[n, channels, *size]``, the same every time."""
    *size, channels = window
    return torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(0))


def _tried(teacher: nn.Module, call: Callable[[Tensor], object], x: Tensor) -> object:
    """What ``call`` answers while ``teacher`` is in evaluation mode; nothing is left changed."""
    modes = [(m, m.training) for m in teacher.modules()]
    try:
        teacher.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return call(x)
    finally:
        for module, training in modes:
            module.training = training


def first_line(error: BaseException) -> str:
    """What went wrong in other people's code, on one line of at most 200 characters."""
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}"[:200] if text else type(error).__name__
