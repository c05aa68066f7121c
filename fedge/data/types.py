"""What data is, once it has been read: windows, whose they are, and how they are split."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Windows:
    """Some windows of one client, in time order.

    Attributes:
        x: ``[n, time, channels]`` float32, in the sensor's own units.
        y: ``[n]`` int64, class index.
        group: ``[n]`` int64, the recording or physical object a window comes from.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    group: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> "Windows":
        """The windows at ``index`` (positions or a mask), in that order."""
        return Windows(self.x[index], self.y[index], self.group[index])


@dataclass(frozen=True, eq=False)
class ClientData:
    """What one client holds: windows to train on, to judge candidates on, and its own later data.

    No window of one part shares a sample with a window of another.

    Attributes:
        train: what the client fine-tunes on.
        judge: the last of its training part, never trained on: candidates are scored on it.
        later: the client's last quarter per class, for its own evaluation and its gate.
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
        classes: names of the classes; ``y`` indexes them.
        channels: names of the channels.
    """

    name: str
    clients: Mapping[str, Windows]
    classes: tuple[str, ...]
    channels: tuple[str, ...]

    @property
    def window(self) -> tuple[int, int]:
        """Shape of one window: ``(time, channels)``."""
        x = next(iter(self.clients.values())).x
        return x.shape[1], x.shape[2]


@dataclass(frozen=True)
class Roles:
    """Which clients' data is the server's own, who takes part, and who is never seen in training."""

    server: tuple[str, ...]
    participants: tuple[str, ...]
    unseen: tuple[str, ...]
