"""Kill -9 of a client at any moment: no update is lost, none is counted twice, to the last bit."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from federated.build import Fleet, MemoryStore, Recorder, federation_of, fleet_of, same_weights, trained_of
from flwr.app import Message

from fedge import plugins
from fedge.durable import unfinished
from fedge.errors import FedgeError
from fedge.federated.client_state import ClientState, Residual
from fedge.federated.coding import Weights, build_codec, limits
from fedge.federated.file_store import read_state
from fedge.federated.frames import Train, decode_task
from fedge.federated.journal import Journal
from fedge.federated.prepare import Prepared
from fedge.federated.server import Clients, run_rounds
from fedge.federated.state import FederationState
from fedge.federated.strategy import learning_rate
from fedge.federated.training import fine_tune
from fedge.flower.grid_clients import GridClients
from fedge.flower.messages import frame_of
from fedge.seeding import derive
from fedge.simulation.directory import DirectoryGrid
from fedge.simulation.world import World
from simulation.nursery import FIRST_NODE, POINTS, Places

PATIENCE = 120.0
"""Seconds after which a process that should have died or answered fails the test."""

LATE, TOO_LATE, ABSENT = "late", "too late", "absent"
PHASES = {"not saved", "being saved", "saved", "being answered", "answered"}


@dataclass(frozen=True)
class Kill:
    """One message to the victim, over which it is killed once or more.

    Attributes:
        at: an operation on a file, ``"answered"``, or seconds after the task was handed over; one a kill.
        then: ``late``: started again, its answer counts. ``too late``: started again, it answers, but is
            given up before the answer is taken. ``absent``: given up, and only then started again.
    """

    at: tuple[str | float, ...]
    then: str


def plan_kills(seed: int, count: int) -> list[Kill]:
    """``count`` kills: half of them at chosen operations, half at any time."""
    rng, kills, ends = random.Random(seed), list[Kill](), [LATE, TOO_LATE, LATE, ABSENT]
    points = ["rename", "send", "flush", "answered", "save", "answer", "task"]
    assert set(points) == {*POINTS, "answered"}
    while (left := count - sum(len(k.at) for k in kills)) > 0:
        then = ends[(len(kills) + seed) % len(ends)]
        anywhere = rng.expovariate(1 / 0.05)
        first = points[(len(kills) // 2 + 3 * seed) % len(points)] if len(kills) % 2 else anywhere
        again = (rng.uniform(0, 0.1),) if left > 1 and rng.random() < 0.2 else ()
        kills.append(Kill((first, *again), then))
    return kills


# ----- processes


class Nursery:
    """Starts client processes and says how they ended."""

    def __init__(self, data: Path) -> None:
        tests = Path(__file__).parents[1]
        paths = [str(tests.parent), str(tests), os.environ.get("PYTHONPATH", "")]
        command = [sys.executable, "-m", "simulation.nursery", str(data)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True, bufsize=1
        )

    def start(self, places: Places) -> int:
        return int(self._ask(f"start {places.node} {places.folder}"))

    def over(self, pid: int) -> bool:
        return self._ask(f"over {pid}") == "1"

    def kill(self, pid: int) -> None:
        assert self._ask(f"kill {pid}") == str(-signal.SIGKILL), "it ended by itself"

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.communicate(timeout=PATIENCE)


@pytest.fixture(scope="module")
def nursery(fleet_file: Path) -> Iterator[Nursery]:
    nursery = Nursery(fleet_file)
    yield nursery
    nursery.close()


def _until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what}: not in {PATIENCE:g} s"
        time.sleep(0.002)


class KillingGrid(DirectoryGrid):
    """Kills the victim over the messages that are sent to it, and starts it again.

    Attributes:
        killed: in which phases, by what its files say after its death.
        ends: what became of the victim's answer, by round; not of those for which it had no state yet.
    """

    def __init__(
        self, folder: Path, nodes: int, nursery: Nursery, victim: int, kills: Iterable[Kill]
    ) -> None:
        super().__init__(folder / "grid", nodes)
        self._nursery, self._kills = nursery, iter(kills)
        self._victim = Places(folder, victim)
        self._victim.armed.mkdir(parents=True)
        self.killed, self.ends = Counter[str](), dict[int, str]()
        others = [Places(folder, n) for n in self.get_node_ids() if n != victim]
        self._others = [nursery.start(p) for p in others]
        self._pid = nursery.start(self._victim)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        kept = list(messages)
        mine = [i for i, m in enumerate(kept) if self._is_hit(m)]
        kill = next(self._kills, None) if mine else None
        before = read_state(self._victim.state)
        if kill is not None and kill.at[0] in POINTS:
            (self._victim.armed / str(kill.at[0])).touch()
        ids = list(super().push_messages(kept))
        if kill is not None:
            self._strike(kill, self._victim.answers / ids[mine[0]], before)
            task = decode_task(frame_of(kept[mine[0]]))
            if isinstance(task, Train) and before is not None:
                self.ends[task.round] = kill.then
        return ids

    def _is_hit(self, message: Message) -> bool:
        meta = message.metadata
        return meta.dst_node_id == self._victim.node and meta.message_type == "train"

    def _strike(self, kill: Kill, answer: Path, before: bytes | None) -> None:
        for number, at in enumerate(kill.at):
            if number:
                self._pid = self._nursery.start(self._victim)
            self._kill(at, answer)
            self.killed[self._phase(answer, before)] += 1
        if kill.then == ABSENT:
            self.give_up(self._victim.node)
        self._pid = self._nursery.start(self._victim)
        if kill.then == TOO_LATE:
            _until(answer.exists, "the victim's answer")
            self.give_up(self._victim.node)

    def _kill(self, at: str | float, answer: Path) -> None:
        if isinstance(at, float):
            time.sleep(at)
        else:  # at "answered", and where it saves nothing (it was never welcomed), the answer is there first
            _until(lambda: answer.exists() or self._nursery.over(self._pid), f"its death at {at!r}")
        for armed in self._victim.armed.iterdir():
            armed.unlink()
        self._nursery.kill(self._pid)

    def _phase(self, answer: Path, before: bytes | None) -> str:
        if answer.exists():
            return "answered"
        if unfinished(answer).exists():
            return "being answered"
        if read_state(self._victim.state) != before:
            return "saved"
        return "being saved" if unfinished(self._victim.state).exists() else "not saved"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in (self._pid, *self._others):
            self._nursery.kill(pid)


# ----- runs


Read = Callable[[str], bytes | None]


@dataclass
class Watched:
    """``Clients`` whose updates are kept, by round and client: payload, and the weights trained on.

    After a long absence a client's weights are not quite the others'.
    """

    clients: Clients
    read: Read
    payloads: dict[tuple[int, str], bytes] = field(default_factory=dict)
    held: dict[tuple[int, str], Weights] = field(default_factory=dict)

    def ask(self, tasks: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | FedgeError]]:
        training = {c: t for c, frame in tasks.items() if isinstance(t := decode_task(frame), Train)}
        for client, answer in self.clients.ask(tasks):
            if client in training and isinstance(answer, bytes):
                content = self.read(client)
                assert content is not None
                key = training[client].round, client
                self.payloads[key], self.held[key] = trained_of(answer).payload, _state(content).weights
            yield client, answer


@dataclass
class Withholding(Fleet):
    """Real client rounds in this process; no update that is not in ``counted`` reaches the server.

    Attributes:
        counted: whose updates, by round.
        asked: whether those clients get the task, and only their answer is lost.
    """

    counted: Mapping[int, set[str]] = field(default_factory=dict)
    asked: bool = False

    def ask(self, tasks: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | FedgeError]]:
        kept = dict(tasks)
        for client, frame in tasks.items():
            task = decode_task(frame)
            if isinstance(task, Train) and client not in self.counted.get(task.round, tasks):
                del kept[client]
                if self.asked:
                    self._answer(client, frame)
                yield client, FedgeError("late or absent")
        yield from super().ask(kept)


@dataclass
class Ran:
    """What a run left, round by round: the state after it, whose updates counted, everyone's residual."""

    states: list[FederationState] = field(default_factory=list)
    counted: dict[int, set[str]] = field(default_factory=dict)
    residuals: list[dict[str, Residual]] = field(default_factory=list)
    payloads: Mapping[tuple[int, str], bytes] = field(default_factory=dict)
    held: Mapping[tuple[int, str], Weights] = field(default_factory=dict)


def run(world: World, prepared: Prepared, clients: Clients, read: Read, path: Path, rounds: int) -> Ran:
    """A federation over ``clients``, whose states ``read`` finds."""
    watched = Watched(clients, read)
    ran = Ran(payloads=watched.payloads, held=watched.held)
    config = {
        "rounds": replace(world.config.rounds, rounds=rounds),
        "redistill": replace(world.config.redistill, every=3),
    }
    with Journal(path) as journal:

        def look(kind: str, _fields: Mapping[str, object]) -> None:
            content = journal.state() if kind == "round" else None
            if content is not None:
                ran.states.append(state := FederationState.from_bytes(content))
                counted = {c: r.counted for c, r in state.clients.items()}
                ran.residuals.append({c: _residual(prepared, read(c), n) for c, n in counted.items()})

        federation, _ = federation_of(world, prepared, watched, journal, **config)  # type: ignore[arg-type]
        run_rounds(replace(federation, observer=Recorder(look)))
        ran.counted = {r["round"]: set(r["counted"]) for r in journal.rounds()}
    return ran


def _residual(prepared: Prepared, content: bytes | None, counted: int) -> Residual:
    """What a client will carry over, now that ``counted`` is the last round that counted."""
    if content is None:
        return build_codec(prepared.plan.uplink).init(prepared.support.shapes())
    state = _state(content)
    pending = state.pending
    return pending.residual if pending is not None and pending.round == counted else state.residual


def _state(content: bytes) -> ClientState:
    return ClientState.load(MemoryStore(content))


def killed_run(
    world: World, prepared: Prepared, nursery: Nursery, folder: Path, victim: int, kills: list[Kill]
) -> tuple[Ran, KillingGrid]:
    """As many rounds as there are kills, less the welcome and the last delivery; a process a client."""
    clients = world.roles.participants
    nodes = {c: Places(folder, n) for n, c in enumerate(clients, FIRST_NODE)}
    with KillingGrid(folder, len(clients), nursery, FIRST_NODE + victim, kills) as grid:
        carrier = GridClients(grid, lambda _s: time.sleep(0.002))
        rounds = max(1, len(kills) - 2)
        ran = run(world, prepared, carrier, lambda c: read_state(nodes[c].state), folder / "j", rounds)
    return ran, grid


# ----- laws


def _same(a: Ran, b: Ran) -> None:
    assert a.counted == b.counted
    for one, other in zip(a.states, b.states, strict=True):
        assert same_weights(one.weights, other.weights), one.round
    for mine, theirs in zip(a.residuals, b.residuals, strict=True):
        assert [c for c in mine if not same_weights(mine[c], theirs[c])] == []
    for number, counted in a.counted.items():
        assert [c for c in counted if not same_weights(a.held[number, c], b.held[number, c])] == []


def _change(world: World, prepared: Prepared, client: str, weights: Weights, number: int, rate: float) -> Any:
    """What fine-tuning changes in the live weights, computed apart from the round."""
    device = world.device(world.roles.participants.index(client), MemoryStore())
    plan, train = prepared.plan, device.data.train
    data = torch.from_numpy(plan.preprocess.apply(train.x)), torch.from_numpy(train.y)
    seed, task = derive(device.seed, "local", number), plugins.load("task", plan.task).TASK
    tuned, _ = fine_tune(plan, task, weights, prepared.support, data, rate, seed)
    return _flat(prepared.support.gather({n: tuned[n] - weights[n] for n in tuned}))


def _flat(arrays: Mapping[str, Any]) -> Any:
    """Float32 vectors one after the other, without what else a codec remembers."""
    return np.concatenate([v for v in arrays.values() if v.dtype == np.float32 and v.ndim == 1])


def _check_law(world: World, prepared: Prepared, ran: Ran, client: str) -> None:
    """Residual after == residual before + change - what the server decodes, if it counted; else untouched."""
    codec, shapes = build_codec(prepared.plan.uplink), prepared.support.shapes()
    before: Residual = codec.init(shapes)
    config = replace(world.config, rounds=replace(world.config.rounds, rounds=len(ran.states)))
    for number in ran.counted:
        after = ran.residuals[number - 1][client]
        if client in ran.counted[number]:
            sent = _flat(codec.decode(ran.payloads[number, client], limits(shapes)))
            weights, rate = ran.held[number, client], learning_rate(config, number)
            change = _change(world, prepared, client, weights, number, rate)
            assert sent.any()
            assert _flat(after).tobytes() == ((_flat(before) + change) - sent).tobytes()
        else:
            assert same_weights(after, before)
        before = after


def test_a_client_killed_at_any_moment_neither_loses_nor_doubles_an_update(
    small_world: World, small_prepared: Prepared, nursery: Nursery, tmp_path: Path, wide: bool
) -> None:
    """The run ends, bit for bit, as one in which the same answers were simply late or absent."""
    clients, killed, ends = small_world.roles.participants, Counter[str](), Counter[str]()
    for seed in range(10 if wide else 2):
        victim, folder = seed % len(clients), tmp_path / f"killed-{seed}"
        kills = plan_kills(seed, 20 if wide else 6)
        ran, grid = killed_run(small_world, small_prepared, nursery, folder, victim, kills)
        assert grid.killed.total() == sum(len(k.at) for k in kills)
        killed += grid.killed
        for number, end in grid.ends.items():
            if number in ran.counted:  # the last delivery comes after the last round
                assert (clients[victim] in ran.counted[number]) == (end == LATE), (number, end)
                ends[end] += 1
        for asked in (False, True):
            fleet = Withholding(fleet_of(small_world).devices, counted=ran.counted, asked=asked)
            path = tmp_path / f"reference-{seed}-{asked}"
            _same(ran, run(small_world, small_prepared, fleet, _stored(fleet), path, len(ran.states)))
        _check_law(small_world, small_prepared, ran, clients[victim])
        _check_law(small_world, small_prepared, ran, clients[victim - 1])
    assert set(killed) == PHASES, killed
    assert set(ends) == {LATE, TOO_LATE, ABSENT}, ends


def _stored(fleet: Fleet) -> Read:
    return lambda client: fleet.store(client).content
