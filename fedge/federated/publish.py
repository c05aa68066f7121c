"""From global weights to a published release: export, self-test vector, manifest."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedge.compress.export import export_float, export_int8
from fedge.config import Config
from fedge.edge.runtime import Runtime
from fedge.federated.coding import Weights
from fedge.federated.plan import Plan
from fedge.federated.prepare import Prepared
from fedge.metrics import NORMAL_SHARE, threshold
from fedge.release.folder import versions
from fedge.release.manifest import FLOAT32, INT8, Input, Manifest, ModelFile, SelfTest, parse
from fedge.release.repository import Published, Repository

_SELF_TEST_WINDOWS = 1
_TOLERANCE = 0.05
"""Of logits, in the self-test: integer kernels of other processors may round a step differently."""

_DAY = 86_400
_PRECISIONS = {"int8": (export_int8, INT8), "float32": (export_float, FLOAT32)}


@dataclass(frozen=True)
class Publisher:
    """Where releases go, and what stands in every manifest.

    Attributes:
        repository: what devices take releases from.
        classes: names of the classes.
        channels: names of the channels.
        samples: the server's windows ``[n, *size, channels]``: for the self-test, and for an anomaly task's
            threshold, which they are normal for.
    """

    repository: Repository
    classes: tuple[str, ...]
    channels: tuple[str, ...]
    samples: NDArray[np.float32]


def publish_release(
    config: Config,
    publisher: Publisher,
    prepared: Prepared,
    weights: Weights,
    version: int,
    number: int,
    metric: str,
    scores: Mapping[str, float | None],
) -> Published:
    """Export the global ``weights`` after round ``number``, and publish it as release ``version``.

    Where another one of that version is there already (the journal was restored and is behind the
    repository, or is a new one beside it), it gets the next number that was never used: a published release
    never changes.
    """
    plan = prepared.plan
    export, kind = _PRECISIONS[config.release.precision]
    model = export(plan.spec, weights, plan.scales, plan.preprocess)
    runtime = Runtime(model)
    samples = np.ascontiguousarray(publisher.samples[:_SELF_TEST_WINDOWS], np.float32)
    created = _created(publisher.repository, version)
    manifest = Manifest(
        federation=plan.federation,
        version=version,
        round=number,
        created=created,
        task=plan.task,
        model=ModelFile.of(model, kind),
        input=Input(plan.spec.window, publisher.channels),
        classes=publisher.classes,
        metric=metric,
        scores={name: score for name, score in scores.items() if score is not None},
        sizes={"parameters": plan.spec.parameters(), "multiply_adds": plan.spec.multiply_adds()},
        parent=version - 1 or None,
        expires=created + int(max(config.release.valid_days, publisher.repository.days)) * _DAY,
        self_test=SelfTest.of(samples, runtime.predict(samples), _TOLERANCE),
        threshold=_threshold(plan, runtime, publisher.samples),
    )
    content = _unused(publisher.repository, manifest, model).to_bytes()
    return publisher.repository.publish(content, model)


def _unused(repository: Repository, manifest: Manifest, model: bytes) -> Manifest:
    """The manifest, with the next number where another release has its own already."""
    latest = max(versions(repository.folder), default=0)
    version, now = manifest.version, int(repository.clock())
    if version > latest or repository.stored(version) == (manifest.to_bytes(), model):
        return manifest
    lives = manifest.expires - manifest.created
    return replace(manifest, version=latest + 1, parent=latest, created=now, expires=now + lives)


def _threshold(plan: Plan, runtime: Runtime, normal: NDArray[np.float32]) -> float | None:
    """A suggestion for devices that have no normal windows of their own."""
    if plan.spec.reconstruction is None:
        return None
    return threshold(runtime.predict(normal)[:, 0], NORMAL_SHARE)


def _created(repository: Repository, version: int) -> int:
    """Now, or when this release was first written: the round is run again after a crash."""
    if (stored := repository.stored(version)) is not None:
        return parse(stored[0]).created
    return int(repository.clock())
