"""A small release to start from; its model is bytes that nobody opens."""

from dataclasses import replace
from typing import Any

import numpy as np

from fedge.preprocess import Preprocess
from fedge.release.manifest import Input, Manifest, ModelFile, SelfTest
from fedge.release.rules import ReleaseRules, sign_release
from fedge.signing import SigningKey

KEY = SigningKey.from_seed(bytes(range(32)))
OTHER_KEY = SigningKey.from_seed(bytes(range(1, 33)))
FEDERATION = "0123456789abcdef" * 2
MODEL = bytes(range(256)) * 4
CREATED, NOW, EXPIRES = 1_700_000_000, 1_700_000_500, 1_700_001_000
RULES = ReleaseRules(FEDERATION, (KEY.public,), current=2)


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
        preprocess=Preprocess(np.zeros(2, np.float32), np.ones(2, np.float32)).to_dict(),
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


def signed(**changes: Any) -> tuple[bytes, bytes, bytes]:
    """Manifest, signature and model of a release, ready for the rules."""
    content = manifest(**changes).to_bytes()
    return content, sign_release(KEY, content), MODEL
