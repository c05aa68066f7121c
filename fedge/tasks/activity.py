"""Windows of sensor data to classes: what a person does, what state a machine is in."""

from typing import TYPE_CHECKING

from fedge.tasks import Task, Turning

if TYPE_CHECKING:
    from torch import Generator, Tensor


def loss(outputs: "Tensor", labels: "Tensor") -> "Tensor":
    """Cross-entropy of ``outputs [n, classes]`` with ``labels [n]``."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(outputs, labels)


def augment(x: "Tensor", generator: "Generator", turning: Turning) -> "Tensor":
    """Windows ``[n, channels, time]`` as another wearer or mounting would give them."""
    from fedge.augment import WindowVariation, vary_windows

    return vary_windows(x, generator, WindowVariation(rotation=turning.degrees, triples=turning.triples))


TASK = Task(
    name="activity",
    target="class",
    images=False,
    metric="accuracy",
    also=("macro_f1",),
    teacher="residual",
    distillation="soft_targets",
    loss=loss,
    augment=augment,
)
