import pytest
import torch

from fedge.tasks import Turning
from fedge.tasks.camera import augment


@pytest.mark.parametrize("side", [4, 8, 30])
def test_an_image_is_shifted_by_a_tenth_at_most_and_never_mirrored(side: int) -> None:
    """A bright column, left of the middle, in every image."""
    x = torch.zeros(300, 1, side, side)
    at = side // 2 - 1
    x[:, :, :, at] = 10.0
    varied = augment(x, torch.Generator().manual_seed(0), Turning())
    found = set((varied.amax(dim=2)[:, 0].argmax(dim=1) - at).tolist())
    most = max(1, round(side / 10))
    assert found == set(range(-most, most + 1))
    ramp = torch.arange(side).float().expand(300, 1, side, side)
    slope = augment(ramp, torch.Generator().manual_seed(1), Turning()).diff(dim=3)
    assert bool((slope >= -1e-4).all())
