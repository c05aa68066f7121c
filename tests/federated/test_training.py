"""Local fine-tuning against torch's own SGD, and what it must leave alone."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from federated.build import same_weights
from fedge import plugins
from fedge.compress.quantize import fake_quantized
from fedge.federated.answers import answering, targets
from fedge.federated.prepare import Prepared
from fedge.federated.training import answers, drifted, fine_tune, loss_and_score, outputs, tensors
from fedge.models.normalised import Normalised
from fedge.models.student import activations, forward
from fedge.models.student_families import build_spec
from fedge.tasks import outputs_of

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


def test_outputs_do_not_depend_on_how_many_windows_come_together(small_prepared: Prepared) -> None:
    p = small_prepared
    many = p.x.repeat(30, 1, 1)
    for quantized in (True, False):
        together = outputs(p.plan, p.weights, many, quantized=quantized)
        alone = np.concatenate([outputs(p.plan, p.weights, x[None], quantized=quantized) for x in p.x])
        assert together.shape == (len(many), 3)
        np.testing.assert_allclose(together, np.tile(alone, (30, 1)), atol=1e-4)
    assert outputs(p.plan, p.weights, p.x[:0], quantized=True).shape == (0, 3)


# ----- FedProx and FedDyn


def _naive(p: Prepared, rate: float, seed: int, pull: float, drift: dict[str, Any]) -> dict[str, Any]:
    """A loop over batches, arrays and entries' arithmetic in NumPy; only the loss's gradient is torch's."""
    how, numerics = p.plan.training, fake_quantized(p.plan.spec, p.plan.scales)
    start = {n: w.astype(np.float64) for n, w in p.weights.items()}
    now = {n: w.copy() for n, w in start.items()}
    velocity = {n: np.zeros_like(w) for n, w in start.items()}
    generator = torch.Generator().manual_seed(seed)
    for index in torch.split(torch.randperm(len(p.x), generator=generator), how.batch):
        params = {n: torch.tensor(w, dtype=torch.float32, requires_grad=True) for n, w in now.items()}
        loss = torch.nn.functional.cross_entropy(
            forward(p.plan.spec, params, p.x[index], numerics), p.y[index]
        )
        torch.autograd.backward(loss)
        raw = {n: np.asarray(v.grad, np.float64) for n, v in params.items()}
        norm = np.sqrt(sum(np.square(g).sum() for g in raw.values()))
        for n, gradient in raw.items():
            whole = gradient * min(1.0, 5.0 / norm) + pull * (now[n] - start[n]) - drift.get(n, 0.0)
            velocity[n] = how.momentum * velocity[n] + whole * p.support.alive[n]
            now[n] = now[n] - rate * velocity[n]
    return now


@pytest.mark.parametrize(
    ("proximal", "dynamic", "drifting"),
    [(0.0, 0.0, False), (2.0, 0.0, False), (0.0, 0.5, False), (0.0, 0.5, True), (1.0, 0.5, True)],
)
def test_fedprox_and_feddyn_are_a_pull_and_a_drift_in_every_step(
    proximal: float, dynamic: float, drifting: bool, plain: Prepared
) -> None:
    how = replace(plain.plan.training, epochs=1, proximal=proximal, dynamic=dynamic)
    p = replace(plain, plan=replace(plain.plan, training=how))
    random, drift = np.random.default_rng(3), {}
    if drifting:
        drift = {n: random.normal(0, 0.1, w.shape).astype(np.float32) for n, w in p.weights.items()}
    tuned, _ = fine_tune(p.plan, TASK, p.weights, p.support, (p.x, p.y), 0.02, 5, drift)
    expected = _naive(p, 0.02, 5, proximal + dynamic, drift)
    for name, value in tuned.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=2e-4)
        assert not value[~p.support.alive[name]].any()


def test_the_pull_of_fedprox_keeps_a_client_nearer_to_the_global_weights(plain: Prepared) -> None:
    def distance(proximal: float) -> float:
        plan = replace(plain.plan, training=replace(plain.plan.training, proximal=proximal))
        tuned, _ = fine_tune(plan, TASK, plain.weights, plain.support, (plain.x, plain.y), 0.05, 5)
        return float(np.sqrt(sum(np.square(tuned[n] - w).sum() for n, w in plain.weights.items())))

    free, held, fast = (distance(v) for v in (0.0, 1.0, 10.0))
    assert free > held > fast > 0


def test_what_drift_remembers_is_the_sum_of_the_changes(plain: Prepared) -> None:
    """FedDyn, algorithm 1, line 9: the gradient at the last weights, from what the client moved."""
    random = np.random.default_rng(0)
    changes = [{n: random.normal(size=w.shape).astype(np.float32) for n, w in plain.weights.items()}] * 3
    drift: dict[str, Any] = {}
    for change in changes:
        before = {n: d.copy() for n, d in drift.items()}
        after = drifted(drift, change, 0.25)
        assert same_weights(drift, before)
        drift = after
    for name, value in drift.items():
        np.testing.assert_allclose(value, -0.25 * sum(c[name] for c in changes), rtol=1e-5, atol=1e-6)


# ----- every kind of task


def test_the_loss_of_an_anomaly_task_punishes_a_student_that_copies_its_input() -> None:
    """It is taken on spoilt windows, always the same ones, and the score on the windows as they are."""
    task = plugins.load("task", "anomaly").TASK
    x = torch.randn(40, 2, 16, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(40, dtype=torch.int64)
    spec = answering(task, build_spec("plain", "tiny", (16, 2), outputs_of(task, 2, 2)), x, y)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        params = {n: v.detach().requires_grad_() for n, v in Normalised(spec).folded().items()}
    optimizer = torch.optim.Adam(params.values(), 0.01)
    for _ in range(100):  # teach it to copy
        optimizer.zero_grad()
        torch.autograd.backward(task.loss(forward(spec, params, x), targets(spec, x, y)))
        optimizer.step()
    weights = {n: v.detach().numpy() for n, v in params.items()}
    plan: Any = SimpleNamespace(spec=spec, scales=dict.fromkeys(activations(spec), 0.05))
    first = loss_and_score(plan, task, weights, x, y)
    assert first[0] == loss_and_score(plan, task, weights, x, y)[0]
    assert math.isnan(first[1])  # normal windows alone define no AUROC
    given = outputs(plan, weights, x, quantized=True)
    clean = float(np.mean((given - targets(spec, x, y).numpy()) ** 2))
    assert first[0] > 2 * clean
    anomalous = torch.cat([y[:20], y[20:] + 1])
    expected = task.score(answers(plan, weights, x, quantized=True), anomalous.numpy())
    assert loss_and_score(plan, task, weights, x, anomalous)[1] == expected


def test_no_windows_have_no_answers_whatever_the_task(plain: Prepared) -> None:
    assert answers(plain.plan, plain.weights, plain.x[:0], quantized=True).shape == (0, 3)
