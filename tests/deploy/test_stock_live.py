"""A stock ``flower-supernode`` takes part in the same rounds as ``fedge client``, through the Flower door."""

import os
import sys
import time
from pathlib import Path

import pytest

from deploy import live_federation as live
from fedge.deploy import enrol

ROUNDS = 2


def _supernode(home: Path, name: str, door: int, data: Path, folder: Path) -> live.Process:
    """As ``docs/operations.md`` has it."""
    bundle, programs = home / "devices" / name, Path(sys.executable).parent
    line = [str(programs / "flower-supernode"), "--superlink", f"localhost:{door}"]
    line += ["--root-certificates", str(bundle / "ca.pem")]
    line += ["--auth-supernode-private-key", str(bundle / "node.key"), "--port", str(live.free_port())]
    line += ["--node-config", f"bundle='{bundle}' data='{data}' state='{folder / 'state'}'"]
    env = {"PATH": f"{programs}:{os.environ['PATH']}", "FLWR_HOME": str(folder / "flwr")}
    return live.Process(line, folder / "log", {**env, "FLWR_TELEMETRY_ENABLED": "0"})


@pytest.mark.full
def test_the_updates_of_a_stock_supernode_count_beside_those_of_fedge_clients(
    tmp_path: Path, fleet_file: Path, wide: bool
) -> None:
    """Every round waits for all three, and every update counts."""
    if not wide:
        pytest.skip("a stock node takes ten seconds for each answer: make test-full")
    port, door, home, state = live.free_port(), live.free_port(), tmp_path / "home", tmp_path / "state"
    devices = [enrol.Device("a"), enrol.Device("b"), enrol.Device("stock", stock=True)]
    enrol.create(home, "lab", ("localhost", "127.0.0.1"), port, devices, time.time(), 30)
    data = dict(zip("abs", live.split(fleet_file, tmp_path / "data", ("a", "b", "stock")), strict=True))
    (node := tmp_path / "node").mkdir()
    given = {"rounds__least": 3, "rounds__deadline_seconds": 240, "rounds__gather_seconds": 90}
    with (
        live.server(
            home, state, tmp_path / "log", fleet_file, ROUNDS, "--flower-door", str(door), **given
        ) as server,
        live.client(home, "a", data["a"], tmp_path / "a", tmp_path / "a.log"),
        live.client(home, "b", data["b"], tmp_path / "b", tmp_path / "b.log"),
        _supernode(home, "stock", door, data["s"], node) as supernode,
    ):
        assert server.ends(600) == 0, server.said()[-3000:]
        assert supernode.running
        said = supernode.said()
        assert supernode.terminate() in (0, -15, 143)
    records = live.records(state)
    print([(r["participants"], r["counted"], r["seconds"]) for r in records])  # noqa: T201
    assert [sorted(r["counted"]) for r in records] == [["a", "b", "stock"]] * ROUNDS
    assert all(not r["refused"] for r in records)
    assert (node / "state" / "client.state").stat().st_size > 0
    assert "Failed to send" not in said, said[-3000:]
    assert "Traceback" not in said, said[-3000:]
    assert "not pre-registered" not in server.said()
