"""A federation's life through real processes: killed, gone on with, stopped, and refused in plain words."""

import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from federated.build import (
    FAST,
    MemoryStore,
    Recorder,
    config_for,
    federation_of,
    fleet_of,
    is_training,
    same_weights,
)

from deploy import live_federation as live
from deploy.link_lab import Lab
from fedge import cli, plugins
from fedge.config import config_from, config_text, load_config
from fedge.deploy.deadlines import for_deployment
from fedge.deploy.device_work import DataSource, Round
from fedge.deploy.federation import Enrolment
from fedge.deploy.federation import Federation as Provisioned
from fedge.deploy.own_data import read_data, server_data
from fedge.deploy.registry import Registry
from fedge.deploy.state_directory import bind, locked
from fedge.errors import FedgeError, SetupError
from fedge.federated.federation import Federation, NotYetError
from fedge.federated.journal import Journal
from fedge.federated.prepare import Prepared, unpack_prepared
from fedge.federated.server import run_rounds
from fedge.federated.state import FederationState
from fedge.federated.unsound import UnsoundError
from fedge.simulation.world import World

NAMES = ("a", "b", "c")
ROUNDS = 3
SETTINGS = {"rounds__least": 3, "local__epochs": 20, "rounds__pause_seconds": 0.2}


@dataclass
class InProcess:
    """The same devices in this process, asked one after the other."""

    devices: Mapping[str, Round]

    def ask(self, tasks: Mapping[str, bytes], *_: object) -> Iterator[tuple[str, bytes | FedgeError]]:
        for client, frame in tasks.items():
            try:
                yield client, self.devices[client](frame)
            except FedgeError as error:
                yield client, error


@dataclass
class Life:
    """A federation and where its things are."""

    root: Path
    data: Path
    port: int = field(default_factory=live.free_port)

    def __post_init__(self) -> None:
        live.provisioned(self.home, NAMES, self.port)
        self.parts = live.split(self.data, self.root / "data", NAMES)

    @property
    def home(self) -> Path:
        return self.root / "federation"

    @property
    def state(self) -> Path:
        return self.root / "state"

    def server(self, rounds: int = ROUNDS, log: str = "server.log", **settings: Any) -> live.Process:
        given = SETTINGS | settings
        return live.server(self.home, self.state, self.root / log, self.data, rounds, **given)

    def clients(self, all_of_them: ExitStack, processes: int) -> None:
        """Devices: so many as processes, the rest in threads of this one."""
        for number, (name, part) in enumerate(zip(NAMES, self.parts, strict=True)):
            state = self.root / name
            if number < processes:
                log = self.root / f"{name}.log"
                all_of_them.enter_context(live.client(self.home, name, part, state, log))
            else:
                bundle, work = self.home / "devices" / name, self.round(name, part)
                all_of_them.enter_context(Lab(bundle, state, self.port, work=work, host="localhost"))

    def round(self, name: str, part: Path) -> Round:
        """A device's rounds, as in its process."""
        enrolment = Enrolment.load(self.home / "devices" / name)
        key, models = enrolment.signing_key(), self.root / "models" / name
        return Round(enrolment, key, DataSource(part), MemoryStore(), models, 0.01)

    def unkilled(self) -> FederationState:
        """The same rounds in this process, from the same student, with nothing killed."""
        with Journal(self.state / "journal.sqlite") as journal:
            config, saved = config_from(journal.meta("config")), journal.stage("prepared")
        assert saved is not None
        task = plugins.load("task", config.task).TASK
        prepared = unpack_prepared(saved, config, task, server_data(config, read_data(config, task)))
        registry = Registry.load(self.home / "server" / "registry.json")
        devices = {name: self.round(name, part) for name, part in zip(NAMES, self.parts, strict=True)}
        with Journal(self.root / "unkilled.sqlite") as journal:
            return run_rounds(
                Federation(
                    config=config,
                    task=task,
                    prepared=prepared,
                    clients=InProcess(devices),
                    enrolled={m.name: m.signing for m in registry.members.values()},
                    publisher=None,
                    journal=journal,
                    observer=Recorder(),
                    score=lambda _weights: {},
                )
            )


@pytest.mark.full
def test_a_server_killed_in_a_round_goes_on_and_ends_where_it_would_have_ended(
    tmp_path: Path, fleet_file: Path, wide: bool
) -> None:
    """Three devices (processes, in full); the server's whole tree is killed; no round is lost or repeated."""
    life = Life(tmp_path, fleet_file)
    with ExitStack() as devices:
        with life.server() as server:
            life.clients(devices, len(NAMES) if wide else 1)
            server.hears(f"round 1/{ROUNDS}")
        for again in range(3 if wide else 0):
            with life.server() as server:  # and killed again wherever it is after so many seconds
                server.hears("ready: devices can connect", 2 + again)
        with life.server() as server:
            server.hears("all rounds are done")
            assert server.ends() == 0
    rounds = live.records(life.state)
    assert [r["round"] for r in rounds] == list(range(1, ROUNDS + 1))
    assert all(r["counted"] == list(NAMES) and not r["refused"] for r in rounds)
    release = rounds[-1]["release"]
    assert [d["client"] for d in release["decisions"]] == list(NAMES)
    assert all(d["taken"] for d in release["decisions"]), release
    assert (life.state / release["path"]).exists()
    with Journal(life.state / "journal.sqlite") as journal:
        ended = FederationState.from_bytes(journal.state() or b"")
    assert same_weights(ended.weights, life.unkilled().weights)
    assert "Traceback" not in server.said()


@pytest.mark.full
def test_sigterm_ends_a_server_and_a_wrong_second_start_is_told_in_one_line(
    tmp_path: Path, fleet_file: Path, wide: bool
) -> None:
    if not wide:
        pytest.skip("test_outages ends a whole server with SIGTERM; what is refused is tried in this process")
    life = Life(tmp_path, fleet_file)
    with life.server(1000) as server:
        server.hears("ready: devices can connect")
        live.until(lambda: (life.state / "journal.sqlite").exists())
        assert server.terminate() == 0
    _refused(life.server(999, "settings.log"), "belongs to other settings (rounds.rounds was")
    home, other = life.home, tmp_path / "other"
    live.provisioned(other, NAMES, life.port)
    shutil.move(home, tmp_path / "kept")
    shutil.move(other, home)
    _refused(life.server(1000, "federation.log"), "belongs to another federation")
    shutil.rmtree(home)
    shutil.move(tmp_path / "kept", home)
    live.set_version(life.state / "journal.sqlite", 99)
    _refused(life.server(1000, "newer.log"), "was written by a newer fedge")


def _refused(server: live.Process, words: str) -> None:
    with server:
        assert server.ends() == 2, server.said()
    lines = [line for line in server.said().splitlines() if line.startswith("fedge: error:")]
    assert len(lines) == 1, server.said()
    assert words in lines[0]
    assert "Traceback" not in server.said()


def test_what_a_server_cannot_use_is_found_before_anything_is_started(
    tmp_path: Path, fleet_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, port = tmp_path / "home", live.free_port()
    live.provisioned(home, NAMES, port)
    (tmp_path / "file").write_text("")
    right = {"--federation": home, "--state": tmp_path / "state", "--data": fleet_file}
    wrong: list[tuple[dict[str, object], str]] = [
        ({"--federation": tmp_path / "nowhere"}, "nowhere"),
        ({"--federation": home / "devices" / "a"}, "federation"),
        ({"--data": tmp_path / "nothing.npz"}, "nothing.npz"),
        ({"--state": tmp_path / "file" / "state"}, "state"),
        ({"--state": "/proc/state"}, "/proc/state"),
    ]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        wrong.append(({"--port": taken.getsockname()[1]}, "Address already in use"))
        for changed, words in wrong:
            line = ["server", "--host", "127.0.0.1", "--status-port", "0"]
            line += [str(w) for pair in (right | changed).items() for w in pair]
            assert cli.main(line) == 2, changed
            said = capsys.readouterr().err.strip().splitlines()
            assert len(said) == 1, said
            assert said[0].startswith("fedge: error:")
            assert words in said[0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"--rounds": "5"}, "belongs to other settings (rounds.rounds was"),
        ({"--federation": "other"}, "belongs to another federation"),
        ({"--state": "newer"}, "was written by a newer fedge"),
        ({"--state": "none"}, "is not a journal of fedge"),
        ({"--state": "taken"}, "another server runs on"),
    ],
)
def test_a_state_directory_that_does_not_fit_is_refused_before_anything_is_started(
    tmp_path: Path, fleet_file: Path, capsys: pytest.CaptureFixture[str], given: dict[str, str], words: str
) -> None:
    """By the command itself, although the port is taken; the right one comes as far as the port."""
    for name in ("home", "other"):
        live.provisioned(tmp_path / name, NAMES, live.free_port())
    config = for_deployment(load_config(None, {"data.source": str(fleet_file), "rounds.rounds": 4}))
    for state in ("state", "newer", "taken", "none"):
        (tmp_path / state).mkdir()
        with Journal(tmp_path / state / "journal.sqlite") as journal:
            bind(journal, config, Provisioned.load(tmp_path / "home" / "server").id)
    live.set_version(tmp_path / "newer" / "journal.sqlite", 99)
    (tmp_path / "none" / "journal.sqlite").write_bytes(b"no database" * 100)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}

    def said(changed: dict[str, str], port: int) -> str:
        places = {"--federation": "home", "--state": "state", "--rounds": "4"} | changed
        line = ["server", "--data", str(fleet_file), "--host", "127.0.0.1", "--status-port", "0"]
        for key, value in places.items():
            line += [key, value if value.isdigit() else str(tmp_path / value)]
        assert cli.main([*line, "--port", str(port)]) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert error.startswith("fedge: error: ")
        return error

    with socket.create_server(("127.0.0.1", 0)) as taken, locked(tmp_path / "taken"):
        port = int(taken.getsockname()[1])
        assert "Address already in use" in said({}, port)
        assert words in said(given, port)
    left = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != "lock"}
    assert left.keys() == before.keys()
    others = [p for p in before if p.name != "journal.sqlite" or p.parent.name in ("newer", "none")]
    assert all(left[p] == before[p] for p in others)


def test_a_journal_of_others_or_of_the_future_is_left_alone(tmp_path: Path, fleet_file: Path) -> None:
    path, config = tmp_path / "journal.sqlite", config_for(fleet_file)
    with Journal(path) as journal:
        bind(journal, config, "1" * 32)
        bind(journal, config, "1" * 32)
        with pytest.raises(SetupError, match="another federation"):
            bind(journal, config, "2" * 32)
        with pytest.raises(SetupError, match="other settings"):
            bind(journal, config_for(fleet_file, rounds__rounds=FAST["rounds.rounds"] + 1), "1" * 32)
        assert journal.meta("config") == config_text(config)
    live.set_version(path, 99)
    before = path.read_bytes()
    with pytest.raises(SetupError, match="newer fedge"):
        Journal(path)
    assert path.read_bytes() == before


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.sqlite") as opened:
        yield opened


def test_a_client_that_is_revoked_while_it_works_is_refused_and_nothing_else_happens(
    small_world: World, small_prepared: Prepared, journal: Journal
) -> None:
    fleet = fleet_of(small_world)
    gone, *others = sorted(fleet.devices)
    federation, watcher = federation_of(small_world, small_prepared, fleet, journal)
    enrolled = dict(federation.enrolled)
    object.__setattr__(federation, "enrolled", enrolled)

    def revoke(_task: bytes, answer: bytes) -> bytes:
        enrolled.pop(gone, None)
        return answer

    fleet.tamper[gone] = revoke
    state = run_rounds(federation)
    assert state.round == federation.config.rounds.rounds
    assert journal.rounds()[0]["counted"] == others
    assert "is not enrolled any more" in watcher.of("refused")[0]["reason"]


def test_a_client_that_the_gateway_accuses_is_barred_and_one_that_only_stays_away_is_not(
    small_world: World, small_prepared: Prepared, journal: Journal
) -> None:
    fleet = fleet_of(small_world)
    accused, absent, *others = sorted(fleet.devices)
    rounds = replace(small_world.config.rounds, rounds=4, offences=2, barred_rounds=100)
    federation, _ = federation_of(small_world, small_prepared, fleet, journal, rounds=rounds)
    fleet.tamper[accused] = lambda task, answer: (
        UnsoundError("keeps back an answer") if is_training(task) else answer
    )
    fleet.tamper[absent] = lambda task, answer: NotYetError("none") if is_training(task) else answer
    state = run_rounds(federation)
    assert [accused in r["refused"] for r in journal.rounds()] == [True, True, False, False]
    assert all(absent in r["refused"] for r in journal.rounds())
    assert {c for c, record in state.clients.items() if record.barred} == {accused}
    assert state.clients[absent].offences == 0
    assert all(set(others) <= set(r["counted"]) for r in journal.rounds())
    assert state.clients[accused].version is not None  # it was not lost: it need not be welcomed again


def test_a_device_that_is_added_while_nobody_is_there_is_asked_at_once(
    small_world: World, small_prepared: Prepared, journal: Journal
) -> None:
    """The first look finds nobody, and no record of whoever is enrolled while it looks again."""
    fleet = fleet_of(small_world)
    federation, _ = federation_of(small_world, small_prepared, fleet, journal)
    everyone, enrolled = dict(federation.enrolled), dict[str, bytes]()

    def look() -> list[str]:
        there = sorted(enrolled)
        enrolled.update(everyone)
        return there

    object.__setattr__(federation, "enrolled", enrolled)
    object.__setattr__(federation, "present", look)
    assert run_rounds(federation).round == federation.config.rounds.rounds
    assert all(r["counted"] == sorted(everyone) for r in journal.rounds())


def test_a_device_that_is_added_in_the_last_round_waits_for_the_next(
    small_world: World, small_prepared: Prepared, journal: Journal
) -> None:
    fleet = fleet_of(small_world)
    federation, _ = federation_of(small_world, small_prepared, fleet, journal)
    late, *others = sorted(federation.enrolled)
    key, enrolled = federation.enrolled[late], {c: federation.enrolled[c] for c in others}
    object.__setattr__(federation, "enrolled", enrolled)
    last, asked = federation.config.rounds.rounds, iter(range(10**6))

    def enrol(_task: bytes, answer: bytes) -> bytes:
        if next(asked) >= last:  # a welcome, and a task in each round
            enrolled[late] = key
        return answer

    fleet.tamper[others[0]] = enrol
    assert run_rounds(federation).round == last
    assert late not in {c for r in journal.rounds() for c in r["counted"]}
