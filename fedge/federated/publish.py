"""From global weights to a signed release: export, self-test vector, manifest, files, and one bundle."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedge.compress.export import export_int8
from fedge.config import Config
from fedge.edge.runtime import Runtime
from fedge.federated.coding import Weights
from fedge.federated.plan import Plan
from fedge.federated.prepare import Prepared
from fedge.metrics import threshold
from fedge.release.bundle import Bundle
from fedge.release.manifest import Input, Manifest, ModelFile, SelfTest, parse
from fedge.release.rules import sign_release
from fedge.release.store import list_releases, load, publish
from fedge.signing import SigningKey

_SELF_TEST_WINDOWS = 1
_TOLERANCE = 0.05
"""Of logits, in the self-test: integer kernels of other processors may round a step differently."""

_DAY = 86_400

NORMAL_SHARE = 0.99
"""Of normal windows, how many shall raise no alarm."""


@dataclass(frozen=True)
class Publisher:
    """Who signs releases, where they go, and what stands in every manifest.

    Attributes:
        folder: releases are written below it.
        key: the signing key.
        classes: names of the classes.
        channels: names of the channels.
        samples: the server's windows ``[n, *size, channels]``: for the self-test, and for an anomaly task's
            threshold, which they are normal for.
    """

    folder: Path
    key: SigningKey
    classes: tuple[str, ...]
    channels: tuple[str, ...]
    samples: NDArray[np.float32]


@dataclass(frozen=True)
class Published:
    """A release that has been written.

    Attributes:
        version: its number.
        path: its folder.
        sha256: of the model.
        model_bytes: size of the model.
        bundle: what travels to a device.
    """

    version: int
    path: Path
    sha256: str
    model_bytes: int
    bundle: bytes


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
    """Export the global ``weights`` after round ``number`` as release ``version``, sign it, write it."""
    plan = prepared.plan
    model = export_int8(plan.spec, weights, plan.scales)
    runtime = Runtime(model, plan.preprocess)
    samples = np.ascontiguousarray(publisher.samples[:_SELF_TEST_WINDOWS], np.float32)
    created = _created(publisher.folder, version)
    manifest = Manifest(
        federation=plan.federation,
        version=version,
        round=number,
        created=created,
        task=plan.task,
        model=ModelFile.of(model),
        input=Input(plan.spec.window, publisher.channels),
        classes=publisher.classes,
        preprocess=plan.preprocess.to_dict(),
        metric=metric,
        scores={name: score for name, score in scores.items() if score is not None},
        sizes={"parameters": plan.spec.parameters(), "multiply_adds": plan.spec.multiply_adds()},
        parent=version - 1 or None,
        expires=created + config.release.valid_days * _DAY,
        self_test=SelfTest.of(samples, runtime.predict(samples), _TOLERANCE),
        threshold=_threshold(plan, runtime, publisher.samples),
    ).to_bytes()
    signature = sign_release(publisher.key, manifest)
    path = publish(publisher.folder, manifest, signature, model)
    bundle = Bundle(manifest, signature, model).to_bytes()
    return Published(version, path, ModelFile.of(model).sha256, len(model), bundle)


def _threshold(plan: Plan, runtime: Runtime, normal: NDArray[np.float32]) -> float | None:
    """A suggestion for devices that have no normal windows of their own."""
    if plan.spec.reconstruction is None:
        return None
    return threshold(runtime.predict(normal)[:, 0], NORMAL_SHARE)


def _created(folder: Path, version: int) -> int:
    """Now, or when this release was first written: the round is run again after a crash."""
    if version in list_releases(folder):
        return parse(load(folder, version).manifest).created
    return int(time.time())
