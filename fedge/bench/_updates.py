"""Updates to measure codecs on: real ones from a short federation, and one of any size made from them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedge.codec import Arrays, Codec
from fedge.config import Config, Link, load_config
from fedge.errors import FedgeError
from fedge.federated.client import Device, client_round
from fedge.federated.coding import build_codec, limits
from fedge.federated.frames import Trained, decode_reply
from fedge.federated.journal import Journal
from fedge.federated.plan import Coding
from fedge.federated.prepare import prepare
from fedge.federated.server import Federation, run_rounds
from fedge.observe import Observer, silent
from fedge.simulation.world import World, build_world

SHORT: Mapping[str, Any] = {
    "teacher.epochs": 3,
    "student.epochs": 6,
    "student.tune_epochs": 2,
    "local.epochs": 1,
    "rounds.rounds": 4,
    "redistill.mode": "none",
}
"""Training that is just long enough for updates that look like updates."""

_RAW = Coding("raw", {})

Sequences = Mapping[str, list[Arrays]]
"""Each client's updates, in the order of the rounds: the change of its live weights, before any codec."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """Updates of a run, and the codec that the scenario would have coded them with."""

    updates: Sequences
    uplink: Coding

    @property
    def all(self) -> list[Arrays]:
        """Every update, client by client."""
        return [update for sequence in self.updates.values() for update in sequence]


def record(observer: Observer, scenario: str = "watch") -> Recorded:
    """The updates of a few short rounds of ``scenario``, all clients in this process."""
    return record_config(load_config(scenario, SHORT), observer)


def record_config(config: Config, observer: Observer) -> Recorded:
    """The updates of a run with these settings. Clients send exact float32, so that nothing is lost."""
    uplink = Coding(config.uplink.codec, config.uplink.settings)
    config = replace(config, uplink=Link(_RAW.codec, {}))
    with observer.stage(f"updates: a short run of {config.scenario}") as stage:
        world = build_world(config)
        clients = _Recorder({c: world.device(i, _Memory()) for i, c in enumerate(world.roles.participants)})
        with TemporaryDirectory() as folder:
            _run(world, clients, Path(folder))
        stage.result = f"{len(clients.payloads)} clients, {config.rounds.rounds} rounds"
    return Recorded(clients.decoded(), uplink)


def stretched(update: Arrays, total: int, seed: int) -> Arrays:
    """About ``total`` values with the distribution of ``update``, array by array.

    Each array keeps its share of the entries. Its values are drawn from its own empirical distribution,
    interpolated between neighbours, so that no value is an exact repeat of another.
    """
    random = np.random.default_rng(seed)
    factor = total / sum(a.size for a in update.values())
    return {name: _drawn(a.reshape(-1), round(a.size * factor), random) for name, a in update.items()}


def _drawn(values: NDArray[np.float32], count: int, random: np.random.Generator) -> NDArray[np.float32]:
    ranks = random.uniform(0, max(len(values) - 1, 0), count)
    return np.interp(ranks, np.arange(len(values)), np.sort(values)).astype(np.float32)


@dataclass
class _Memory:
    """A client's state, for as long as the benchmark runs."""

    content: bytes | None = None

    def load(self) -> bytes | None:
        """What was saved last."""
        return self.content

    def save(self, content: bytes) -> None:
        """Keep it."""
        self.content = content


@dataclass
class _Recorder:
    """Clients in this process; keeps the payload of every update that they send."""

    devices: Mapping[str, Device]
    payloads: dict[str, list[bytes]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def ask(
        self, tasks: Mapping[str, bytes], deadline: float | None = None, enough: int | None = None
    ) -> Iterator[tuple[str, bytes | FedgeError]]:
        """Answer each task with a client's own round; nothing is waited for."""
        del deadline, enough
        for client, frame in tasks.items():
            answer = client_round(frame, self.devices[client])
            reply = decode_reply(answer)
            if isinstance(reply, Trained) and reply.weight:
                self.payloads.setdefault(client, []).append(reply.payload)
            yield client, answer

    def decoded(self) -> Sequences:
        """The updates behind the payloads."""
        codec: Codec = build_codec(_RAW)
        bounds = limits(self.shapes)
        return {c: [codec.decode(p, bounds) for p in sent] for c, sent in self.payloads.items()}


def _run(world: World, clients: _Recorder, folder: Path) -> None:
    config, dataset = world.config, world.dataset
    prepared = prepare(
        config, world.task, world.server_data(), len(dataset.classes), dataset.channels, silent
    )
    clients.shapes.update(prepared.support.shapes())
    enrolled = {c: world.key(c).public for c in world.roles.participants}
    with Journal(folder / "journal.sqlite") as journal:
        run_rounds(
            Federation(
                config=config,
                task=world.task,
                prepared=prepared,
                clients=clients,
                enrolled=enrolled,
                publisher=None,
                journal=journal,
                observer=silent,
                score=lambda _weights: {},
            )
        )
