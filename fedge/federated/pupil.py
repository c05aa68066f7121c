"""The student's way to what is sent: distilled, cut, pruned, tuned; and distilled again in later rounds."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from fedge import plugins
from fedge.compress import prune
from fedge.compress.export import export_int8
from fedge.compress.quantize import Calibration, calibrate, fake_quantized, sent_at
from fedge.compress.structured import Budget, channel_importance, shrink
from fedge.config import Config
from fedge.distill import Answers, How, check_loss
from fedge.distill._fit import Fit, fit
from fedge.edge.latency import median_us
from fedge.edge.runtime import Runtime
from fedge.federated import teaching
from fedge.federated.answers import targets
from fedge.federated.teaching import Ask
from fedge.models.normalised import Normalised
from fedge.models.student import (
    FLOAT,
    Numerics,
    StudentSpec,
    activations,
    features,
    forward,
    head,
)
from fedge.observe import Observer
from fedge.preprocess import Preprocess
from fedge.seeding import derive
from fedge.tasks import Task, Turning

Distil = Callable[[Answers, Answers, Tensor], Tensor]
"""``(student, teacher, the task's own loss) -> loss``."""


@dataclass(frozen=True, eq=False)
class Pupil:
    """The student on its way from nothing to what is sent: the steps share settings, teacher and data.

    Attributes:
        config: the run's settings.
        task: what is learned.
        ask: asks the teacher.
        x: the server's windows ``[n, channels, *size]``.
        y: their labels, or numbers ``[n]``.
        observer: is told how far it is.
    """

    config: Config
    task: Task
    ask: Ask
    x: Tensor
    y: Tensor
    observer: Observer

    def distillation(self, teacher_has_features: bool = True) -> Distil:
        """The distillation loss that the settings name, with its settings filled in.

        Raises:
            ConfigError: no such loss, or it does not fit the task or the teacher.
        """
        return distillation(self.config, self.task, teacher_has_features)

    def distilled(self, spec: StudentSpec) -> dict[str, Tensor]:
        """A fresh student, distilled with BatchNorm, which is then folded away."""
        config, settings = self.config, self.config.student
        module = teaching.seeded(config, "student", lambda: Normalised(spec))
        assert isinstance(module, Normalised)  # noqa: S101 (for the type checker)
        how = Fit(
            settings.epochs, settings.batch, settings.learning_rate, derive(config.seed, "student batches")
        )
        loss, wanted = self.distillation(), targets(spec, self.x, self.y)

        def batch_loss(x: Tensor, t: Tensor) -> Tensor:
            seen = module.features(x)
            outputs = module.head(seen)
            return loss(Answers(outputs, seen), self.ask(x), self.task.loss(outputs, t))

        fit(
            list(module.parameters()), self.x, wanted, batch_loss, how, self._augment, progress=self._progress
        )
        return module.eval().folded()

    def cut(self, spec: StudentSpec, params: dict[str, Tensor]) -> tuple[StudentSpec, dict[str, Tensor]]:
        """Without the channels that matter least, down to the budget, with training between the steps."""
        settings = self.config.student
        budget = Budget(settings.keep, settings.most_parameters or None, settings.most_us or None)
        if budget == Budget():
            return spec, params
        how = Fit(
            settings.cut_epochs,
            settings.batch,
            settings.learning_rate / 2,
            derive(self.config.seed, "cut batches"),
        )

        def retrain(smaller: StudentSpec, start: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return self.distil_more(smaller, start, FLOAT, how)

        def importance(smaller: StudentSpec, now: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            gradients = self._gradients(smaller, now) if settings.sensitivity == "taylor" else None
            return channel_importance(smaller, now, gradients, settings.sensitivity)

        shrunk, kept = shrink(spec, params, budget, settings.cut_steps, retrain, importance, self._latency_us)
        return shrunk, dict(kept)

    def _latency_us(self, spec: StudentSpec) -> float:
        """Median microseconds of one window here, preprocessing included: int8, ONNX Runtime, one thread."""
        zeros = {n: np.zeros(shape, np.float32) for n, shape in spec.shapes().items()}
        none = Preprocess(np.zeros(spec.channels, np.float32), np.ones(spec.channels, np.float32))
        model = export_int8(spec, zeros, dict.fromkeys(activations(spec), 1.0), none)
        return median_us(Runtime(model), self.x[:1].movedim(1, -1).numpy())

    def _gradients(self, spec: StudentSpec, params: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """Of the task's loss, at these weights, on each batch of the server's windows."""
        wanted, size = targets(spec, self.x, self.y), self.config.student.batch
        for x, t in zip(torch.split(self.x, size), torch.split(wanted, size), strict=True):
            loss = partial(self._task_loss, spec, x, t)
            yield prune.gradient(params, loss)

    def _task_loss(
        self, spec: StudentSpec, x: Tensor, wanted: Tensor, params: Mapping[str, Tensor]
    ) -> Tensor:
        return self.task.loss(forward(spec, params, x), wanted)

    def pruned(
        self, spec: StudentSpec, params: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], list[prune.LayerSensitivity]]:
        """The stated share of the weights set to zero, where it hurts least."""
        wanted, share = targets(spec, self.x, self.y), self.config.student.prune_share

        @torch.no_grad()
        def loss(weights: Mapping[str, Tensor]) -> float:
            return float(self.task.loss(forward(spec, weights, self.x), wanted))

        rows = prune.measure(params, loss)
        if self.config.student.sensitivity == "taylor":
            weighed = prune.taylor(params, self._gradients(spec, params))
            masks = prune.masks(params, prune.allocate(weighed, share), weighed)
        else:
            masks = prune.masks(params, prune.allocate(rows, share))
        return {n: p * masks[n] for n, p in params.items()}, rows

    def tuned(
        self, spec: StudentSpec, params: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The pruned student distilled again, rounding as int8 will; calibrated before and after."""
        config, settings = self.config, self.config.student
        quantize = config.quantize
        how = Calibration(quantize.calibration, quantize.percentile, quantize.headroom)
        scales = calibrate(spec, params, self.x, how)
        tune = Fit(
            settings.tune_epochs,
            settings.batch,
            settings.learning_rate / 5,
            derive(config.seed, "tune batches"),
        )
        numerics = sent_at(quantize.download_bits, fake_quantized(spec, scales))
        params = self.distil_more(spec, params, numerics, tune)
        return params, calibrate(spec, params, self.x, how)

    def distil_more(
        self, spec: StudentSpec, params: Mapping[str, Tensor], numerics: Numerics, how: Fit
    ) -> dict[str, Tensor]:
        """Go on distilling a folded student; weights that are zero stay zero."""
        alive = {n: (p != 0).float() if p.dim() > 1 else torch.ones_like(p) for n, p in params.items()}
        wanted = targets(spec, self.x, self.y)
        return distil_more(
            spec,
            params,
            alive,
            numerics,
            Lesson(self.x, wanted, torch.ones(len(self.x), dtype=torch.bool), self.ask),
            self.distillation(),
            self.task,
            how,
            progress=self._progress,
        )

    def _augment(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.task.augment(x, generator, Turning())

    def _progress(self, done: int, total: int) -> None:
        self.observer.progress(done, total, f"epoch {done}/{total}")


def distillation(config: Config, task: Task, teacher_has_features: bool = True) -> Distil:
    """The distillation loss that the settings name, or the task's, with its settings filled in.

    Raises:
        ConfigError: no such loss, or it does not fit the task or the teacher.
    """
    settings = config.student
    module: ModuleType = plugins.load("distillation loss", settings.loss or task.distillation)
    check_loss(module, task.target, teacher_has_features)
    how = How(settings.temperature, settings.hard_weight, settings.entropy_weight, settings.feature_weight)
    return lambda student, teacher, hard: module.loss(student, teacher, hard, how)


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a student is distilled on.

    Attributes:
        x: windows ``[n, channels, *size]``.
        targets: what outputs are compared with, ``[n]`` or ``[n, outputs]``; anything where not labelled.
        labelled: ``[n]`` bool.
        ask: whoever teaches.
        classes: the lesson is about these classes only, ascending ``[k]``: how likely the others are is left
            as it is, by leaving their outputs out. None: about all of the outputs.
    """

    x: Tensor
    targets: Tensor
    labelled: Tensor
    ask: Ask
    classes: Tensor | None = None

    def spoken(self, outputs: Tensor) -> Tensor:
        """Of ``outputs [n, classes]``, those that the lesson is about."""
        return outputs if self.classes is None else outputs[:, self.classes]

    def asked(self, x: Tensor) -> Answers:
        """What the teacher says of them."""
        said = self.ask(x)
        return Answers(self.spoken(said.outputs), said.features)

    def wanted(self, index: Tensor) -> Tensor:
        """The targets of these windows, as positions among the classes it is about."""
        targets = self.targets[index]
        return targets if self.classes is None else torch.searchsorted(self.classes, targets)


def distil_more(
    spec: StudentSpec,
    params: Mapping[str, Tensor],
    alive: Mapping[str, Tensor],
    numerics: Numerics,
    lesson: Lesson,
    loss: Distil,
    task: Task,
    how: Fit,
    proximal: float = 0.0,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, Tensor]:
    """Go on distilling a folded student; entries that ``alive`` marks 0 stay zero.

    ``proximal`` is the weight of half the squared distance to where it starts.
    """
    start = {n: p.clone() for n, p in params.items()}
    params = {n: p.clone().requires_grad_() for n, p in params.items()}

    def batch_loss(x: Tensor, index: Tensor) -> Tensor:
        seen = features(spec, params, x, numerics)
        outputs = lesson.spoken(head(params, seen, numerics))
        known = lesson.labelled[index]
        hard = task.loss(outputs[known], lesson.wanted(index[known])) if known.any() else outputs.sum() * 0
        value = loss(Answers(outputs, seen), lesson.asked(x), hard)
        if proximal > 0:
            value = value + proximal / 2 * sum((params[n] - s).square().sum() for n, s in start.items())
        return value

    @torch.no_grad()
    def keep_zeros() -> None:
        for name, value in params.items():
            value.mul_(alive[name])

    fit(
        list(params.values()),
        lesson.x,
        torch.arange(len(lesson.x)),
        batch_loss,
        how,
        lambda x, generator: task.augment(x, generator, Turning()),
        keep_zeros,
        progress,
    )
    return {n: p.detach() for n, p in params.items()}
