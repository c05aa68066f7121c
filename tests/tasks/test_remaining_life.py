import torch

from fedge.tasks import Turning
from fedge.tasks.remaining_life import augment


def test_the_level_that_tells_the_wear_stays_where_it_was() -> None:
    """Between two levels a tenth of a deviation apart, no window crosses over."""
    levels = torch.linspace(-1, 1, 9)[:, None, None].expand(9, 2, 200).repeat(50, 1, 1)
    varied = augment(levels, torch.Generator().manual_seed(0), Turning()).mean(dim=2)
    assert float((varied - levels.mean(dim=2)).abs().max()) < 0.125
    assert float((varied - levels.mean(dim=2)).std()) > 0.01
