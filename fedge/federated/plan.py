"""The plan: what every round of a federation has in common. The server sends it once, with the student."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from fedge.errors import PayloadError
from fedge.models.student import StudentSpec, activations
from fedge.preprocess import Preprocess, from_dict
from fedge.tasks import Turning


@dataclass(frozen=True)
class Training:
    """Local SGD.

    Attributes:
        epochs: passes over the client's windows.
        batch: windows per step.
        momentum: of SGD.
        augment: whether windows are varied.
        turning: sensors that are turned at random, where windows are varied.
        proximal: FedProx, the weight of half the squared distance to the global weights.
        dynamic: FedDyn, the strength of the drift correction; 0 for none.
        personal_head: whether the last layer stays with the client.
    """

    epochs: int
    batch: int
    momentum: float
    augment: bool
    turning: Turning = field(default_factory=Turning)
    proximal: float = 0.0
    dynamic: float = 0.0
    personal_head: bool = False


@dataclass(frozen=True)
class Coding:
    """A codec by name, with its settings."""

    codec: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """What a client must know before its first round.

    Attributes:
        federation: hex name of the federation; signatures are bound to it.
        task: name of the task.
        spec: the student's layers.
        preprocess: from the sensor's units to the student's input.
        scales: activation scales of the int8 student.
        training: how a client fine-tunes.
        uplink: how updates are coded.
        downlink: how the global weights' changes are coded.
    """

    federation: str
    task: str
    spec: StudentSpec
    preprocess: Preprocess
    scales: Mapping[str, float]
    training: Training
    uplink: Coding
    downlink: Coding

    def to_dict(self) -> dict[str, Any]:
        """JSON values, exact."""
        return {
            "federation": self.federation,
            "task": self.task,
            "spec": self.spec.to_dict(),
            "preprocess": self.preprocess.to_dict(),
            "scales": dict(self.scales),
            "training": asdict(self.training),
            "uplink": {"codec": self.uplink.codec, "settings": dict(self.uplink.settings)},
            "downlink": {"codec": self.downlink.codec, "settings": dict(self.downlink.settings)},
        }

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> "Plan":
        """Parse a plan that a server sent.

        Raises:
            PayloadError: a key is missing or unknown, or a value is out of range.
        """
        names = {f.name for f in fields(Plan)}
        if set(raw) != names:
            raise PayloadError(f"a plan has the keys {sorted(names)}, not {sorted(map(str, raw))}")
        spec = StudentSpec.from_dict(raw["spec"])
        if not all(isinstance(raw[key], str) and len(raw[key]) <= 64 for key in ("federation", "task")):
            raise PayloadError("a plan's federation and task are short strings")
        preprocess = from_dict(raw["preprocess"])
        if len(preprocess.mean) != spec.channels:
            raise PayloadError("a plan's preprocessing does not fit its student")
        return Plan(
            federation=raw["federation"],
            task=raw["task"],
            spec=spec,
            preprocess=preprocess,
            scales=_scales(raw["scales"], spec),
            training=_training(raw["training"], spec.channels),
            uplink=_coding(raw["uplink"]),
            downlink=_coding(raw["downlink"]),
        )


def _scales(raw: Any, spec: StudentSpec) -> dict[str, float]:
    if not isinstance(raw, dict) or list(raw) != activations(spec):
        raise PayloadError("a plan's scales do not fit its student")
    if not all(isinstance(v, float) and 0 < v < 1e6 for v in raw.values()):
        raise PayloadError("a plan's scales are out of range")
    return raw


def _training(raw: Any, channels: int) -> Training:
    try:
        training = Training(**{**raw, "turning": _turning(raw["turning"], channels)})
    except (TypeError, ValueError, KeyError) as error:
        raise PayloadError(f"a plan's training: {error}") from None
    whole = all(type(n) is int and 1 <= n <= 10_000 for n in (training.epochs, training.batch))
    momentum = training.momentum
    if not whole or not isinstance(momentum, float) or not (math.isfinite(momentum) and 0 <= momentum < 1):
        raise PayloadError("a plan's training is out of range")
    if not all(isinstance(flag, bool) for flag in (training.augment, training.personal_head)):
        raise PayloadError("a plan's training.augment and training.personal_head are true or false")
    if not all(isinstance(v, float) and 0 <= v <= 1000 for v in (training.proximal, training.dynamic)):
        raise PayloadError("a plan's training.proximal and training.dynamic are 0 to 1000")
    return training


def _turning(raw: Any, channels: int) -> Turning:
    triples = tuple((a, b, c) for a, b, c in raw["triples"])
    flat = [axis for triple in triples for axis in triple]
    if len(set(flat)) < len(flat) or not all(type(axis) is int and 0 <= axis < channels for axis in flat):
        raise PayloadError("a plan's training turns channels that the student does not have, or twice")
    if not isinstance(raw["degrees"], float) or not 0 <= raw["degrees"] <= 180:
        raise PayloadError("a plan's training turns by 0 to 180 degrees")
    return Turning(triples, raw["degrees"])


def _coding(raw: Any) -> Coding:
    if (
        not isinstance(raw, dict)
        or set(raw) != {"codec", "settings"}
        or not isinstance(raw["settings"], dict)
    ):
        raise PayloadError("a plan's codec is a name and a table of settings")
    return Coding(str(raw["codec"]), raw["settings"])
