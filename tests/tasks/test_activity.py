import numpy as np
import torch

from fedge.metrics import accuracy
from fedge.tasks.activity import TASK, augment


def test_the_score_is_accuracy() -> None:
    assert (TASK.metric, TASK.score) == ("accuracy", accuracy)


def test_scale_offset_and_noise_are_as_stated() -> None:
    """In standard deviations: scale 0.15, offset 0.2, noise 0.05, independent from channel to channel."""
    x = torch.zeros(4000, 2, 50)
    varied = augment(x, torch.Generator().manual_seed(0)).numpy()
    offset = varied.mean(axis=2)
    np.testing.assert_allclose(offset.std(axis=0), np.hypot(0.2, 0.05 / 50**0.5), rtol=0.05)
    np.testing.assert_allclose((varied - offset[:, :, None]).std(), 0.05 * (49 / 50) ** 0.5, rtol=0.05)
    assert abs(np.corrcoef(offset.T)[0, 1]) < 0.05
    scale = augment(x + 1000, torch.Generator().manual_seed(0)).numpy().mean(axis=2) / 1000
    np.testing.assert_allclose(scale.std(axis=0), 0.15, rtol=0.05)
    assert abs(scale.mean() - 1) < 0.01


def test_the_shift_is_small_the_same_for_all_channels_and_repeats_the_edge() -> None:
    time = 100
    ramp = 1e4 * torch.arange(time)[None, None].expand(500, 2, time).float()
    varied = augment(ramp, torch.Generator().manual_seed(0))
    # Undo the scale by the two ends of the middle part, where nothing repeats.
    slope = (varied[:, :, 80] - varied[:, :, 20]) / 60
    shift = torch.round(varied[:, :, 50] / slope - 50)
    assert torch.equal(shift[:, 0], shift[:, 1])
    assert set(shift[:, 0].tolist()) == set(range(-8, 9))
    for window, s, k in zip(varied, shift[:, 0].tolist(), slope, strict=True):
        expected = np.clip(np.arange(time) + s, 0, time - 1)
        np.testing.assert_allclose(window[0].numpy() / float(k[0]), expected, atol=0.01)
