"""What comes from outside, and what enrolled clients do, cannot fail a run, slow it, enter it or fill it."""

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from federated.build import MemoryStore, federation_of, fleet_of, is_training, without_time

from deploy import live_federation as live
from deploy.hostile import ATTACKS, BARRED, LINK_ATTACKS, LinkOffender, Offender
from deploy.link_lab import Lab, Running, plain_client
from deploy.plain_rounds import answer, committed
from fedge.deploy import device, enrol, tls
from fedge.deploy.device_wire import Wire
from fedge.deploy.device_work import DataSource, Round
from fedge.deploy.federation import Enrolment
from fedge.deploy.status import client_lines
from fedge.errors import FedgeError
from fedge.federated.checks import check_trained
from fedge.federated.frames import Train, decode_task
from fedge.federated.journal import Journal
from fedge.federated.prepare import Prepared
from fedge.federated.server import run_rounds
from fedge.federated.state import FederationState
from fedge.link.coding import encode
from fedge.link.device_end import DeviceDesk, DeviceEnd, Opened, Settled
from fedge.link.frames import AnswerPart, Outcome
from fedge.link.transfer import announce
from fedge.simulation.world import World

HONEST = ("honest-a", "honest-b")
MORE = 10 << 20
"""Bytes of memory that an attack from outside may cost."""


def _everyone(home: Path, data: list[Path], port: int, times: int) -> ExitStack:
    """Two honest devices and an offender of each kind, in threads of this process."""
    stack = ExitStack()
    for name, part in zip(HONEST, data, strict=True):
        enrolment = Enrolment.load(home / "devices" / name)
        key, models = enrolment.signing_key(), home.parent / name / "model"
        work = Round(enrolment, key, DataSource(part), MemoryStore(), models, 0.01)
        stack.enter_context(_lab(home, name, port, work))
    for name, attack in ATTACKS.items():
        stack.enter_context(_lab(home, name, port, Offender(home / "devices" / name, attack)))
    for name in LINK_ATTACKS:
        stack.enter_context(LinkOffender(home / "devices" / name, port, name, times))
    return stack


def _lab(home: Path, name: str, port: int, work: Any) -> Lab:
    return Lab(home / "devices" / name, home.parent / name, port, work=work, host="localhost")


@pytest.mark.full
def test_bad_replies_of_every_kind_cost_the_honest_nothing(
    tmp_path: Path, fleet_file: Path, wide: bool
) -> None:
    """All kinds in each round: twice, in full 20 times. Those who can be blamed are barred after that."""
    home, state, port, deadline = (
        tmp_path / "home",
        tmp_path / "state",
        live.free_port(),
        15.0 if wide else 10.0,
    )
    times = 20 if wide else 2
    live.provisioned(home, [*HONEST, *ATTACKS, *LINK_ATTACKS], port)
    data = live.split(fleet_file, tmp_path / "data", HONEST)
    given = {"rounds__deadline_seconds": deadline, "rounds__least": len(HONEST), "rounds__offences": times}
    with (
        _everyone(home, data, port, times),
        live.server(home, state, tmp_path / "log", fleet_file, times + 1, **given) as server,
    ):
        run = server.child("flwr-serverapp")
        gateway = server.child("fedge.deploy.gateway_process")
        server.hears("round 1/")
        before = {pid: live.memory(pid) for pid in (run, gateway)}
        most = dict(before)
        while server.running and not (state / "outcome.json").exists():
            with contextlib.suppress(OSError, StopIteration):
                most = {pid: max(most[pid], live.memory(pid)) for pid in most}
            time.sleep(0.05)
        assert server.ends() == 0, server.said()[-3000:]
    print({"grew MB": [(most[p] - before[p]) / 1e6 for p in most]})  # noqa: T201
    records = live.records(state)
    print([(r["participants"], r["counted"], r["seconds"]) for r in records])  # noqa: T201
    assert "the run died" not in server.said()
    assert "Traceback" not in server.said()
    _check(records, deadline + (5 if wide else 60))
    assert max(most[p] - before[p] for p in most) < 150e6
    with Journal(state / "journal.sqlite") as journal:
        clients = FederationState.from_bytes(journal.state() or b"").clients
    assert {c for c in clients if clients[c].barred} == set(BARRED)
    shown = [line for line in client_lines(state) if "barred until round" in line]
    assert {line.split()[0] for line in shown} == set(BARRED)  # as `fedge server clients` prints it
    refused = [
        e for e in map(json.loads, (state / "metrics.jsonl").read_text().splitlines()) if "reason" in e
    ]
    for name in (*ATTACKS, *LINK_ATTACKS):
        assert sum(e.get("client") == name for e in refused) >= times - (name == "replay"), name


def _check(records: list[dict[str, Any]], seconds: float) -> None:
    sound = 0
    for record in records:
        assert set(HONEST) <= set(record["counted"]) <= {*HONEST, "replay"}
        sound += "replay" in record["counted"]
        assert record["seconds"] < seconds or record is records[-1]  # the last makes a release, too
    assert sound == 1  # its first, which was sound


@pytest.mark.full
def test_no_replayed_or_forged_update_is_accepted_not_even_after_a_restart(
    small_world: World, small_prepared: Prepared, tmp_path: Path, wide: bool
) -> None:
    heard: list[tuple[str, bytes, bytes]] = []

    def hear(client: str) -> Any:
        def listen(task: bytes, said: bytes) -> bytes:
            heard.append((client, task, said))
            return said

        return listen

    fleet = fleet_of(small_world)
    fleet.tamper = {c: hear(c) for c in fleet.devices}
    redistil = replace(small_world.config.redistill, mode="none")
    with Journal(tmp_path / "journal") as journal:
        settings = replace(small_world.config.rounds, rounds=3)
        federation, _ = federation_of(
            small_world, small_prepared, fleet, journal, rounds=settings, redistill=redistil
        )
        run_rounds(federation)
    answers = [(c, decode_task(t), said) for c, t, said in heard if is_training(t)]
    rated = [(c, t, said) for c, t, said in answers if isinstance(t, Train) and t.learning_rate > 0]
    for client, task, said in rated:
        check_trained(client, said, task, federation)  # these are sound, so what follows says something
    random, refused, count = np.random.default_rng(7), 0, 10_000 if wide else 500
    for number in range(count):
        client, task, said = rated[random.integers(len(rated))]
        other, at, _ = rated[random.integers(len(rated))]
        if number % 2 or (client, task.round) == (other, at.round):
            place = int(random.integers(len(said)))
            flipped = bytes([said[place] ^ 1 << int(random.integers(8))])
            other, at, said = client, task, said[:place] + flipped + said[place + 1 :]
        with pytest.raises(FedgeError):
            check_trained(other, said, at, federation)
        refused += 1
    assert refused == count
    _play_again(small_world, small_prepared, tmp_path / "journal", heard)


def _play_again(world: World, prepared: Prepared, path: Path, heard: list[tuple[str, bytes, bytes]]) -> None:
    """A restarted server gets nothing but what it got before."""
    fleet = fleet_of(world)
    old = {c: [said for name, t, said in heard if name == c and is_training(t)] for c in fleet.devices}
    redistil = replace(world.config.redistill, mode="none")
    with Journal(path) as journal:
        before = journal.rounds()
        settings = replace(world.config.rounds, rounds=5)
        federation, _ = federation_of(world, prepared, fleet, journal, rounds=settings, redistill=redistil)
        run_rounds(replace(federation, clients=_Deaf(old)))
        after = journal.rounds()
    assert [without_time(r) for r in after[:3]] == [without_time(r) for r in before]
    assert [r["counted"] for r in after[3:]] == [[], []]


class _Deaf:
    """Clients that answer whatever they are asked with what was said before."""

    def __init__(self, old: dict[str, list[bytes]]) -> None:
        self._old = old

    def ask(self, tasks: Mapping[str, bytes], *_: object) -> Iterator[tuple[str, bytes | FedgeError]]:
        for client in tasks:
            self._old[client].append(said := self._old[client].pop(0))
            yield client, said


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("federation") / "home"
    live.provisioned(folder, ("a", "b", "gone"), live.free_port())
    return folder


@pytest.mark.full
def test_answers_to_no_task_are_acknowledged_and_go_nowhere(home: Path, wide: bool) -> None:
    """Old and invented task ids, on one connection and on the next, from a gateway that was started anew."""
    for _ in range(2):
        with Running(home) as server:
            bundle = home / "devices" / "a"
            end = DeviceEnd(device.identity_of(Enrolment.load(bundle), bundle), DeviceDesk(), 1 << 20)
            wire = Wire(tls.device_context(bundle), "127.0.0.1", server.port)
            wire.start()
            with socket.create_connection(("127.0.0.1", server.port), timeout=20) as plug:
                events: list[object] = []
                while not any(isinstance(e, Opened) for e in events):
                    events += _step(plug, wire, end)
                for number in range(5_000 if wide else 250):
                    told = announce(number.to_bytes(16, "big"), b"forged")
                    wire.send(encode(AnswerPart(told, 0, b"forged")))
                    end._desk.answer = told, b"forged"
                    while end._desk.answer is not None:  # until it hears what became of it
                        assert all(
                            e.outcome is Outcome.UNWANTED
                            for e in _step(plug, wire, end)
                            if isinstance(e, Settled)
                        )
            assert not server.upstream.answers


def _step(plug: socket.socket, wire: Wire, end: DeviceEnd) -> list[object]:
    while wire.open and end._control and (message := end.next_message()) is not None:
        wire.send(message)
    plug.sendall(wire.outgoing())
    events: list[object] = []
    for message in wire.receive(plug.recv(65_536)):
        events += end.receive(message)
    return events


def _said(plug: ssl.SSLSocket, request: bytes) -> bytes:
    """What a door says to a request; nothing if it hangs up."""
    try:
        plug.sendall(request)
        return plug.recv(4096)
    except OSError:
        return b""
    finally:
        plug.close()


def _flood(plug: ssl.SSLSocket, head: bytes, size: int) -> int:
    """Send a head and ``size`` bytes, or as many as are taken; gives how many."""
    sent, block = 0, bytes(1 << 20)
    with contextlib.suppress(OSError), plug:
        plug.settimeout(3.0)
        plug.sendall(head)
        while sent < size:
            plug.sendall(block)
            sent += len(block)
    return sent


@pytest.mark.full
def test_from_outside_nothing_is_reached_and_little_is_spent(tmp_path: Path, wide: bool) -> None:
    """Every path of Flower's API at both doors of a real server, then bodies and frames without an end."""
    from flwr.superlink.main import create_app

    port, door, home, state = live.free_port(), live.free_port(), tmp_path / "home", tmp_path / "state"
    live.provisioned(home, ("a", "gone"), port)
    with (
        live.plain_server(home, state, tmp_path / "log", "--door", str(door)) as server,
        Lab(home / "devices" / "a", tmp_path / "a", port, work=answer, host="localhost"),
    ):
        live.until(lambda: committed(state))
        gateway = server.child("fedge.deploy.gateway_process")
        paths = sorted(
            {*create_app().openapi()["paths"], "/", "/docs", "/metrics", "/v1/fleet/../control/list-runs"}
        )
        assert len(paths) > 20
        for path in paths:
            request = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".encode()
            for name in (None, "a"):  # the link's port: hangs up on strangers, and has one path for devices
                assert _status(home, name, port, request) in (b"", b"404", b"400", b"405"), path
            fleet = path.startswith("/v1/fleet/") and ".." not in path
            assert _status(home, None, door, request) in ((b"401", b"404") if fleet else (b"404",)), path
        with contextlib.suppress(OSError):
            assert _flood(plain_client(home, None, door), b"", 0) == 0
        before, size = live.memory(gateway), (1 << 30) if wide else (16 << 20)
        for at in (port, door):
            for path in ("/link", "/v1/fleet/push-object"):
                head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {1 << 30}\r\n\r\n".encode()
                with contextlib.suppress(OSError):
                    _flood(plain_client(home, None, at), head, size)
        frame = b"\x82\xff" + (1 << 40).to_bytes(8, "big") + bytes(4)  # a binary message of a terabyte
        upgrade = (
            b"GET /link HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
        )
        for name in (None, "a"):
            with contextlib.suppress(OSError):
                _flood(plain_client(home, name, port), upgrade + frame, size)
        grown = live.memory(gateway, "VmHWM") - before
        print({"gateway MB": before / 1e6, "grew MB": grown / 1e6, "paths": len(paths)})  # noqa: T201
        assert grown < MORE
        after = len(committed(state))
        live.until(lambda: len(committed(state)) > after)  # and the rounds go on
        assert server.child("fedge.deploy.gateway_process") == gateway
        enrol.revoke(home, ["a"])
        live.until(lambda: "revoked" in server.said())
    assert "Traceback" not in server.said()


def _status(home: Path, name: str | None, port: int, request: bytes) -> bytes:
    """The status of an answer, as it stands there; empty where the door hangs up."""
    try:
        line = _said(plain_client(home, name, port), request).split(b" ")
    except OSError:
        return b""
    return line[1] if len(line) > 1 else b""
