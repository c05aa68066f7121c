"""Three tiers on one machine: a server, edge servers below it, devices below those."""

import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from federated.build import config_for

from deploy import live_federation as live
from fedge import cli
from fedge.deploy import enrol, own_keys
from fedge.deploy.deadlines import for_deployment, for_edge
from fedge.deploy.federation import Enrolment, Federation, bundle_files
from fedge.errors import PayloadError
from fedge.federated.client_state import ClientState
from fedge.federated.file_store import FileStore
from fedge.federated.journal import Journal
from fedge.federated.state import FederationState

EDGES = {"edge-1": ["a1", "b1"], "edge-2": ["a2", "b2"]}


def _edge_home(folder: Path, name: str, above: Path, port: int) -> Path:
    """An edge server's federation, provisioned from its bundle above."""
    devices = [enrol.Device(device, days=30) for device in EDGES[name]]
    bundle = bundle_files(above / "devices" / f"{name}.fedge")
    enrol.create(folder, name, ("localhost", "127.0.0.1"), port, devices, time.time(), 30, bundle)
    return folder


def test_an_edge_server_belongs_to_the_federation_above_and_its_devices_believe_those_releases(
    tmp_path: Path,
) -> None:
    made = live.provisioned(tmp_path / "top", list(EDGES), 1000)
    home = _edge_home(tmp_path / "edge", "edge-1", tmp_path / "top", 1001)
    assert Federation.load(home).id == made.id
    assert not (home / "offline").exists()
    assert not list((home / "server" / "releases").glob("*.key"))
    enrol.add(home, [enrol.Device("later", days=30)], time.time())
    above = Enrolment.load(tmp_path / "top" / "devices" / "edge-1")
    for device in ("a1", "later"):
        assert Enrolment.load(home / "devices" / device).root() == above.root()
    below = _edge_home(tmp_path / "fourth", "edge-1", tmp_path / "top", 1002)
    assert Federation.load(below).id == made.id  # tiers can be stacked


def test_a_bundle_without_its_keys_cannot_become_an_edge_server(tmp_path: Path) -> None:
    live.provisioned(tmp_path / "top", ["x"], 1000)
    own_keys.make_request("edge-1", tmp_path / "own")
    enrol.sign(tmp_path / "top", (tmp_path / "own" / own_keys.REQUEST).read_bytes(), [], time.time(), 30)
    with pytest.raises(PayloadError, match=r"no client.key and no signing.key"):
        _edge_home(tmp_path / "edge", "edge-1", tmp_path / "top", 1001)
    assert not (tmp_path / "edge").exists()


@pytest.mark.parametrize(
    ("home", "more", "words"),
    [
        ("top", ["--parent", "localhost:1"], "was not made for an edge server"),
        ("edge", ["--parent", "localhost"], "is not host:port"),
        ("edge", ["--rounds", "3"], "--rounds is the parent's affair"),
        ("edge", ["--data", "x.npz"], "--data is the parent's affair"),
    ],
)
def test_what_an_edge_server_cannot_use_is_refused_before_anything_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], home: str, more: list[str], words: str
) -> None:
    live.provisioned(tmp_path / "top", list(EDGES), 1000)
    _edge_home(tmp_path / "edge", "edge-1", tmp_path / "top", 1001)
    state = tmp_path / "state"
    line = ["server", "--federation", str(tmp_path / home), "--state", str(state), *more]
    assert cli.main(line) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert words in error
    assert not state.exists()


def test_the_deadline_of_an_edge_server_is_shorter_than_that_of_the_server_above(fleet_file: Path) -> None:
    config = config_for(fleet_file)
    assert 0 < for_edge(config).rounds.deadline_seconds < for_deployment(config).rounds.deadline_seconds
    own = config_for(fleet_file, rounds__deadline_seconds=7.0)
    assert for_edge(own).rounds.deadline_seconds == 7


def _held(state: Path) -> bytes:
    """The name of the weights that a device holds."""
    with FileStore(state / "client.state") as store:
        return ClientState.load(store).lineage


@pytest.mark.full
def test_all_tiers_hold_the_same_weights_whoever_is_killed(
    tmp_path: Path, fleet_file: Path, wide: bool
) -> None:
    """Each edge server's whole process tree in the middle of the rounds; in full the server's, too."""
    rounds, port = (12, live.free_port()) if wide else (4, live.free_port())
    live.provisioned(tmp_path / "top", list(EDGES), port)
    devices = [device for members in EDGES.values() for device in members]
    files = dict(zip(devices, live.split(fleet_file, tmp_path / "files", devices), strict=True))
    settings = {"release__every": 2, "rounds__least": 2, "rounds__pause_seconds": 0.5}

    def top() -> live.Process:
        return live.server(
            tmp_path / "top", tmp_path / "s0", tmp_path / "s0.log", fleet_file, rounds, **settings
        )

    def edge(name: str) -> live.Process:
        line = ["-m", "fedge", "server", "--federation", str(tmp_path / name), "--status-port", "0"]
        line += ["--state", str(tmp_path / f"state-{name}"), "--host", "127.0.0.1"]
        line += ["--parent", f"localhost:{port}", "--set", "rounds.gather_seconds=60"]
        return live.Process(line, tmp_path / f"{name}.log")

    with ExitStack() as stack:
        for name, members in EDGES.items():
            home = _edge_home(tmp_path / name, name, tmp_path / "top", live.free_port())
            for device in members:
                own = tmp_path / f"state-{device}"
                log = tmp_path / f"{device}.log"
                stack.enter_context(live.client(home, device, files[device], own, log))
        above = stack.enter_context(top())
        for number, name in enumerate(EDGES, 1):
            running = stack.enter_context(edge(name))
            above.hears("round 1/", 1) if number == 2 else running.hears("ready")
        for name in EDGES:
            journal = tmp_path / f"state-{name}" / "status.json"
            live.until(journal.exists, why=running.said()[-2000:])
        running.kill()  # the second edge server: the round waits for it
        stack.enter_context(edge("edge-2"))
        if wide:
            above.hears(f"round {rounds // 2}/")
            above.kill()
            above = stack.enter_context(top())
        assert above.ends(300) == 0, above.said()[-3000:]
        live.until(lambda: all((tmp_path / f"state-{d}" / "model" / "state.json").exists() for d in devices))
    with Journal(tmp_path / "s0" / "journal.sqlite") as journal_above:
        told = [r["counted"] for r in journal_above.rounds()]
        saved = journal_above.state()
    assert told == [sorted(EDGES)] * rounds
    assert saved is not None
    names = {record.lineage for record in FederationState.from_bytes(saved).clients.values()}
    assert len(names) == 1
    assert {_held(tmp_path / f"state-{device}") for device in devices} == names
