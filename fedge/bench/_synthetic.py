"""A federation made up of nothing: a student of random weights, and clients that answer without training.

Everything but the training is real: what they are sent and what they answer are frames of a round, updates
are coded by the default codec and signed with each client's own key.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from fedge import plugins
from fedge.codec import Shapes
from fedge.config import Config, load_config
from fedge.errors import FedgeError, UpdateError
from fedge.federated import frames
from fedge.federated.client import HELLO, UPDATE, signed_parts
from fedge.federated.coding import Support, build_codec, decode_dense, encode_dense
from fedge.federated.federation import Federation
from fedge.federated.frames import Hello, Train, Trained, Welcome
from fedge.federated.journal import Journal
from fedge.federated.lineage import begin
from fedge.federated.plan import Coding, Plan
from fedge.federated.prepare import Prepared, make_plan
from fedge.federated.state import ClientRecord, FederationState
from fedge.models.student import activations
from fedge.models.student_families import build_spec
from fedge.observe import Observer, silent
from fedge.preprocess import fit
from fedge.signing import SigningKey

WINDOWS = 64
"""What every client says it has trained on."""

_TYPICAL = 0.002  # size of an update's entries
_LAYERS = (0.01, 0.19, 0.30, 0.50)  # share of the weights in each layer, much as in a small convolutional net


def shapes_of(parameters: int) -> dict[str, tuple[int, ...]]:
    """Weights and biases of a few layers: ``parameters`` in all, about."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, share in enumerate(_LAYERS):
        outputs = max(1, round((share * parameters) ** 0.5 / 4))
        shapes[f"{i}.weight"] = (outputs, max(1, round(share * parameters / outputs) - 1))
        shapes[f"{i}.bias"] = (outputs,)
    return shapes


def settings(rounds: int, least: int = 0) -> Config:
    """The scenario ``watch``, with its codecs, without re-distillation; a round needs ``least`` updates."""
    return load_config(
        "watch",
        {
            "rounds.rounds": rounds,
            "rounds.least": least,
            "rounds.deadline_seconds": 60.0,
            "redistill.mode": "none",
        },
    )


def prepared_of(config: Config, parameters: int, federation: str) -> Prepared:
    """A student of ``parameters`` random weights, all alive; there is no teacher and no data."""
    random = np.random.default_rng(0)
    full = {n: random.normal(0, 0.1, s).astype(np.float32) for n, s in shapes_of(parameters).items()}
    snapshot = encode_dense(full, 8)
    weights = decode_dense(snapshot, {n: w.shape for n, w in full.items()})
    spec = build_spec(config.student.family, "tiny", (32, 3), 3)
    some = fit(random.normal(0, 1, (8, 32, 3)).astype(np.float32))
    scales = dict.fromkeys(activations(spec), 1.0)
    bare = replace(config, local=replace(config.local, rotate=()))
    plan = replace(make_plan(bare, spec, some, scales, ("x", "y", "z")), federation=federation)
    support = Support({n: np.ones(w.shape, bool) for n, w in weights.items()})
    none = torch.zeros(0)
    return Prepared(plan, snapshot, weights, support, nn.Identity(), none, none, none, {}, (), (0, 0))


def federation_of(
    config: Config,
    prepared: Prepared,
    clients: Any,
    enrolled: Mapping[str, bytes],
    journal: Journal,
    observer: Observer = silent,
    present: Callable[[], list[str]] | None = None,
) -> Federation:
    """A federation that can run rounds; it publishes nothing and scores nothing."""
    task = plugins.load("task", config.task).TASK
    return Federation(
        config, task, prepared, clients, enrolled, None, journal, observer, lambda _weights: {}, present
    )


def unwelcomed_state(federation: Federation) -> FederationState:
    """Before the first round, with nobody holding anything."""
    prepared = federation.prepared
    return FederationState(0, prepared.weights, federation.downlink.init(prepared.support.shapes()))


def welcomed_state(federation: Federation) -> FederationState:
    """Before the first round, with everyone holding the student already."""
    record = ClientRecord(version=0, lineage=begin(federation.prepared.snapshot))
    clients = dict.fromkeys(federation.enrolled, record)
    return replace(unwelcomed_state(federation), clients=clients)


def payloads_of(coding: Coding, shapes: Shapes, count: int) -> list[bytes]:
    """Coded updates of random entries, ``count`` different ones."""
    codec, random = build_codec(coding), np.random.default_rng(1)
    payloads = []
    for _ in range(count):
        change = {n: (random.laplace(0, _TYPICAL, s)).astype(np.float32) for n, s in shapes.items()}
        payloads.append(codec.encode(codec.init(shapes), change)[1])
    return payloads


def key_of(client: str) -> SigningKey:
    """A client's own key; it follows from the name."""
    return SigningKey.from_seed(hashlib.sha256(b"fedge bench " + client.encode()).digest())


def answer(frame: bytes, client: str, key: SigningKey, federation: str, payload: bytes) -> bytes:
    """What a client says to a task, without having trained.

    Raises:
        UpdateError: the task is none for a client of the bench.
    """
    task = frames.decode_task(frame)
    if isinstance(task, Welcome):
        signature = key.sign(HELLO, federation.encode(), client.encode(), task.challenge)
        return frames.encode_reply(Hello(key.public, signature))
    if not isinstance(task, Train):
        raise UpdateError("the clients of a bench take no releases")
    reply = Trained(task.round, WINDOWS, 0.5, 0.5, None, payload, b"")
    parts = signed_parts(federation, client, task.lineage, reply)
    return frames.encode_reply(replace(reply, signature=key.sign(UPDATE, *parts)))


class Crowd:
    """``Clients`` of the server in this process, of which only the server's share of the work is timed.

    Attributes:
        seconds: spent on the clients' share so far, by the clock.
        cpu: the same by CPU time.
    """

    def __init__(self, plan: Plan, payloads: list[bytes]) -> None:
        """Clients send ``payloads`` in turns, each signed with its own key (``key_of``)."""
        self._plan, self._payloads = plan, payloads
        self.seconds = self.cpu = 0.0

    def ask(
        self, tasks: Mapping[str, bytes], deadline: float | None = None, enough: int | None = None
    ) -> Iterator[tuple[str, bytes | FedgeError]]:
        """An answer from everyone, one at a time."""
        del deadline, enough
        for i, (client, frame) in enumerate(tasks.items()):
            wall, cpu = time.perf_counter(), time.process_time()
            payload = self._payloads[i % len(self._payloads)]
            given = answer(frame, client, key_of(client), self._plan.federation, payload)
            self.cpu += time.process_time() - cpu
            self.seconds += time.perf_counter() - wall
            yield client, given
