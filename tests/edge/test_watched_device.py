"""The whole circle on a device: a release goes live, fails on what it sees there, and goes back by itself."""

from pathlib import Path

import numpy as np
import pytest

from fedge.edge.live import LiveModel
from fedge.errors import ReleaseError

from .build import windows
from .lab import UNLABELLED, Device, Federation
from .test_updater import answers_nan_here_only


@pytest.mark.full
def test_release_that_answers_nan_live_gives_way_to_the_one_before(tmp_path: Path, wide: bool) -> None:
    """It passes the gate of a device that has nothing to judge it by; then every window fails."""
    federation = Federation(tmp_path / "releases")
    device = Device(federation, tmp_path / "home")
    federation.good(1)
    assert device.update(test=UNLABELLED).taken
    live, x = LiveModel.open(tmp_path / "home"), windows(1) - 50
    for version in range(2, 102 if wide else 6):
        answers_nan_here_only(federation, version)
        assert device.update(test=UNLABELLED).code == "no_windows"
        live.follow()
        assert live.current.manifest.version == version
        failures = 0
        while live.current.manifest.version == version:
            with pytest.raises(ReleaseError):
                live.predict(x)
            failures += 1
            live.follow()
            assert failures < 20
        model, scores = live.predict(x)
        assert model.manifest.version == device.version == 1
        assert np.isfinite(scores).all()
        assert device.update(test=UNLABELLED).code == "tried_before"
