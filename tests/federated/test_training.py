"""Local fine-tuning against torch's own SGD, and what it must leave alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from federated.build import same_weights
from fedge import plugins
from fedge.compress.quantize import fake_quantized
from fedge.federated.prepare import Prepared
from fedge.federated.training import fine_tune, logits, tensors
from fedge.models.student import forward

TASK = plugins.load("task", "activity").TASK


@pytest.fixture
def plain(small_prepared: Prepared) -> Prepared:
    """Without augmentation, so that a reference sees the same windows."""
    training = replace(small_prepared.plan.training, augment=False, epochs=3, batch=7, momentum=0.8)
    return replace(small_prepared, plan=replace(small_prepared.plan, training=training))


def _reference(p: Prepared, rate: float, seed: int) -> dict[str, Tensor]:
    """torch.optim.SGD with the gradients' norm held to 5 and dead entries masked."""
    params = {n: v.requires_grad_() for n, v in tensors(p.weights).items()}
    optimizer = torch.optim.SGD(list(params.values()), lr=rate, momentum=p.plan.training.momentum)
    numerics, generator = fake_quantized(p.plan.spec, p.plan.scales), torch.Generator().manual_seed(seed)
    for _ in range(p.plan.training.epochs):
        for index in torch.split(torch.randperm(len(p.x), generator=generator), p.plan.training.batch):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(
                forward(p.plan.spec, params, p.x[index], numerics), p.y[index]
            )
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(params.values(), 5.0)
            for name, value in params.items():
                assert value.grad is not None
                value.grad *= torch.from_numpy(p.support.alive[name])
            optimizer.step()
    return {n: v.detach() for n, v in params.items()}


@pytest.mark.parametrize("rate", [0.01, 0.5])
def test_fine_tuning_is_sgd_with_momentum_and_bounded_gradients(plain: Prepared, rate: float) -> None:
    """Few enough steps that rounding cannot grow into another int8 level."""
    p = replace(plain, plan=replace(plain.plan, training=replace(plain.plan.training, epochs=1)))
    tuned, _ = fine_tune(p.plan, TASK, p.weights, p.support, (p.x, p.y), rate, seed=5)
    for name, value in _reference(p, rate, 5).items():
        np.testing.assert_allclose(tuned[name], value.numpy(), rtol=1e-3, atol=2e-4)


def test_what_was_pruned_is_never_trained(plain: Prepared) -> None:
    tuned, _ = fine_tune(plain.plan, TASK, plain.weights, plain.support, (plain.x, plain.y), 0.1, seed=5)
    for name, alive in plain.support.alive.items():
        assert not tuned[name][~alive].any()
        assert (tuned[name] != plain.weights[name]).any()


def test_the_same_seed_gives_the_same_bits_and_the_start_is_left_alone(small_prepared: Prepared) -> None:
    p = small_prepared
    before = {n: w.copy() for n, w in p.weights.items()}
    runs = [fine_tune(p.plan, TASK, p.weights, p.support, (p.x, p.y), 0.1, seed=s) for s in (5, 5, 6)]
    assert same_weights(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert not same_weights(runs[0][0], runs[2][0])
    assert same_weights(before, p.weights)


def test_logits_do_not_depend_on_how_many_windows_come_together(small_prepared: Prepared) -> None:
    p = small_prepared
    many = p.x.repeat(30, 1, 1)
    for quantized in (True, False):
        together = logits(p.plan, p.weights, many, quantized=quantized)
        alone = np.concatenate([logits(p.plan, p.weights, x[None], quantized=quantized) for x in p.x])
        assert together.shape == (len(many), 3)
        np.testing.assert_allclose(together, np.tile(alone, (30, 1)), atol=1e-4)
    assert logits(p.plan, p.weights, p.x[:0], quantized=True).shape == (0, 3)
