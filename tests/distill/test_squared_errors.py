"""``regression`` and ``reconstruction``: squared errors to the teacher's answers."""

from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  (the name everyone knows it by)
from hypothesis import given
from hypothesis import strategies as st

from fedge.distill import Answers, How, reconstruction, regression


@pytest.mark.parametrize("module", [regression, reconstruction], ids=["regression", "reconstruction"])
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 9), outputs=st.integers(1, 6), weight=st.floats(0, 1))
def test_the_loss_is_the_mean_squared_error(
    module: ModuleType, seed: int, n: int, outputs: int, weight: float
) -> None:
    rng = np.random.default_rng(seed)
    student, teacher = (rng.normal(size=(n, outputs)) for _ in range(2))
    total = 0.0
    for i in range(n):
        for j in range(outputs):
            total += (teacher[i, j] - student[i, j]) ** 2
    answers = [Answers(torch.from_numpy(z)) for z in (student, teacher)]
    found = float(module.loss(*answers, torch.tensor(0.4, dtype=torch.float64), How(hard_weight=weight)))
    assert found == pytest.approx(weight * 0.4 + (1 - weight) * total / (n * outputs), rel=1e-9)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_with_squared_errors_to_both_the_best_number_lies_between_label_and_teacher(weight: float) -> None:
    best = torch.tensor([[weight * 10.0 + (1 - weight) * 2.0]], requires_grad=True)
    hard = F.mse_loss(best, torch.tensor([[10.0]]))
    value = regression.loss(Answers(best), Answers(torch.tensor([[2.0]])), hard, How(hard_weight=weight))
    (slope,) = torch.autograd.grad(value, best)
    assert abs(float(slope)) < 1e-5
