"""Before the first round: a teacher from the server's data, and from it the student that is sent out.

    teacher -> distil (BatchNorm) -> fold -> measure sensitivity, prune -> distil again, quantization-aware
    -> calibrate activations -> quantize to the bits of the initial download

What comes out is exactly what the clients will hold, decoded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedge import plugins
from fedge.compress import prune
from fedge.compress.quantize import Calibration, calibrate, fake_quantized, sent_at
from fedge.config import Config
from fedge.data.types import Windows
from fedge.distill._fit import Fit, fit
from fedge.federated.coding import Arrays, Support, decode_dense, encode_dense
from fedge.federated.plan import Coding, Plan, Training
from fedge.models.student import Normalised, Numerics, StudentSpec, forward
from fedge.observe import Observer
from fedge.packing import pack, unpack
from fedge.preprocess import Preprocess
from fedge.preprocess import fit as fit_preprocess
from fedge.seeding import derive
from fedge.tasks import Task

Distil = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(student logits, teacher logits, y) -> loss``."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A federation that can start.

    Attributes:
        plan: what clients are told.
        snapshot: the student as it is sent.
        weights: the student as the clients then hold it (``snapshot`` decoded).
        support: which of its weights are alive.
        teacher: the trained teacher, in evaluation mode.
        x: the server's windows, preprocessed ``[n, channels, time]``.
        y: their labels ``[n]``.
        sensitivity: what pruning measured.
    """

    plan: Plan
    snapshot: bytes
    weights: Arrays
    support: Support
    teacher: nn.Module
    x: Tensor
    y: Tensor
    sensitivity: tuple[prune.LayerSensitivity, ...]

    @property
    def teacher_parameters(self) -> int:
        """Number of the teacher's weights and biases."""
        return sum(p.numel() for p in self.teacher.parameters())


def prepare(config: Config, task: Task, windows: Windows, classes: int, observer: Observer) -> Prepared:
    """Train the teacher on the server's ``windows`` and make the student from it."""
    shape = (windows.x.shape[1], windows.x.shape[2])
    preprocess = fit_preprocess(windows.x)
    x, y = torch.from_numpy(preprocess.apply(windows.x)), torch.from_numpy(windows.y)
    with observer.stage("teacher") as stage:
        teacher = _teach(config, task, shape, classes, (x, y), observer)
        stage.result = f"{sum(p.numel() for p in teacher.parameters()):,} parameters"
    spec = task.student(config.student.size, shape, classes)
    with observer.stage("student") as stage:
        params = _distilled(config, task, spec, teacher, (x, y), observer)
        stage.result = f"{spec.parameters():,} parameters"
    with observer.stage("prune and quantize") as stage:
        params, rows = _pruned(config, task, spec, params, (x, y))
        how = Calibration(config.quantize.percentile, config.quantize.headroom)
        params, scales = _tuned(config, task, spec, teacher, params, (x, y), how, observer)
        snapshot = encode_dense({n: p.numpy() for n, p in params.items()}, config.quantize.download_bits)
        weights = decode_dense(snapshot, spec.shapes())
        support = Support.of(weights)
        stage.result = f"{support.zero_share():.0%} zeros, {len(snapshot):,} bytes to send"
    plan = make_plan(config, spec, preprocess, scales)
    return Prepared(plan, snapshot, weights, support, teacher, x, y, tuple(rows))


def make_plan(config: Config, spec: StudentSpec, preprocess: Preprocess, scales: Mapping[str, float]) -> Plan:
    """What clients are told, from the settings and the student."""
    name = np.asarray([derive(config.seed, "federation", config.scenario)], "<u8").tobytes().hex()
    local = config.local
    return Plan(
        federation=name,
        task=config.task,
        spec=spec,
        preprocess=preprocess,
        scales=scales,
        training=Training(local.epochs, local.batch, local.momentum, local.augment),
        uplink=Coding(config.uplink.codec, config.uplink.settings),
        downlink=Coding(config.downlink.codec, config.downlink.settings),
    )


def _teach(
    config: Config,
    task: Task,
    shape: tuple[int, int],
    classes: int,
    data: tuple[Tensor, Tensor],
    observer: Observer,
) -> nn.Module:
    settings = config.teacher
    teacher = seeded(config, "teacher", lambda: task.teacher(settings.size, shape, classes))
    how = Fit(settings.epochs, settings.batch, settings.learning_rate, derive(config.seed, "teacher batches"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, "teacher dropout"))
        fit(
            list(teacher.parameters()),
            *data,
            lambda x, y: task.loss(teacher(x), y),
            how,
            task.augment,
            progress=lambda done, total: observer.progress(done, total, f"epoch {done}/{total}"),
        )
    return teacher.eval()


def seeded(config: Config, purpose: str, build: Callable[[], nn.Module]) -> nn.Module:
    """A module whose initial weights follow from the run's seed, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(config.seed, purpose))
        return build()


def distillation(config: Config) -> Distil:
    """The distillation loss that the scenario names, with its settings filled in."""
    module: ModuleType = plugins.load("distillation loss", config.student.loss)
    settings = config.student

    def loss(student: Tensor, teacher: Tensor, y: Tensor) -> Tensor:
        value: Tensor = module.loss(student, teacher, y, settings.temperature, settings.hard_weight)
        return value

    return loss


def _distilled(
    config: Config,
    task: Task,
    spec: StudentSpec,
    teacher: nn.Module,
    data: tuple[Tensor, Tensor],
    observer: Observer,
) -> dict[str, Tensor]:
    """Distil with BatchNorm, then fold it away."""
    module = seeded(config, "student", lambda: Normalised(spec))
    settings, loss = config.student, distillation(config)
    how = Fit(settings.epochs, settings.batch, settings.learning_rate, derive(config.seed, "student batches"))

    def batch_loss(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            answers = teacher(x)
        return loss(module(x), answers, y)

    fit(
        list(module.parameters()),
        *data,
        batch_loss,
        how,
        task.augment,
        progress=lambda done, total: observer.progress(done, total, f"epoch {done}/{total}"),
    )
    assert isinstance(module, Normalised)  # noqa: S101  (for the type checker)
    return module.eval().folded()


def _pruned(
    config: Config, task: Task, spec: StudentSpec, params: dict[str, Tensor], data: tuple[Tensor, Tensor]
) -> tuple[dict[str, Tensor], list[prune.LayerSensitivity]]:
    """Set the stated share of the weights to zero, where it hurts least."""
    x, y = data

    @torch.no_grad()
    def loss(weights: Mapping[str, Tensor]) -> float:
        return float(task.loss(forward(spec, weights, x), y))

    rows = prune.measure(params, loss)
    masks = prune.masks(params, prune.allocate(rows, config.student.prune_share))
    return {n: p * masks[n] for n, p in params.items()}, rows


def _tuned(
    config: Config,
    task: Task,
    spec: StudentSpec,
    teacher: nn.Module,
    params: dict[str, Tensor],
    data: tuple[Tensor, Tensor],
    how: Calibration,
    observer: Observer,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Distil the pruned student again, rounding as int8 will; calibrate before and after."""
    settings = config.student
    scales = calibrate(spec, params, data[0], how)
    tune = Fit(
        settings.tune_epochs, settings.batch, settings.learning_rate / 5, derive(config.seed, "tune batches")
    )
    params = distil_more(
        spec,
        params,
        {n: (p != 0).float() if p.dim() > 1 else torch.ones_like(p) for n, p in params.items()},
        sent_at(config.quantize.download_bits, fake_quantized(spec, scales)),
        data,
        teacher,
        distillation(config),
        task,
        tune,
        lambda done, total: observer.progress(done, total, f"epoch {done}/{total}"),
    )
    return params, calibrate(spec, params, data[0], how)


def distil_more(
    spec: StudentSpec,
    params: Mapping[str, Tensor],
    alive: Mapping[str, Tensor],
    numerics: Numerics,
    data: tuple[Tensor, Tensor],
    teacher: Callable[[Tensor], Tensor],
    loss: Distil,
    task: Task,
    how: Fit,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> dict[str, Tensor]:
    """Go on distilling a folded student; entries that ``alive`` marks 0 stay zero."""
    params = {n: p.clone().requires_grad_() for n, p in params.items()}

    def batch_loss(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            answers = teacher(x)
        return loss(forward(spec, params, x, numerics), answers, y)

    @torch.no_grad()
    def keep_zeros() -> None:
        for name, value in params.items():
            value.mul_(alive[name])

    fit(list(params.values()), *data, batch_loss, how, task.augment, keep_zeros, progress)
    return {n: p.detach() for n, p in params.items()}


def pack_prepared(prepared: Prepared) -> bytes:
    """For the journal: everything that took time."""
    arrays = {f"teacher/{n}": v.numpy() for n, v in prepared.teacher.state_dict().items()}
    rows = [[r.name, r.weights, list(r.losses)] for r in prepared.sensitivity]
    meta: dict[str, Any] = {"plan": prepared.plan.to_dict(), "sensitivity": rows}
    return pack(meta, {**arrays, "snapshot": np.frombuffer(prepared.snapshot, np.uint8)})


def unpack_prepared(content: bytes, config: Config, task: Task, windows: Windows, classes: int) -> Prepared:
    """What ``pack_prepared`` wrote; the server's windows are read again."""
    meta, arrays = unpack(content)
    plan = Plan.from_dict(meta["plan"])
    teacher = task.teacher(config.teacher.size, (plan.spec.time, plan.spec.channels), classes)
    states = {n.removeprefix("teacher/"): v for n, v in arrays.items() if n.startswith("teacher/")}
    teacher.load_state_dict({n: torch.from_numpy(v) for n, v in states.items()})
    snapshot = arrays["snapshot"].tobytes()
    weights = decode_dense(snapshot, plan.spec.shapes())
    x, y = torch.from_numpy(plan.preprocess.apply(windows.x)), torch.from_numpy(windows.y)
    rows = tuple(prune.LayerSensitivity(n, w, tuple(losses)) for n, w, losses in meta["sensitivity"])
    return Prepared(plan, snapshot, weights, Support.of(weights), teacher.eval(), x, y, rows)
