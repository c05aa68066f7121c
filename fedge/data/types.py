"""What data is, once it has been read: windows, whose they are, and how they are split."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

TargetKind = Literal["class", "number", "anomaly"]
"""What is to be told of a window: one of some classes, a number, or whether it is out of the ordinary."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Some windows (or images) of one client, in time order.

    Attributes:
        x: ``[n, time, channels]`` or ``[n, height, width, channels]`` float32, in the sensor's own units.
        y: ``[n]``: int64 class index (0 normal, 1 anomalous), or float32 where the target is a number.
        group: ``[n]`` int64, the recording or physical object a window comes from.
        trainable: ``[n]`` bool, which windows may be trained on; None for all of them.
    """

    x: NDArray[np.float32]
    y: NDArray[Any]
    group: NDArray[np.int64]
    trainable: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> "Windows":
        """The windows at ``index`` (positions or a mask), in that order."""
        usable = None if self.trainable is None else self.trainable[index]
        return Windows(self.x[index], self.y[index], self.group[index], usable)

    def to_train_on(self) -> "Windows":
        """Those that may be trained on."""
        return self if self.trainable is None else self.take(self.trainable)

    @staticmethod
    def joined(parts: "list[Windows]") -> "Windows":
        """Several lots of windows, one after the other."""
        usable = [np.ones(len(p), bool) if p.trainable is None else p.trainable for p in parts]
        whole = all(p.trainable is None for p in parts)
        return Windows(
            np.concatenate([p.x for p in parts]),
            np.concatenate([p.y for p in parts]),
            np.concatenate([p.group for p in parts]),
            None if whole else np.concatenate(usable),
        )


@dataclass(frozen=True, eq=False)
class ClientData:
    """What one client holds: windows to train on, to judge candidates on, and its own later data.

    No window of one part shares a sample with a window of another, and no image is in two parts.

    Attributes:
        train: what the client fine-tunes on; only windows that may be trained on.
        judge: the last of its training part, never trained on: candidates are scored on it.
        later: the client's last quarter (of each class), for its own evaluation and its gate.
        dropped: windows left out because they share samples with another part.
    """

    train: Windows
    judge: Windows
    later: Windows
    dropped: int


@dataclass(frozen=True, eq=False)
class Dataset:
    """Everyone's windows, as one machine sees them in a simulation.

    Attributes:
        name: what to call it in a report.
        clients: the windows of each client, by id; ids in sorted order (numbers by value).
        classes: names of the classes; ``y`` indexes them. Empty where the target is a number.
        channels: names of the channels.
    """

    name: str
    clients: Mapping[str, Windows]
    classes: tuple[str, ...]
    channels: tuple[str, ...]

    @property
    def window(self) -> tuple[int, ...]:
        """Shape of one window: ``(time, channels)``, or ``(height, width, channels)``."""
        return next(iter(self.clients.values())).x.shape[1:]


@dataclass(frozen=True)
class Roles:
    """Which clients' data is the server's own, who takes part, and who is never seen in training.

    Attributes:
        server: whose windows the server has with labels.
        participants: who takes part.
        unseen: whose windows are held out of training altogether.
        unlabelled: whose windows the server has without their labels.
    """

    server: tuple[str, ...]
    participants: tuple[str, ...]
    unseen: tuple[str, ...]
    unlabelled: tuple[str, ...] = ()
