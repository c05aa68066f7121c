"""The model, the data and the training: plain PyTorch, nothing of Flower or fedge."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (PyTorch's own convention)

Split = tuple[Tensor, Tensor]
"""Images ``[n, 1, 8, 8]`` in 0..1, and labels ``[n]``."""


class Net(nn.Module):
    """A small CNN for images of 8 x 8 pixels: 57,110 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc1 = nn.Linear(32 * 4 * 4, 100)
        self.fc2 = nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[n, 1, 8, 8]`` to logits ``[n, 10]``."""
        x = F.relu(self.conv1(x))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def load_data(partition: int, partitions: int) -> tuple[Split, Split]:
    """One client's images, every ``partitions``-th: four fifths to train on, a fifth for the test."""
    x, y = _digits()
    mine = np.arange(partition, len(y), partitions)
    test = mine[::5]
    train = np.setdiff1d(mine, test)
    return (x[train], y[train]), (x[test], y[test])


def _digits() -> Split:
    digits = load_digits()
    x = torch.from_numpy(digits.images.astype(np.float32) / 16).unsqueeze(1)
    return x, torch.from_numpy(digits.target.astype(np.int64))


def train(net: nn.Module, data: Split, epochs: int, lr: float, batch: int, seed: int) -> float:
    """Train in place with SGD and momentum; the mean loss of the last epoch."""
    x, y = data
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    order = torch.Generator().manual_seed(seed)
    loss_sum = 0.0
    for _ in range(epochs):
        loss_sum = 0.0
        for index in torch.randperm(len(y), generator=order).split(batch):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x[index]), y[index])
            loss.backward()
            optimizer.step()
            loss_sum += loss.item() * len(index)
    return loss_sum / len(y)


@torch.no_grad()
def test(net: nn.Module, data: Split) -> tuple[float, float]:
    """Mean loss and accuracy."""
    x, y = data
    logits = net(x)
    return F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).float().mean().item()
