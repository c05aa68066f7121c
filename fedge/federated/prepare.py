"""Before the first round: a teacher from the server's data, and from it the student that is sent out.

    teacher -> distil (BatchNorm) -> fold -> measure sensitivity, prune -> distil again, quantization-aware
    -> calibrate activations -> quantize to the bits of the initial download

What comes out is exactly what the clients will hold, decoded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedge.augment import triples_of
from fedge.compress import prune
from fedge.config import Config
from fedge.data.types import Windows
from fedge.errors import ConfigError, PayloadError
from fedge.federated import teaching
from fedge.federated.answers import answering, targets
from fedge.federated.coding import Arrays, Support, decode_dense, encode_dense
from fedge.federated.journal import Journal
from fedge.federated.plan import Coding, Plan, Training
from fedge.federated.pupil import Pupil
from fedge.federated.server_data import ServerData
from fedge.models.own_student import load_spec
from fedge.models.student import StudentSpec
from fedge.models.student_families import build_spec
from fedge.models.teacher import feature_width
from fedge.observe import Observer
from fedge.packing import pack, unpack
from fedge.preprocess import Preprocess
from fedge.preprocess import fit as fit_preprocess
from fedge.seeding import derive
from fedge.tasks import Task, Turning, outputs_of

_STAGE = "prepared"


@dataclass(frozen=True, eq=False)
class Prepared:
    """A federation that can start.

    Attributes:
        plan: what clients are told.
        snapshot: the student as it is sent.
        weights: the student as the clients then hold it (``snapshot`` decoded).
        support: which of its weights are alive.
        teacher: the trained teacher, in evaluation mode.
        x: the server's labelled windows, preprocessed ``[n, channels, *size]``.
        y: their labels, or numbers ``[n]``.
        unlabelled: further windows, preprocessed ``[m, channels, *size]``.
        judges: windows and labels of people held back, by name.
        sensitivity: what pruning measured.
        uncut: parameters and multiply-adds of the student before channels were removed.
    """

    plan: Plan
    snapshot: bytes
    weights: Arrays
    support: Support
    teacher: nn.Module
    x: Tensor
    y: Tensor
    unlabelled: Tensor
    judges: Mapping[str, tuple[Tensor, Tensor]]
    sensitivity: tuple[prune.LayerSensitivity, ...]
    uncut: tuple[int, int]

    @staticmethod
    def received(plan: Plan, snapshot: bytes) -> "Prepared":
        """A federation as an edge server was welcomed to it: what its clients are sent, and nothing to teach.

        Raises:
            PayloadError: the snapshot is none of this plan's student.
        """
        weights, none = decode_dense(snapshot, plan.spec.shapes()), torch.zeros(0)
        alive = Support.of(weights)
        return Prepared(plan, snapshot, weights, alive, nn.Identity(), none, none, none, {}, (), (0, 0))

    @property
    def teacher_parameters(self) -> int:
        """Number of the teacher's weights and biases."""
        return teaching.parameters(self.teacher)


def prepare(
    config: Config,
    task: Task,
    data: ServerData,
    classes: int,
    channels: tuple[str, ...],
    observer: Observer,
) -> Prepared:
    """Train the teacher on the server's data and make the student from it.

    Raises:
        ConfigError: teacher, student or distillation loss do not fit the task or the data.
    """
    preprocess = fit_preprocess(data.labelled.x)
    x, y = _tensors(preprocess, data.labelled)
    spec = make_spec(config, task, data.labelled.x.shape[1:], classes, (x, y))
    teacher = teaching.build(config, task, spec)
    pupil = Pupil(config, task, teaching.ask(config, spec, teacher), x, y, observer)
    pupil.distillation(feature_width(teacher, spec.window) is not None)  # refuses before anything takes long
    with observer.stage("teacher") as stage:
        note = "your own"
        if not teaching.own(config):
            known = teaching.train(config, task, teacher, (x, targets(spec, x, y)), observer)
            note = "from the cache" if known else "trained"
        teacher.eval()
        stage.result = f"{teaching.parameters(teacher):,} parameters, {note}"
    with observer.stage("student") as stage:
        params = pupil.distilled(spec)
        uncut = (spec.parameters(), spec.multiply_adds())
        spec, params = pupil.cut(spec, params)
        stage.result = f"{spec.parameters():,} parameters"
    with observer.stage("prune and quantize") as stage:
        params, rows = pupil.pruned(spec, params)
        params, scales = pupil.tuned(spec, params)
        snapshot = encode_dense({n: p.numpy() for n, p in params.items()}, config.quantize.download_bits)
        weights = decode_dense(snapshot, spec.shapes())
        support = Support.of(weights)
        stage.result = f"{support.zero_share():.0%} zeros, {len(snapshot):,} bytes to send"
    plan = make_plan(config, spec, preprocess, scales, channels)
    return Prepared(
        plan, snapshot, weights, support, teacher, x, y, *_beside(preprocess, data, x), tuple(rows), uncut
    )


def prepared_once(
    journal: Journal,
    config: Config,
    task: Task,
    data: ServerData,
    classes: int,
    channels: tuple[str, ...],
    observer: Observer,
    federation: str | None = None,
) -> Prepared:
    """From the journal, or prepared now and put there; ``federation`` is its hex name, if it has one.

    Raises:
        ConfigError: as ``prepare``.
        SetupError: what is in the journal makes no sense, or it cannot be written.
    """
    if (saved := journal.stage(_STAGE)) is not None:
        try:
            return unpack_prepared(saved, config, task, data)
        except (PayloadError, KeyError, ValueError, RuntimeError) as error:
            raise journal.damaged(error) from None
    made = prepare(config, task, data, classes, channels, observer)
    if federation is not None:
        made = replace(made, plan=replace(made.plan, federation=federation))
    journal.set_stage(_STAGE, pack_prepared(made))
    return made


def make_spec(
    config: Config, task: Task, window: tuple[int, ...], classes: int, data: tuple[Tensor, Tensor]
) -> StudentSpec:
    """The student that the settings name, with what turns its outputs into answers.

    Raises:
        ConfigError: there is none such, or the task is not for such windows.
    """
    check_window(task, window)
    outputs, settings = outputs_of(task, classes, window[-1]), config.student
    spec = (
        load_spec(settings.module, window, outputs)
        if settings.module
        else build_spec(settings.family, settings.size, window, outputs)
    )
    return answering(task, spec, *data)


def check_window(task: Task, window: tuple[int, ...]) -> None:
    """Refuse images where the task is for windows ``[time, channels]``, and the other way round.

    Raises:
        ConfigError: it is not for such windows.
    """
    if (len(window) == 3) != task.images:
        wanted = "images [height, width, channels]" if task.images else "windows [time, channels]"
        raise ConfigError(f"task {task.name!r} is for {wanted}; these are {list(window)}")


def _tensors(preprocess: Preprocess, windows: Windows) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(preprocess.apply(windows.x)), torch.from_numpy(windows.y)


def _beside(
    preprocess: Preprocess, data: ServerData, x: Tensor
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Unlabelled windows ``[m, channels, *size]`` and the judges' windows with labels."""
    more = x[:0] if data.unlabelled is None else torch.from_numpy(preprocess.apply(data.unlabelled.x))
    return more, {name: _tensors(preprocess, w) for name, w in data.judges.items()}


def make_plan(
    config: Config,
    spec: StudentSpec,
    preprocess: Preprocess,
    scales: Mapping[str, float],
    channels: tuple[str, ...],
) -> Plan:
    """What clients are told, from the settings and the student.

    Raises:
        ConfigError: a channel to be turned does not exist.
    """
    name = np.asarray([derive(config.seed, "federation", config.scenario)], "<u8").tobytes().hex()
    local = config.local
    return Plan(
        federation=name,
        task=config.task,
        spec=spec,
        preprocess=preprocess,
        scales=scales,
        training=Training(
            epochs=local.epochs,
            batch=local.batch,
            momentum=local.momentum,
            augment=local.augment,
            turning=turning_of(config, channels),
            proximal=local.proximal,
            dynamic=local.dynamic,
            personal_head=local.personal_head,
        ),
        uplink=Coding(config.uplink.codec, config.uplink.settings),
        downlink=Coding(config.downlink.codec, config.downlink.settings),
    )


def turning_of(config: Config, channels: tuple[str, ...]) -> Turning:
    """The sensors that are turned at random, as indices of channels."""
    names = config.local.rotate
    named = [names[i : i + 3] for i in range(0, len(names), 3)]
    return Turning(triples_of(channels, named), config.local.rotate_degrees if named else 0.0)


def pack_prepared(prepared: Prepared) -> bytes:
    """For the journal: everything that took time."""
    arrays = {f"teacher/{n}": v.numpy() for n, v in teaching.state_arrays(prepared.teacher).items()}
    rows = [[r.name, r.weights, list(r.losses)] for r in prepared.sensitivity]
    meta: dict[str, Any] = {
        "plan": prepared.plan.to_dict(),
        "sensitivity": rows,
        "uncut": list(prepared.uncut),
    }
    return pack(meta, {**arrays, "snapshot": np.frombuffer(prepared.snapshot, np.uint8)})


def unpack_prepared(content: bytes, config: Config, task: Task, data: ServerData) -> Prepared:
    """What ``pack_prepared`` wrote; the server's windows are read again."""
    meta, arrays = unpack(content)
    plan = Plan.from_dict(meta["plan"])
    teacher = teaching.build(config, task, plan.spec)
    states = {n.removeprefix("teacher/"): v for n, v in arrays.items() if n.startswith("teacher/")}
    teacher.load_state_dict({n: torch.from_numpy(v) for n, v in states.items()})
    snapshot = arrays["snapshot"].tobytes()
    weights = decode_dense(snapshot, plan.spec.shapes())
    x, y = _tensors(plan.preprocess, data.labelled)
    rows = tuple(prune.LayerSensitivity(n, w, tuple(losses)) for n, w, losses in meta["sensitivity"])
    beside = _beside(plan.preprocess, data, x)
    uncut = (meta["uncut"][0], meta["uncut"][1])
    return Prepared(plan, snapshot, weights, Support.of(weights), teacher.eval(), x, y, *beside, rows, uncut)
