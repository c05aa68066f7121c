"""A small release to start from; its model is bytes that nobody opens."""

from dataclasses import replace
from typing import Any

import numpy as np

from fedge.release.manifest import Input, Manifest, ModelFile, SelfTest

FEDERATION = "0123456789abcdef" * 2
MODEL = bytes(range(256)) * 4
CREATED, NOW, EXPIRES = 1_700_000_000, 1_700_000_500, 1_700_001_000


def manifest(**changes: Any) -> Manifest:
    rng = np.random.default_rng(0)
    whole = Manifest(
        federation=FEDERATION,
        version=3,
        round=24,
        created=CREATED,
        task="watch",
        model=ModelFile.of(MODEL),
        input=Input((5, 2), ("ax", "ay")),
        classes=("rest", "walk", "run"),
        metric="accuracy",
        scores={"unseen": 0.9, "clients": 0.95},
        sizes={"parameters": 20_000, "bytes_float32": 80_000},
        parent=2,
        expires=EXPIRES,
        self_test=SelfTest.of(
            rng.normal(size=(2, 5, 2)).astype(np.float32), rng.normal(size=(2, 3)).astype(np.float32), 0.05
        ),
    )
    return replace(whole, **changes)
