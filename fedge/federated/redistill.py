"""Re-distillation: the aggregate goes back to school, on the server's own data.

The teaching signal is the mean of the teacher's and the aggregate's answers (ensemble distillation; Lin et
al. 2020, FedDF, algorithm 1), so that what the clients have learned is not overwritten; the student starts
from the aggregate, trains as the int8 model rounds, and is drawn back towards it. What comes out is only a
candidate: judges decide.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fedge.compress.quantize import bounded, fake_quantized
from fedge.config import Config
from fedge.distill._fit import Fit
from fedge.federated.coding import Weights, encode_dense
from fedge.federated.frames import Step, StepKind
from fedge.federated.prepare import Prepared, distil_more, distillation
from fedge.federated.training import tensors
from fedge.models.student import forward
from fedge.seeding import derive
from fedge.tasks import Task


def make_candidate(config: Config, task: Task, prepared: Prepared, weights: Weights, number: int) -> Step:
    """A step from the global ``weights`` after round ``number`` to a re-distilled student.

    It travels as a quantized change or as a quantized snapshot, whichever is smaller; judges score exactly
    what the clients would hold.
    """
    settings, spec = config.redistill, prepared.plan.spec
    start = tensors(weights)
    alive = {n: torch.from_numpy(a).float() for n, a in prepared.support.alive.items()}
    how = Fit(
        settings.epochs,
        config.student.batch,
        settings.learning_rate,
        derive(config.seed, "redistill", number),
    )
    taught = distil_more(
        spec,
        start,
        alive,
        fake_quantized(spec, prepared.plan.scales),
        (prepared.x, prepared.y),
        teaching_signal(config, prepared, weights),
        distillation(config),
        task,
        how,
    )
    change = {n: (settings.interpolation * (taught[n] - start[n])).numpy() for n in taught}
    target = {n: weights[n] + change[n] for n in change}
    gather = prepared.support.gather
    by_change = encode_dense(gather(change), settings.bits)
    by_snapshot = encode_dense(gather(target), config.quantize.download_bits)
    if len(by_snapshot) < len(by_change):
        return Step(StepKind.SNAPSHOT, by_snapshot)
    return Step(StepKind.CHANGE, by_change)


def teaching_signal(config: Config, prepared: Prepared, weights: Weights) -> Callable[[Tensor], Tensor]:
    """From windows to the teaching signal: the teacher's logits, or log of the ensemble's mean answer."""
    if config.redistill.mode == "teacher":
        return prepared.teacher
    spec, params = prepared.plan.spec, tensors(weights)
    numerics = bounded(spec, prepared.plan.scales)

    def ensemble(x: Tensor) -> Tensor:
        teacher = F.softmax(prepared.teacher(x), dim=1)
        aggregate = F.softmax(forward(spec, params, x, numerics), dim=1)
        return torch.log((teacher + aggregate) / 2 + 1e-12)

    return ensemble
