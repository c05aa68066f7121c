"""A small federation to test with: data, settings, clients in this process, and who watches them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedge.config import Config, load_config
from fedge.errors import FedgeError
from fedge.federated.client import Device, client_round
from fedge.federated.frames import Trained, decode_reply, decode_task
from fedge.federated.journal import Journal
from fedge.federated.prepare import Prepared
from fedge.federated.publish import Publisher
from fedge.federated.server import Federation
from fedge.federated.state import FederationState
from fedge.observe import Stage, Tee
from fedge.release.repository import Repository
from fedge.simulation.scoring import Scorer
from fedge.simulation.world import BEGINNING, FOREVER, World

CLIENTS, WINDOWS, TIME, CHANNELS, CLASSES = 8, 40, 32, 3, 3

FAST: dict[str, Any] = {
    "seed": 3,
    "data.judge_share": 0.25,
    "teacher.epochs": 8,
    "teacher.batch": 16,
    "teacher.cache": False,
    "student.size": "tiny",
    "student.epochs": 15,
    "student.tune_epochs": 3,
    "student.batch": 16,
    "rounds.rounds": 4,
    "local.epochs": 1,
    "uplink.share": 0.1,
    "downlink.share": 0.2,
    "redistill.every": 2,
    "redistill.epochs": 1,
    "release.every": 2,
}


def write_fleet(path: Path) -> Path:
    """Eight clients with 40 windows ``[32, 3]`` each: class is a frequency, client an offset and a gain."""
    random = np.random.default_rng(11)
    client, label = np.repeat(np.arange(CLIENTS), WINDOWS), np.tile(np.arange(WINDOWS) % CLASSES, CLIENTS)
    time = np.arange(TIME)[None, :, None]
    phase = random.uniform(0, 2 * np.pi, (len(label), 1, CHANNELS))
    offset, gain = (
        random.normal(0, 1, (CLIENTS, 1, CHANNELS)),
        random.uniform(0.5, 1.5, (CLIENTS, 1, CHANNELS)),
    )
    wave = np.sin(2 * np.pi * (2 + label[:, None, None]) * time / TIME + phase)
    noise = random.normal(0, 0.6, (len(label), TIME, CHANNELS))
    x = (gain[client] * wave + offset[client] + noise).astype(np.float32)
    np.savez(path, X=x, y=label, client=client)
    return path


def config_for(data: Path, **settings: Any) -> Config:
    """The fast settings with some changed; ``section__key`` stands for ``section.key``."""
    changed = {key.replace("__", "."): value for key, value in settings.items()}
    return load_config(None, FAST | {"data.source": str(data)} | changed, name="small")


class MemoryStore:
    """A client's state in memory. ``saves`` counts how often it was written."""

    def __init__(self, content: bytes | None = None) -> None:
        self.content, self.saves = content, 0

    def load(self) -> bytes | None:
        return self.content

    def save(self, content: bytes) -> None:
        self.content = content
        self.saves += 1


class Recorder:
    """Keeps every event; ``stop`` may raise on one."""

    def __init__(self, stop: Callable[[str, Mapping[str, object]], None] = lambda _k, _f: None) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self._stop = stop

    def event(self, kind: str, /, **fields: object) -> None:
        self.events.append((kind, fields))
        self._stop(kind, fields)

    def stage(self, name: str) -> AbstractContextManager[Stage]:
        return Tee(self).stage(name)

    def progress(self, done: float, total: float | None, text: str = "") -> None:
        """Nobody looks."""

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [fields for k, fields in self.events if k == kind]


Tamper = Callable[[bytes, bytes], bytes | FedgeError]
"""``(task, honest answer) -> what the server gets``."""


@dataclass
class Fleet:
    """``Clients`` of the server, in this process: real client rounds on memory stores.

    Attributes:
        devices: by client id.
        tamper: replaces a client's answers, by client id.
        absent: clients that do not answer.
        sent: length of every frame that went out.
        received: length of every frame that came back.
        tasks: every task, by client id, in order.
    """

    devices: dict[str, Device]
    tamper: dict[str, Tamper] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    backwards: bool = False
    sent: list[int] = field(default_factory=list)
    received: list[int] = field(default_factory=list)
    tasks: dict[str, list[bytes]] = field(default_factory=dict)

    def ask(self, tasks: Mapping[str, bytes]) -> Iterator[tuple[str, bytes | FedgeError]]:
        for client, frame in sorted(tasks.items(), reverse=self.backwards):
            self.tasks.setdefault(client, []).append(frame)
            self.sent.append(len(frame))
            answer = self._answer(client, frame)
            if isinstance(answer, bytes):
                self.received.append(len(answer))
            yield client, answer

    def _answer(self, client: str, frame: bytes) -> bytes | FedgeError:
        if client in self.absent:
            return FedgeError("there is nobody")
        try:
            answer = client_round(frame, self.devices[client])
        except FedgeError as error:
            return error
        return self.tamper[client](frame, answer) if client in self.tamper else answer

    def store(self, client: str) -> MemoryStore:
        store = self.devices[client].store
        assert isinstance(store, MemoryStore)
        return store


def fleet_of(world: World) -> Fleet:
    """A device with an empty memory for each participant."""
    return Fleet({c: world.device(i, MemoryStore()) for i, c in enumerate(world.roles.participants)})


def repository_of(world: World, folder: Path) -> Repository:
    """The world's releases, in ``folder``."""
    online = world.release_keys().online
    repository = Repository(folder / "releases", online, clock=lambda: BEGINNING, days=FOREVER)
    repository.start(world.trust())
    return repository


def federation_of(
    world: World,
    prepared: Prepared,
    fleet: Fleet,
    journal: Journal,
    folder: Path | None = None,
    **config: Any,
) -> tuple[Federation, Recorder]:
    """A federation over ``fleet``; releases go to ``folder``, or there are none."""
    watcher = Recorder()
    publisher = None
    if folder is not None:
        data, samples = world.dataset, world.server_data().labelled.x
        publisher = Publisher(repository_of(world, folder), data.classes, data.channels, samples)
    return (
        Federation(
            config=replace(world.config, **config),
            task=world.task,
            prepared=prepared,
            clients=fleet,
            enrolled={c: world.key(c).public for c in world.roles.participants},
            publisher=publisher,
            journal=journal,
            observer=watcher,
            score=Scorer.of(world, prepared.plan),
        ),
        watcher,
    )


def trained_of(answer: bytes) -> Trained:
    """The answer to a training task."""
    reply = decode_reply(answer)
    assert isinstance(reply, Trained)
    return reply


def is_training(task: bytes) -> bool:
    """Whether a task asks for a round of training (or a last download)."""
    return type(decode_task(task)).__name__ == "Train"


def same_weights(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """The same names, shapes and bits."""
    return list(a) == list(b) and all(
        a[n].tobytes() == b[n].tobytes() and a[n].shape == b[n].shape for n in a
    )


def without_time(record: Mapping[str, Any]) -> dict[str, Any]:
    """A journal's record without measured time."""
    return {k: v for k, v in record.items() if k != "seconds"}


def same_state(a: FederationState, b: FederationState) -> bool:
    """The same bytes."""
    return a.to_bytes() == b.to_bytes()
