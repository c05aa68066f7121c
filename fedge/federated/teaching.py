"""The server's teacher: made, trained or brought along, asked, and taught further by the federation."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

import fedge.tasks
from fedge.config import Config
from fedge.distill import Answers
from fedge.distill._fit import Fit, fit
from fedge.errors import ConfigError
from fedge.models.own_teacher import load_module, load_onnx
from fedge.models.student import StudentSpec
from fedge.models.teacher import build_teacher, check_teacher, feature_width
from fedge.models.teacher_cache import cached_teacher, teacher_key
from fedge.observe import Observer
from fedge.seeding import derive
from fedge.tasks import Task, Turning

Ask = Callable[[Tensor], Answers]
"""From windows ``[n, channels, *size]`` to what a teacher says of them, in the student's terms."""


def own(config: Config) -> bool:
    """Whether the teacher is the user's own, which is not trained here before it teaches."""
    return bool(config.teacher.module or config.teacher.onnx)


def build(config: Config, task: Task, spec: StudentSpec) -> nn.Module:
    """The teacher before training, or the user's own as it is.

    Raises:
        ConfigError: it cannot be made, or does not fit the task.
    """
    settings = config.teacher
    if settings.onnx:
        teacher: nn.Module = load_onnx(Path(settings.onnx))
    elif settings.module:
        weights = Path(settings.weights) if settings.weights else None
        teacher = load_module(settings.module, weights, {})
    else:
        family = settings.family or task.teacher
        teacher = seeded(
            config, "teacher", lambda: build_teacher(family, settings.size, spec.window, spec.outputs)
        )
    if own(config):
        teacher.eval()
        check_teacher(teacher, spec.window, spec.outputs)
    if config.redistill.teacher_epochs and not any(True for _ in teacher.parameters()):
        raise ConfigError("redistill.teacher_epochs: this teacher has no weights that could be trained")
    return teacher


def train(
    config: Config, task: Task, teacher: nn.Module, data: tuple[Tensor, Tensor], observer: Observer
) -> bool:
    """Train a built-in teacher in place, or take it from the cache (then True).

    Args:
        config: the run's settings.
        task: what is learned.
        teacher: fresh, from ``build``.
        data: windows ``[n, channels, *size]`` and what outputs are compared with.
        observer: is told how far it is.
    """
    settings = config.teacher
    how = Fit(settings.epochs, settings.batch, settings.learning_rate, derive(config.seed, "teacher batches"))
    turning = Turning()

    def run() -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(config.seed, "teacher dropout"))
            fit(
                list(teacher.parameters()),
                *data,
                lambda x, t: task.loss(teacher(x), t),
                how,
                lambda x, generator: task.augment(x, generator, turning),
                progress=lambda done, total: observer.progress(done, total, f"epoch {done}/{total}"),
            )

    if not settings.cache:
        run()
        return False
    chosen = {"settings": asdict(settings), "seed": config.seed, "task": task.name}
    sources = [Path(fedge.tasks.__file__).parent / f"{n}.py" for n in ("__init__", task.name)]
    key = teacher_key(teacher, *data, json.loads(json.dumps(chosen)), sources)
    return cached_teacher(key, teacher, run, lambda text: observer.event("note", text=text))


def ask(config: Config, spec: StudentSpec, teacher: nn.Module) -> Ask:
    """How this teacher is asked. A user's own says numbers in their own unit, and may have no features."""
    has_features = feature_width(teacher, spec.window) is not None
    head = getattr(teacher, "head", None) if not own(config) else None

    @torch.no_grad()
    def answer(x: Tensor) -> Answers:
        features = teacher.features(x) if has_features else None  # type: ignore[operator]
        outputs = teacher(x) if head is None or features is None else head(features)
        return Answers(_in_students_terms(config, spec, outputs), features)

    return answer


def _in_students_terms(config: Config, spec: StudentSpec, outputs: Tensor) -> Tensor:
    """What a teacher says, standardised where it is the user's own and says numbers in their own unit."""
    if spec.number is None or not own(config):
        return outputs
    return (outputs - spec.number.offset) / spec.number.scale


def parameters(teacher: nn.Module) -> int:
    """Number of the teacher's weights and biases."""
    return int(getattr(teacher, "weights", 0) or sum(p.numel() for p in teacher.parameters()))


def seeded(config: Config, purpose: str, make: Callable[[], nn.Module]) -> nn.Module:
    """A module whose initial weights follow from the run's seed, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, purpose))
        return make()


def learn_from(
    config: Config,
    task: Task,
    spec: StudentSpec,
    teacher: nn.Module,
    data: tuple[Tensor, Tensor],
    unlabelled: Tensor,
    ensemble: Callable[[Tensor], Tensor],
    loss: Callable[[Answers, Answers, Tensor], Tensor],
    seed: int,
) -> None:
    """Teach the teacher, in place, what the federation knows: on its own labelled data and on unlabelled.

    Every window is compared with the ensemble's answer, labelled ones with their labels too (as noisy
    students teach: Xie et al. 2020; in a federation: Lin et al. 2020 with the roles reversed).
    """
    x = torch.cat([data[0], unlabelled])
    known, rows = len(data[0]), torch.arange(len(x))
    settings = config.redistill
    frozen = {n: p.requires_grad for n, p in teacher.named_parameters()}

    def batch_loss(windows: Tensor, index: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = Answers(ensemble(windows))
        says = _in_students_terms(config, spec, teacher(windows))
        labelled = index < known
        hard = task.loss(says[labelled], data[1][index[labelled]]) if labelled.any() else says.sum() * 0
        return loss(Answers(says), wanted, hard)

    how = Fit(settings.teacher_epochs, config.teacher.batch, settings.teacher_rate, seed)
    teacher.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fit(
            [p for n, p in teacher.named_parameters() if frozen[n]],
            x,
            rows,
            batch_loss,
            how,
            lambda windows, generator: task.augment(windows, generator, Turning()),
        )
    teacher.eval()


def state_arrays(teacher: nn.Module) -> Mapping[str, Tensor]:
    """The teacher's state by name, for the journal; empty where it has none of torch's."""
    return {n: v for n, v in teacher.state_dict().items() if isinstance(v, Tensor)}
