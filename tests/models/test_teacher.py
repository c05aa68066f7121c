import pytest
import torch

from fedge.errors import ConfigError
from fedge.models.teacher import SIZES, build_teacher


@pytest.mark.parametrize(("size", "millions"), [("base", 0.23), ("large", 0.7)])
def test_parameter_counts_are_as_documented(size: str, millions: float) -> None:
    count = sum(p.numel() for p in build_teacher(size, channels=6, classes=7).parameters())
    assert count == pytest.approx(millions * 1e6, rel=0.05)


@pytest.mark.parametrize("size", sorted(SIZES))
@pytest.mark.parametrize("time", [4, 9, 128])
def test_windows_of_any_length_get_one_answer_each(size: str, time: int) -> None:
    torch.manual_seed(0)
    teacher = build_teacher(size, 3, 5).eval()
    x = torch.randn(4, 3, time)
    with torch.no_grad():
        together = teacher(x)
        alone = torch.cat([teacher(window[None]) for window in x])
    assert together.shape == (4, 5)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_every_weight_takes_part() -> None:
    torch.manual_seed(0)
    teacher = build_teacher("base", 2, 3)
    teacher(torch.randn(8, 2, 32)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in teacher.parameters())


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="known: base, large"):
        build_teacher("small", 1, 2)
