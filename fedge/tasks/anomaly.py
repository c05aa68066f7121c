"""Windows of something that works, to tell when it does not: learned from normal windows only.

The student sees windows of which half have been spoilt the way faults spoil them (a level that jumps or
drifts, on some of the channels), and learns to say what the end of the window was like before (a denoising
autoencoder: Vincent et al. 2008; of a summary of the window, because single samples are noise). A window of
a machine that has drifted is taken back to what it would be like if nothing were wrong, so what is said and
what is differ, and how much they differ is the score. An autoencoder that is only asked to copy its input
copies a fault as well as anything else.
"""

from typing import TYPE_CHECKING

from fedge.tasks import Task, Turning

if TYPE_CHECKING:
    from torch import Generator, Tensor


def loss(outputs: "Tensor", targets: "Tensor") -> "Tensor":
    """Mean squared error of ``outputs [n, outputs]``."""
    from torch.nn.functional import mse_loss

    return mse_loss(outputs, targets)


def augment(x: "Tensor", generator: "Generator", _turning: Turning) -> "Tensor":
    """Windows ``[n, channels, time]`` of which half have a fault."""
    from fedge.augment import corrupted

    return corrupted(x, generator)


TASK = Task(
    name="anomaly",
    target="anomaly",
    images=False,
    metric="auroc",
    also=("auprc",),
    teacher="autoencoder",
    distillation="reconstruction",
    loss=loss,
    augment=augment,
)
