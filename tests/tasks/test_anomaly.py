import torch

from fedge.tasks import Turning
from fedge.tasks.anomaly import augment


def test_half_of_the_windows_are_spoilt_and_the_rest_only_gets_noise() -> None:
    x = torch.randn(2000, 3, 16, generator=torch.Generator().manual_seed(1))
    spoilt = augment(x, torch.Generator().manual_seed(0), Turning())
    moved = (spoilt - x)[:, :, -4:].mean(dim=2).abs().amax(dim=1)  # noise alone: 0.05 / 2 a channel
    assert 0.45 < float((moved > 0.1).float().mean()) < 0.55
    assert float(moved.max()) < 4.2
