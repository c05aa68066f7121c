"""What measures the server must itself count right."""

from pathlib import Path

from fedge.bench import _edge_load as load
from fedge.errors import DataError

from .build import Fake, running, whole, windows
from .hostile_peer import misbehaving, says


def test_every_request_is_counted_once(tmp_path: Path) -> None:
    with running(whole(tmp_path)) as port:
        found = load.measure(port, load.oip_request("test", windows(2)), connections=4, seconds=0.3)
    assert found.requests > 0
    assert found.failed == 0
    assert found.statuses == {"200": found.requests}
    assert 0 < found.p50_ms <= found.p99_ms <= found.max_ms
    assert found.per_second > 0
    assert 0.25 < found.seconds < 30


def test_answers_that_are_none_are_failures() -> None:
    with running(Fake(fails=lambda x: DataError("no"))) as port:  # noqa: ARG005
        found = load.measure(port, load.oip_request("test", windows(1)), connections=2, seconds=0.1)
    assert found.requests == 0
    assert found.failed == found.statuses["400"] > 0
    with misbehaving(says(b"")) as port:
        found = load.measure(port, load.oip_request("test", windows(1)), connections=2, seconds=0.1)
    assert (found.requests, found.failed) == (0, 2)
