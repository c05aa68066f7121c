"""The server's teacher: asked in the student's terms, whoever's it is, and taught in them too."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedge.config import Config, load_config
from fedge.errors import ConfigError
from fedge.federated import teaching
from fedge.federated.prepare import Prepared
from fedge.federated.pupil import distillation
from fedge.models.student import Number, StudentSpec
from fedge.models.student_families import build_spec
from fedge.observe import silent
from fedge.plugins import load
from fedge.simulation.world import World

OFFSET, SCALE = 60.0, 25.0


class InCycles(nn.Module):
    """A user's own teacher for a number: it says it in the number's own unit."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(OFFSET))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(1, 2))[:, None] * SCALE + self.bias


@pytest.fixture
def spec() -> StudentSpec:
    return replace(build_spec("plain", "tiny", (16, 2), 1), number=Number(OFFSET, SCALE))


def _config(**settings: Any) -> Config:
    return load_config(
        None, {"task": "remaining_life"} | {k.replace("__", "."): v for k, v in settings.items()}
    )


def test_a_users_own_teacher_is_asked_in_the_students_terms(spec: StudentSpec) -> None:
    x = torch.randn(9, 2, 16, generator=torch.Generator().manual_seed(0))
    own = _config(teacher__module=f"{__name__}:InCycles")
    says = teaching.ask(own, spec, InCycles())(x).outputs
    torch.testing.assert_close(says, x.mean(dim=(1, 2))[:, None], atol=1e-4, rtol=1e-4)
    built_in = teaching.ask(_config(), spec, InCycles())(x).outputs  # it was trained on these terms
    torch.testing.assert_close(built_in, InCycles()(x).detach())


def test_a_users_own_teacher_learns_in_its_own_unit(spec: StudentSpec) -> None:
    """What it says is a little too low; it must move by that much, and not to the students' terms."""
    config = _config(
        teacher__module=f"{__name__}:InCycles", redistill__teacher_epochs=300, redistill__teacher_rate=0.3
    )
    task, teacher = load("task", "remaining_life").TASK, InCycles()
    with torch.no_grad():
        teacher.bias -= 5
    x = torch.zeros(8, 2, 16)
    zeros = torch.zeros(8, 1)
    teaching.learn_from(
        config,
        task,
        spec,
        teacher,
        (x, zeros),
        x,
        lambda w: torch.zeros(len(w), 1),
        distillation(config, task),
        0,
    )
    assert float(teacher.bias.detach()) == pytest.approx(OFFSET, abs=2)  # AdamW pulls it a little towards 0


def test_what_is_frozen_in_a_teacher_stays_as_it_is(spec: StudentSpec) -> None:
    config = _config(redistill__teacher_epochs=2)
    task, teacher = (
        load("task", "remaining_life").TASK,
        nn.Sequential(nn.Flatten(), nn.Linear(32, 4), nn.Linear(4, 1)),
    )
    teacher[1].requires_grad_(False)
    before = {n: p.clone() for n, p in teacher.named_parameters()}
    x = torch.randn(8, 2, 16, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(8, 1)
    teaching.learn_from(
        config,
        task,
        spec,
        teacher,
        (x, ones),
        x[:0],
        lambda w: torch.ones(len(w), 1),
        distillation(config, task),
        0,
    )
    for name, value in teacher.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("1."), name


def test_training_follows_from_the_seed_alone(small_world: World, small_prepared: Prepared) -> None:
    """Whatever was drawn before; dropout and the batches too."""
    config, p = (
        replace(small_world.config, teacher=replace(small_world.config.teacher, epochs=1)),
        small_prepared,
    )
    states = []
    for drawn in (0, 99):
        torch.manual_seed(drawn)
        teacher = teaching.build(config, small_world.task, p.plan.spec)
        teaching.train(config, small_world.task, teacher, (p.x, p.y), silent)
        states.append(teacher.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


def test_a_teacher_that_cannot_learn_is_refused_where_it_shall(
    small_world: World, small_prepared: Prepared
) -> None:
    """A module without parameters stands for an ONNX file: only its outputs are known."""
    config = replace(
        small_world.config,
        teacher=replace(small_world.config.teacher, module=f"{__name__}:Fixed"),
        redistill=replace(small_world.config.redistill, teacher_epochs=1),
    )
    with pytest.raises(ConfigError, match="no weights that could be trained"):
        teaching.build(config, small_world.task, small_prepared.plan.spec)


class Fixed(nn.Module):
    """Says something, and can learn nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :3, 0]
