"""What ``fedge bench simulation`` runs: clients without work, clients that train, and a plain torch loop."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from flwr.clientapp import ClientApp

from fedge.bench import _simulation_app as idle_app
from fedge.bench import _synthetic as synthetic
from fedge.bench._simulation_app import Idle
from fedge.bench._simulation_engines import Case
from fedge.config import Config, load_config
from fedge.errors import FedgeError
from fedge.federated import checks, lineage
from fedge.federated.client import client_round
from fedge.federated.federation import Clients, Federation
from fedge.federated.frames import Step, StepKind, Train, encode_task
from fedge.federated.journal import Journal
from fedge.federated.prepare import Prepared, prepare
from fedge.federated.state import FederationState
from fedge.models.student import forward
from fedge.observe import silent
from fedge.simulation.world import CONFIG, World, build_world, to_run_config

_CLASSES, _TIME, _CHANNELS = 5, 100, 6
_OTHERS = ("server-0", "server-1", "unseen-0")

Beginning = tuple[Federation, FederationState]


def idle_case(idle: Idle) -> Case:
    """Clients that answer with a ready payload; the round is the server's usual one."""
    crowd = idle_app.crowd_of(idle.text())
    enrolled = {name: key.public for name, key in crowd.keys.items()}

    def begin(clients: Clients, journal: Journal) -> Beginning:
        federation = synthetic.federation_of(crowd.config, crowd.prepared, clients, enrolled, journal)
        return federation, synthetic.welcomed_state(federation)

    settings = idle.text()
    config = {idle_app.SETTINGS: settings}
    return Case(idle_app.APP, config, lambda: idle_app.app_of(settings), idle.clients, begin)


@contextmanager
def unsigned() -> Iterator[None]:
    """The server takes every signature for good: only to see what signatures cost."""
    names = vars(checks)
    verify = names["verify"]
    names["verify"] = lambda *_: None
    try:
        yield
    finally:
        names["verify"] = verify


def idle_seconds(idle: Idle, repeats: int = 300) -> float:
    """What a client without work takes for one answer, median over ``repeats``."""
    crowd = idle_app.crowd_of(idle.text())
    step = Step(StepKind.UPDATE, crowd.payloads[0])
    frame = encode_task(Train(2, 1, 1, lineage.begin(crowd.prepared.snapshot), ((step,),), 0.1))
    taken = []
    for i in range(repeats):
        began = time.perf_counter()
        crowd.answer(frame, i % idle.clients)
        taken.append(time.perf_counter() - began)
    return median(taken)


def idle_torch(idle: Idle, rounds: int) -> list[float]:
    """A hand-written loop without work: a client takes the weights and gives them back. Seconds a round."""
    shapes = synthetic.shapes_of(idle.parameters)
    model = torch.nn.ParameterDict({n.replace(".", "_"): torch.zeros(s) for n, s in shapes.items()})
    weights = {n: v.detach().clone() for n, v in model.state_dict().items()}
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        total = {n: torch.zeros_like(w) for n, w in weights.items()}
        for _ in range(idle.clients):
            model.load_state_dict(weights)
            for name, value in model.state_dict().items():
                total[name] += value
        weights = {n: t / idle.clients for n, t in total.items()}
        seconds.append(time.perf_counter() - began)
    return seconds


# ----- clients that train


@dataclass(frozen=True, eq=False)
class Trainers:
    """Clients that train a student of 20,000 parameters or so on windows that were made up.

    Attributes:
        config: with local SGD as in the scenario ``watch``.
        world: their data.
        prepared: the student that they start from.
    """

    config: Config
    world: World
    prepared: Prepared

    @staticmethod
    def of(clients: int, windows: int, folder: Path) -> "Trainers":
        """So many, with so many windows each; the data are written to ``folder``."""
        config = load_config(None, {"data.source": str(_write(clients, windows, folder)), **_SETTINGS})
        world = build_world(config)
        data = world.dataset
        found = prepare(config, world.task, world.server_data(), len(data.classes), data.channels, silent)
        return Trainers(config, world, found)

    def case(self) -> Case:
        """The very clients of ``fedge simulate``; nothing is scored between the rounds."""

        def bound() -> ClientApp:
            from fedge.simulation.ray_engine import bound_app

            return bound_app(self.config)

        config = {CONFIG: to_run_config(self.config)}
        app = "fedge.simulation.life:client_app"
        return Case(app, config, bound, len(self.world.parts), self._begin)

    def _begin(self, clients: Clients, journal: Journal) -> Beginning:
        enrolled = {c: self.world.key(c).public for c in self.world.roles.participants}
        federation = synthetic.federation_of(self.config, self.prepared, clients, enrolled, journal)
        return federation, synthetic.unwelcomed_state(federation)

    def torch_loop(self, rounds: int) -> list[float]:
        """A hand-written FedAvg loop: the same model, windows, epochs and batches, in float. Seconds a round.

        Nothing is coded, signed, quantized or kept.
        """
        plan, world = self.prepared.plan, self.world
        data = {c: _tensors(self.prepared, p.train) for c, p in world.parts.items()}
        weights = {n: torch.from_numpy(w.copy()) for n, w in self.prepared.weights.items()}
        seconds = []
        for _ in range(rounds):
            began = time.perf_counter()
            total = {n: torch.zeros_like(w) for n, w in weights.items()}
            for x, y in data.values():
                params = {n: w.clone().requires_grad_() for n, w in weights.items()}
                optimizer = torch.optim.SGD(params.values(), lr=0.01, momentum=plan.training.momentum)
                for _ in range(plan.training.epochs):
                    for index in torch.split(torch.randperm(len(x)), plan.training.batch):
                        optimizer.zero_grad()
                        loss = world.task.loss(forward(plan.spec, params, x[index]), y[index])
                        loss.backward()  # type: ignore[no-untyped-call]
                        optimizer.step()
                for name, value in params.items():
                    total[name] += value.detach()
            weights = {n: t / len(data) for n, t in total.items()}
            seconds.append(time.perf_counter() - began)
        return seconds


class Direct:
    """``Clients`` of the server in this process, with their states in memory.

    Attributes:
        seconds: what the clients took together, each time they were asked.
    """

    def __init__(self, world: World) -> None:
        """The clients of ``world``."""
        clients = world.roles.participants
        self._devices = {c: world.device(i, _Memory()) for i, c in enumerate(clients)}
        self.seconds: list[float] = []

    def ask(
        self, tasks: Mapping[str, bytes], deadline: float | None = None, enough: int | None = None
    ) -> Iterator[tuple[str, bytes | FedgeError]]:
        """One after the other."""
        del deadline, enough
        self.seconds.append(0.0)
        for client, frame in tasks.items():
            began = time.perf_counter()
            answer = client_round(frame, self._devices[client])
            self.seconds[-1] += time.perf_counter() - began
            yield client, answer


class _Memory:
    """A client's state in memory."""

    def __init__(self) -> None:
        self._content: bytes | None = None

    def load(self) -> bytes | None:
        return self._content

    def save(self, content: bytes) -> None:
        self._content = content


_SETTINGS: dict[str, Any] = {
    "data.server_clients": ["server-*"],
    "data.unseen_clients": ["unseen-*"],
    "teacher.epochs": 1,
    "teacher.cache": False,
    "student.size": "small",
    "student.epochs": 1,
    "student.tune_epochs": 1,
    "uplink.share": 0.01,
    "downlink.share": 0.03,
    "redistill.mode": "none",
    "rounds.rounds": 1_000_000,  # a run's last round would be another thing
}


def _write(clients: int, windows: int, folder: Path) -> Path:
    """Windows ``[100, 6]``: the class is a frequency, the client an offset."""
    random, path = np.random.default_rng(0), folder / "windows.npz"
    names = [*(f"c{i:06d}" for i in range(clients)), *_OTHERS]
    label = np.arange(windows) % _CLASSES
    wave = np.sin(2 * np.pi * (2 + label[:, None, None]) * np.arange(_TIME)[:, None] / _TIME)
    x = [
        wave + random.normal(0, 0.5, (windows, _TIME, _CHANNELS)) + random.normal(0, 1, _CHANNELS)
        for _ in names
    ]
    np.savez(
        path,
        X=np.concatenate(x).astype(np.float32),
        y=np.tile(label, len(names)),
        client=np.repeat(names, windows),
    )
    return path


def _tensors(prepared: Prepared, windows: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(prepared.plan.preprocess.apply(windows.x)), torch.from_numpy(windows.y)
