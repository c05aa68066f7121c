"""Windows to a number: for how many cycles or hours will this go on working?"""

from typing import TYPE_CHECKING

from fedge.tasks import Task, Turning

if TYPE_CHECKING:
    from torch import Generator, Tensor


def loss(outputs: "Tensor", targets: "Tensor") -> "Tensor":
    """Mean squared error of ``outputs [n, outputs]``."""
    from torch.nn.functional import mse_loss

    return mse_loss(outputs, targets)


def augment(x: "Tensor", generator: "Generator", _turning: Turning) -> "Tensor":
    """Windows ``[n, channels, time]`` as another machine of the same age would give them."""
    from fedge.augment import WindowVariation, vary_windows

    # Little: the level of a channel is what tells how worn a machine is.
    how = WindowVariation(scale=0.02, jitter=0.1, offset=0.02, shift=0.0)
    return vary_windows(x, generator, how)


TASK = Task(
    name="remaining_life",
    target="number",
    images=False,
    metric="negative_rmse",
    also=(),
    teacher="residual",
    distillation="regression",
    loss=loss,
    augment=augment,
)
