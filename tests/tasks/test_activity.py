import numpy as np
import torch

from fedge.metrics import accuracy
from fedge.tasks import Turning
from fedge.tasks.activity import TASK, augment

STILL = Turning()


def test_the_score_is_accuracy() -> None:
    scores, y = np.eye(3, dtype=np.float32)[[0, 1, 2, 2]], np.array([0, 1, 2, 0])
    assert TASK.metric == "accuracy"
    assert TASK.score(scores, y) == accuracy(scores, y) == 0.75


def test_only_the_sensors_that_the_settings_name_are_turned() -> None:
    x = torch.randn(50, 6, 20, generator=torch.Generator().manual_seed(3))
    still = augment(x, torch.Generator().manual_seed(0), STILL)
    turned = augment(x, torch.Generator().manual_seed(0), Turning(((3, 4, 5),), 20.0))
    assert torch.equal(turned[:, :3], still[:, :3])
    assert not torch.allclose(turned[:, 3:], still[:, 3:], atol=0.1)


def test_scale_offset_and_noise_are_as_stated() -> None:
    """In standard deviations: scale 0.15, offset 0.2, noise 0.05, independent from channel to channel."""
    x = torch.zeros(4000, 2, 50)
    varied = augment(x, torch.Generator().manual_seed(0), STILL).numpy()
    offset = varied.mean(axis=2)
    np.testing.assert_allclose(offset.std(axis=0), np.hypot(0.2, 0.05 / 50**0.5), rtol=0.05)
    np.testing.assert_allclose((varied - offset[:, :, None]).std(), 0.05 * (49 / 50) ** 0.5, rtol=0.05)
    assert abs(np.corrcoef(offset.T)[0, 1]) < 0.05
    scale = augment(x + 1000, torch.Generator().manual_seed(0), STILL).numpy().mean(axis=2) / 1000
    np.testing.assert_allclose(scale.std(axis=0), 0.15, rtol=0.05)
    assert abs(scale.mean() - 1) < 0.01


def test_the_shift_is_small_the_same_for_all_channels_and_repeats_the_edge() -> None:
    time = 100
    ramp = 1e4 * torch.arange(time)[None, None].expand(500, 2, time).float()
    varied = augment(ramp, torch.Generator().manual_seed(0), STILL)
    # Undo the scale by the two ends of the middle part, where nothing repeats.
    slope = (varied[:, :, 80] - varied[:, :, 20]) / 60
    shift = torch.round(varied[:, :, 50] / slope - 50)
    assert torch.equal(shift[:, 0], shift[:, 1])
    assert set(shift[:, 0].tolist()) == set(range(-8, 9))
    for window, s, k in zip(varied, shift[:, 0].tolist(), slope, strict=True):
        expected = np.clip(np.arange(time) + s, 0, time - 1)
        np.testing.assert_allclose(window[0].numpy() / float(k[0]), expected, atol=0.01)
