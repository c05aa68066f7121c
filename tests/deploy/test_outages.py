"""Whatever dies or is cut, for however long, every round completes, exactly once."""

import asyncio
import os
import random
import signal
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from deploy.link_lab import Lab
from deploy.live_federation import Process, free_port, plain_client, plain_server, provisioned, until
from deploy.plain_rounds import answer, committed
from deploy.rough_link import Rough
from fedge.deploy.bell import Bell, BellServer

DEVICES = ("a", "b")
READY = 20.0
"""Seconds in which the rounds have to go on after a kill; asserted in the full run only."""


@dataclass
class Deployed:
    """A folder with everything in it."""

    root: Path
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        provisioned(self.home, DEVICES, self.port)

    @property
    def home(self) -> Path:
        return self.root / "federation"

    @property
    def state(self) -> Path:
        return self.root / "state"

    def server(self, **settings: int) -> Process:
        return plain_server(self.home, self.state, self.root / "server.log", **{"least": 2, **settings})

    def device(self, name: str, seconds: float = 0.0, port: int | None = None) -> Process:
        log = self.root / f"{name}.log"
        return plain_client(self.home, name, self.root / name, log, port or self.port, seconds)

    def lab(self, name: str, port: int | None = None) -> Lab:
        """The same as a device's process, in threads of this one."""
        bundle = self.home / "devices" / name
        return Lab(bundle, self.root / name, port or self.port, work=answer, host="localhost")

    def done(self) -> int:
        return len(committed(self.state))

    def goes_on(self, rounds: int = 2) -> float:
        """Wait for so many further rounds; gives the seconds."""
        before = self.done()
        return until(lambda: self.done() >= before + rounds, 240, "no further round")

    def check(self) -> None:
        """Every round once, in order, and of everybody."""
        rounds = committed(self.state)
        assert [r["round"] for r in rounds] == list(range(len(rounds)))
        assert all(r["clients"] == list(DEVICES) for r in rounds)


@pytest.fixture
def deployed(tmp_path: Path) -> Deployed:
    return Deployed(tmp_path)


@pytest.mark.full
def test_every_process_may_be_killed_and_the_rounds_go_on(deployed: Deployed, wide: bool) -> None:
    """Gateway, SuperLink, SuperExec and run, each once, in full ten times; the whole server; a device."""
    victims = {
        "gateway": "fedge.deploy.gateway_process",
        "run": "flwr-serverapp",
        "superexec": "flower-superexec",
        "superlink": "flower-superlink",
    }
    took: dict[str, list[float]] = {name: [] for name in (*victims, "device", "server")}
    with deployed.lab("a"):
        with deployed.server() as server, deployed.device("b"):
            deployed.goes_on()
            for _ in range(10 if wide else 1):
                for name, word in victims.items():
                    os.kill(server.child(word), signal.SIGKILL)
                    took[name].append(deployed.goes_on())
                    time.sleep(3.0 if wide else 0.0)  # what dies young again and again is given up
        with deployed.server() as server:
            with deployed.device("b"):
                took["server"].append(deployed.goes_on())
            with deployed.device("b"):
                took["device"].append(deployed.goes_on())
            assert server.terminate() == 0
    deployed.check()
    _say(took)
    assert not wide or max(t for times in took.values() for t in times) < READY
    said = (deployed.root / "server.log").read_text().splitlines()
    # a run whose SuperLink was killed dies of Flower's own error, and may say so; nothing of ours may
    assert not [line for line in said if "Traceback" in line and " run " not in line]


@pytest.mark.full
def test_a_server_may_be_gone_for_long(deployed: Deployed, wide: bool) -> None:
    if not wide:
        pytest.skip("the server of the test above comes back, too")
    took: dict[str, list[float]] = {}
    with deployed.lab("a"), deployed.lab("b"):
        for seconds in (0, 5, 20, 80, 300):
            time.sleep(seconds)
            with deployed.server():
                took[f"after {seconds} s"] = [deployed.goes_on()]
    deployed.check()
    _say(took)


@pytest.mark.full
def test_a_device_may_be_killed_while_it_works_saves_or_sends(deployed: Deployed, wide: bool) -> None:
    """Killed in the midst of its work, just after it (saving), and at odd moments (sending)."""
    if not wide:
        pytest.skip("test_device kills a device at every step, on a gateway without a server behind it")
    took: list[float] = []
    log = deployed.root / "b.log"
    with deployed.server(size=100_000), deployed.lab("a"):
        for attempt in range(10):
            word = ("works", "worked")[attempt % 2]
            with deployed.device("b", 0.3) as device:
                before = device.said().count(word)
                until(lambda: log.read_text().count(word) > before)  # noqa: B023
                time.sleep((attempt // 2) * 0.004)
            with deployed.device("b"):
                took.append(deployed.goes_on())
    deployed.check()
    _say({"device": took})
    assert max(took) < READY


def test_the_rough_link_loses_time_and_no_bytes() -> None:
    """Without cuts: everything arrives, in order, late by what was lost."""
    content = bytes(random.Random(1).randbytes(30_000))
    with socket.create_server(("127.0.0.1", 0)) as server:
        with Rough(server.getsockname()[1], 60.0, 0.05, 100_000, 0.2) as link:
            start = time.monotonic()
            near = socket.create_connection(("127.0.0.1", link.port))
            far, _ = server.accept()
            with near, far:
                near.sendall(content)
                far.settimeout(20)
                came = b""
                while len(came) < len(content):
                    came += far.recv(65_536)
                took = time.monotonic() - start
        assert came == content
        assert link.up == len(content)
        assert link.lost > 0
        assert took > 0.05 + 0.2 * link.lost


@pytest.mark.full
def test_over_a_link_that_is_cut_every_few_seconds_nothing_is_sent_twice_in_full(
    deployed: Deployed, wide: bool
) -> None:
    """Cut every 10 s, 500 ms of delay each way, 5 % of the segments lost (see ``Rough`` for what that is)."""
    if not wide:
        pytest.skip("test_device breaks links, on a gateway without a server behind it")
    life, delay, rate, size, rounds = 10.0, 0.5, 60_000, 600_000, 2  # seconds, bytes per second, bytes
    with Rough(deployed.port, life, delay, rate, loss=0.05) as link:
        settings = {"size": size, "rounds": rounds, "deadline": 600}
        with deployed.server(**settings) as server, deployed.lab("a"), deployed.lab("b", link.port):
            assert server.ends(900) == 0
    deployed.check()
    assert deployed.done() == rounds
    repeated = {"down": link.down / (rounds * size), "up": link.up / (rounds * size)}
    _say({"sent, as a multiple of what had to be": list(repeated.values())})
    _say(
        {
            "cuts": [link.cuts],
            "lost": [link.lost],
            "seconds": [r["seconds"] for r in committed(deployed.state)],
        }
    )
    assert link.cuts >= 2
    assert link.lost > 0.02 * (link.up + link.down) / (rate / 50)
    lost = rate * delay + 2 * rate / 50 + 20_000  # on its way and in buffers, each time that it was cut
    assert max(link.up, link.down) < rounds * size * 1.02 + (link.cuts + 1) * lost < 2 * rounds * size


def _say(numbers: dict[str, list[float]]) -> None:
    """Numbers for whoever runs this with ``-s``."""
    print({name: [round(n, 2) for n in found] for name, found in numbers.items()})  # noqa: T201


def test_a_gateway_that_ends_with_a_round_loop_on_its_bell_says_nothing(tmp_path: Path) -> None:
    """asyncio prints a traceback of every connection that is cancelled with it."""
    said: list[object] = []

    async def play() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: said.append(context))

        async def ready() -> None:
            """At once."""

        server = BellServer(tmp_path / "bell", lambda _clients: None, ready)
        await server.start()
        bell = await asyncio.to_thread(Bell, tmp_path / "bell")
        while not bell.connected:
            await asyncio.to_thread(bell.wait, 0.05)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0.05)
        await server.close()
        bell.close()

    asyncio.run(play())
    assert not said
