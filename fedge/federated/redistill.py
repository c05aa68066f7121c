"""Re-distillation: the aggregate goes back to school, on the server's own data.

The teaching signal is the teacher, or an ensemble of the teacher, the aggregate and some clients' models,
so that what the clients have learned is not overwritten (ensemble distillation; Lin et al. 2020, algorithm
1). The student starts from the aggregate, trains as the int8 model rounds, and is drawn back towards it. What
comes out is only a candidate: judges decide. In ``gradient`` mode the same lesson gives a small step in every
round, which travels within the update (mixed federated learning; Augenstein et al. 2022), and the judges
decide whether it goes on. The teacher can learn from the ensemble too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fedge.compress.quantize import bounded, fake_quantized
from fedge.config import Config
from fedge.distill import Answers
from fedge.distill._fit import Fit
from fedge.federated import teaching
from fedge.federated.answers import targets
from fedge.federated.coding import Arrays, Weights, apply_step, build_codec, encode_dense
from fedge.federated.frames import Scores, Step, StepKind
from fedge.federated.prepare import Prepared
from fedge.federated.pupil import Lesson, distil_more, distillation
from fedge.federated.teaching import Ask
from fedge.federated.training import loss_and_score, tensors
from fedge.models.student import forward
from fedge.seeding import derive
from fedge.tasks import Task

_LEAST = 1e-12


@dataclass(frozen=True, eq=False)
class School:
    """What a lesson is given with.

    Attributes:
        config: the run's settings.
        task: what is learned.
        prepared: teacher, plan and the server's data.
        weights: the aggregate.
        members: clients' reconstructed models, for an ensemble.
        number: the round, for the seed.
    """

    config: Config
    task: Task
    prepared: Prepared
    weights: Weights
    members: Sequence[Weights]
    number: int


def make_candidate(school: School) -> Step:
    """A step from the aggregate to a re-distilled student, as it would travel; judges score what it gives."""
    settings, support = school.config.redistill, school.prepared.support
    share = np.float32(settings.interpolation)
    change = {n: share * c for n, c in _lesson_change(school, settings.epochs).items()}
    return Step(StepKind.CHANGE, encode_dense(support.gather(change), settings.bits))


def server_step(school: School) -> Arrays:
    """What ``gradient`` mode adds to the mean update, live entries only: a short lesson, weighed.

    The weight falls linearly over the rounds, so that the clients have the last word.
    """
    settings, rounds = school.config.redistill, school.config.rounds.rounds
    done = min(1.0, max(0, school.number - 1) / max(1, rounds - 1))
    weight = np.float32(settings.gradient_weight * (1 - done * (1 - settings.gradient_final)))
    change = _lesson_change(school, settings.gradient_epochs)
    return {n: weight * c for n, c in school.prepared.support.gather(change).items()}


def _lesson_change(school: School, epochs: int) -> Arrays:
    """From the aggregate to what it is after so many passes."""
    config, prepared = school.config, school.prepared
    spec, start = prepared.plan.spec, tensors(school.weights)
    taught = distil_more(
        spec,
        start,
        {n: torch.from_numpy(a).float() for n, a in prepared.support.alive.items()},
        fake_quantized(spec, prepared.plan.scales),
        _lesson(school),
        distillation(config, school.task),
        school.task,
        Fit(
            epochs,
            config.student.batch,
            config.redistill.learning_rate,
            derive(config.seed, "redistill", school.number),
        ),
        config.redistill.proximal,
    )
    return {n: (taught[n] - start[n]).numpy() for n in taught}


def _lesson(school: School) -> Lesson:
    """The server's windows, labelled or not, and whoever teaches."""
    prepared, more = school.prepared, school.prepared.unlabelled
    known = targets(prepared.plan.spec, prepared.x, prepared.y)
    wanted = torch.cat([known, known.new_zeros((len(more), *known.shape[1:]))])
    labelled = torch.arange(len(wanted)) < len(known)
    return Lesson(torch.cat([prepared.x, more]), wanted, labelled, teaching_signal(school), _known(school))


def _known(school: School) -> Tensor | None:
    """The classes that a lesson can be about: those that the server has windows of.

    Without this, a student that sees no window of a class for a whole lesson learns that there is none. Where
    an ensemble speaks of unlabelled windows too, any class may be among them.
    """
    prepared, alone = school.prepared, school.config.redistill.mode == "teacher"
    if school.task.target != "class" or (len(prepared.unlabelled) and not alone):
        return None
    seen: Tensor = torch.unique(prepared.y)
    return seen if 1 < len(seen) < prepared.plan.spec.outputs else None


def teaching_signal(school: School) -> Ask:
    """Whoever teaches the student: the teacher alone, or the ensemble with it."""
    teacher = teaching.ask(school.config, school.prepared.plan.spec, school.prepared.teacher)
    return teacher if school.config.redistill.mode == "teacher" else ensemble(school, teacher)


def ensemble(school: School, teacher: Ask | None) -> Ask:
    """The teacher (if given), the aggregate and the members, as one.

    Numbers and reconstructions are averaged. Of classes, each one's probabilities are weighed class by class
    with how sure it is of that class: the mean probability that it gives it on the server's windows of that
    class. A class that the server has no window of is left to those who have seen it: the aggregate and the
    members. The features are the teacher's.
    """
    spec, scales = school.prepared.plan.spec, school.prepared.plan.scales
    numerics = bounded(spec, scales)
    students = [tensors(w) for w in (school.weights, *school.members)]

    @torch.no_grad()
    def each(x: Tensor) -> tuple[Tensor, Tensor | None]:
        said = [forward(spec, params, x, numerics) for params in students]
        first = teacher(x) if teacher else None
        return torch.stack([first.outputs, *said] if first else said), first.features if first else None

    if school.task.target != "class":

        def mean(x: Tensor) -> Answers:
            outputs, features = each(x)
            return Answers(outputs.mean(dim=0), features)

        return mean
    sure = _sureness(each(school.prepared.x)[0].softmax(dim=2), school.prepared.y, teacher is not None)

    def weighed(x: Tensor) -> Answers:
        outputs, features = each(x)
        mixed = (sure[:, None] * outputs.softmax(dim=2)).sum(dim=0)
        return Answers(torch.log(mixed / mixed.sum(dim=1, keepdim=True) + _LEAST), features)

    return weighed


def _sureness(probabilities: Tensor, y: Tensor, taught: bool) -> Tensor:
    """Weights ``[models, classes]`` of ``probabilities [models, n, classes]``; each class's add up to 1.

    ``taught``: the first model is the teacher, which knows only the classes in ``y``.
    """
    models, _, classes = probabilities.shape
    known = F.one_hot(y, classes).to(probabilities.dtype)
    seen = known.sum(dim=0) > 0
    sure = torch.einsum("mnc,nc->mc", probabilities, known) / known.sum(dim=0).clamp_min(1)
    unseen = torch.ones(models, dtype=sure.dtype)
    if taught and models > 1:
        unseen[0] = 0
    sure = torch.where(seen, sure.clamp_min(_LEAST), unseen[:, None])
    return sure / sure.sum(dim=0)


def teach_teacher(school: School) -> None:
    """The teacher learns from the federation, in place: on the server's labelled and unlabelled windows."""
    prepared, config = school.prepared, school.config
    known = targets(prepared.plan.spec, prepared.x, prepared.y)
    signal = ensemble(school, None)
    loss = distillation(config, school.task)
    if config.student.loss == "relational":  # the ensemble has no features to relate
        loss = distillation(_plain(config), school.task)
    teaching.learn_from(
        config,
        school.task,
        prepared.plan.spec,
        prepared.teacher,
        (prepared.x, known),
        prepared.unlabelled,
        lambda x: signal(x).outputs,
        loss,
        derive(config.seed, "teacher learns", school.number),
    )


def judge_on_server(school: School, step: Step) -> Mapping[str, Scores]:
    """Losses and scores of the aggregate and of the candidate on each of the people held back."""
    plan = school.prepared.plan
    codec = build_codec(plan.downlink)
    candidate = apply_step(step, school.weights, school.prepared.support, codec)
    judged = {}
    for name, data in school.prepared.judges.items():
        held = loss_and_score(plan, school.task, school.weights, *data)
        tried = loss_and_score(plan, school.task, candidate, *data)
        judged[name] = Scores(len(data[1]), *held, *tried)
    return judged


def _plain(config: Config) -> Config:
    """With the task's own distillation loss."""
    return replace(config, student=replace(config.student, loss=""))
