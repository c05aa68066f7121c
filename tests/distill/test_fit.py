from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from torch import Tensor

from fedge.distill._fit import Fit, fit

HOW = Fit(epochs=4, batch=8, learning_rate=0.05, seed=3)


def _data(n: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 3, (n,), generator=generator)
    return torch.randn(n, 3, 1, generator=generator) + 2 * F.one_hot(y, 3)[:, :, None], y


class Linear:
    """A linear classifier that notes what it was shown."""

    def __init__(self) -> None:
        self.weight = torch.zeros(3, 3, requires_grad=True)
        self.batches: list[tuple[Tensor, Tensor]] = []

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        self.batches.append((x, y))
        return F.cross_entropy(x[:, :, 0] @ self.weight, y)


def _trained(how: Fit = HOW, n: int = 40, drawn_before: int = 0) -> tuple[Linear, float]:
    torch.manual_seed(drawn_before)
    torch.randn(drawn_before)
    model = Linear()
    x, y = _data(n)
    return model, fit(
        [model.weight], x, y, model.loss, how, lambda x, g: x + torch.randn(x.shape, generator=g)
    )


def test_a_seed_gives_the_same_weights_whatever_was_drawn_before() -> None:
    (one, a), (two, b) = _trained(), _trained(drawn_before=5)
    assert torch.equal(one.weight, two.weight)
    assert a == b


def test_another_seed_gives_another_order_and_other_variations() -> None:
    (one, _), (two, _) = _trained(), _trained(replace(HOW, seed=4))
    assert not torch.equal(one.batches[0][1], two.batches[0][1])
    assert not torch.equal(one.weight, two.weight)


def test_training_learns_and_its_result_is_the_mean_loss_of_the_last_epoch() -> None:
    model = Linear()
    x, y = _data()
    values: list[float] = []

    def loss(x: Tensor, y: Tensor) -> Tensor:
        value = model.loss(x, y)
        values.append(float(value.detach()))
        return value

    last = fit([model.weight], x, y, loss, HOW)
    assert last == pytest.approx(sum(values[-5:]) / 5)
    assert last < 0.6 * values[0]


def _sizes(n: int, batch: int) -> list[int]:
    model, _ = _trained(replace(HOW, epochs=2, batch=batch), n)
    return [len(y) for _, y in model.batches]


@pytest.mark.parametrize(
    ("n", "batch", "sizes"),
    [
        (16, 8, [8, 8]),
        (17, 8, [8, 8]),  # a last batch of one has no batch statistics
        (18, 8, [8, 8, 2]),
        (7, 8, [7]),
        (1, 8, [1]),  # nothing else is there
        (3, 2, [2]),
    ],
)
def test_batches_are_whole_but_for_a_last_one_of_two_or_more(n: int, batch: int, sizes: list[int]) -> None:
    assert _sizes(n, batch) == sizes * 2


def test_every_window_is_shown_once_in_an_epoch_and_in_another_order_in_the_next() -> None:
    model = Linear()
    x = torch.arange(24.0)[:, None, None].expand(24, 3, 1)
    fit([model.weight], x, torch.zeros(24, dtype=torch.long), model.loss, replace(HOW, epochs=2))
    shown = [int(v) for x, _ in model.batches for v in x[:, 0, 0]]
    assert sorted(shown[:24]) == sorted(shown[24:]) == list(range(24))
    assert shown[:24] != shown[24:]


def test_zeros_that_are_kept_after_each_step_are_zeros_at_every_step() -> None:
    model, mask = Linear(), torch.tensor([[1.0, 0, 1], [0, 1, 1], [1, 1, 0]])
    x, y = _data()
    steps = 0

    @torch.no_grad()
    def keep_zeros() -> None:
        nonlocal steps
        steps += 1
        model.weight.mul_(mask)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        assert bool((model.weight[mask == 0] == 0).all())
        return model.loss(x, y)

    fit([model.weight], x, y, loss, HOW, after_step=keep_zeros)
    assert steps == len(model.batches) == 4 * 5
    assert bool((model.weight[mask == 0] == 0).all())
    assert bool((model.weight[mask == 1] != 0).all())


def test_progress_is_told_after_each_epoch() -> None:
    model, told = Linear(), list[tuple[int, int]]()
    fit([model.weight], *_data(), model.loss, HOW, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_no_epochs_change_nothing() -> None:
    model, result = _trained(replace(HOW, epochs=0))
    assert result == 0
    assert bool((model.weight == 0).all())


def test_the_windows_themselves_are_left_alone() -> None:
    model = Linear()
    x, y = _data()
    kept = x.clone()
    fit([model.weight], x, y, model.loss, HOW, lambda x, _generator: x.mul_(0))
    assert torch.equal(x, kept)
