"""Clients come and go for a long time, and nothing of them stays behind in the server."""

import random
from pathlib import Path

import pytest

from deploy import live_federation as live
from deploy.link_lab import Lab
from deploy.plain_rounds import answer, committed

CLIENTS = [f"c{number}" for number in range(10)]
WARM, ROUNDS = 200, 1000
SAMPLES = 100  # rounds over which what is resident is averaged


@pytest.mark.full
def test_memory_and_open_files_do_not_grow_while_clients_come_and_go(tmp_path: Path, wide: bool) -> None:
    """A tenth of the clients is changed every few rounds; gone for a while, with or without a goodbye."""
    if not wide:
        pytest.skip("takes minutes")
    home, state, port = tmp_path / "home", tmp_path / "state", live.free_port()
    live.provisioned(home, CLIENTS, port)
    labs = {
        c: Lab(home / "devices" / c, tmp_path / c, port, work=answer, host="localhost").start()
        for c in CLIENTS
    }
    seen: list[dict[str, tuple[int, int]]] = []
    try:
        with live.plain_server(
            home, state, tmp_path / "log", least=len(CLIENTS) // 2, deadline=5, spare=2
        ) as server:
            live.until(lambda: committed(state))
            pids = {"supervisor": server.pid, "gateway": server.child("fedge.deploy.gateway_process")}
            pids |= {"run": server.child("flwr-serverapp"), "superlink": server.child("flower-superlink")}
            choice, gone = random.Random(5), ""
            while (done := len(committed(state))) < WARM + ROUNDS:
                if gone:
                    labs[gone].start()
                gone = choice.choice([c for c in CLIENTS if c != gone])
                labs[gone].stop()
                seen.append({name: (live.memory(pid), live.open_files(pid)) for name, pid in pids.items()})
                live.until(lambda: len(committed(state)) >= done + 5, 300)
            assert "died" not in server.said()
            labs[gone].start()
    finally:
        for lab in labs.values():
            lab.stop()
    growth = _growth(seen)
    print(growth)  # noqa: T201
    for name in ("supervisor", "gateway", "run"):
        assert max(growth[name]) < 1.05, growth


def _growth(seen: list[dict[str, tuple[int, int]]]) -> dict[str, tuple[float, float]]:
    """Memory and open files at the end, as a multiple of those after the warm-up."""
    start = len(seen) * WARM // (WARM + ROUNDS)
    some = max(1, SAMPLES * len(seen) // (WARM + ROUNDS))
    growth = {}
    for name in seen[0]:
        first, last = (
            [sum(s[name][i] for s in part) / len(part) for i in (0, 1)]
            for part in (seen[start : start + some], seen[-some:])
        )
        growth[name] = (last[0] / first[0], last[1] / first[1])
    return growth
