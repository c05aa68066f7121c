"""The simulated world: everyone's data on one machine, who is who, and a device for each client."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from flwr.app import Context

from fedge import plugins
from fedge.config import Config, Fleet, load_config
from fedge.data import load
from fedge.data.roles import assign_roles
from fedge.data.split import split_client
from fedge.data.types import ClientData, Dataset, Roles, Windows
from fedge.errors import ConfigError, DataError
from fedge.federated.client import Device, link_budget
from fedge.federated.client_state import StateStore
from fedge.federated.coding import Weights, build_codec
from fedge.federated.plan import Coding, Plan
from fedge.federated.training import logits
from fedge.flower.client_app import ContextStore
from fedge.seeding import derive, derive_bytes
from fedge.signing import SigningKey
from fedge.tasks import Task

CONFIG = "config"
"""Key of Flower's run config under which the whole of ``Config`` travels as JSON, where fedge starts it."""


@dataclass(frozen=True, eq=False)
class World:
    """Everyone, as only a simulation can see them.

    Attributes:
        config: the run's settings.
        task: what is learned.
        dataset: everyone's windows.
        roles: who is the server's, who takes part, who is unseen.
        parts: each participant's data, split as that client would.
    """

    config: Config
    task: Task
    dataset: Dataset
    roles: Roles
    parts: Mapping[str, ClientData]

    def server_windows(self) -> Windows:
        """The server's own labelled data."""
        return joined([self.dataset.clients[c] for c in self.roles.server])

    def key(self, client: str) -> SigningKey:
        """A participant's signing key. It follows from the seed, so it protects nothing but the protocol."""
        return SigningKey.from_seed(derive_bytes(self.config.seed, "client key", client))

    def release_key(self) -> SigningKey:
        """The server's key for releases, likewise."""
        return SigningKey.from_seed(derive_bytes(self.config.seed, "release key"))

    def device(self, partition: int, store: StateStore) -> Device:
        """The device of participant number ``partition``."""
        client, budgets = self.roles.participants[partition], uplink_budgets(self.config.fleet)
        return Device(
            id=client,
            key=self.key(client),
            data=self.parts[client],
            store=store,
            release_keys=(self.release_key().public,),
            release_margin=self.config.release.margin,
            seed=derive(self.config.seed, "device", client),
            uplink_budget=budgets[partition % len(budgets)] if budgets else None,
        )

    def held_out(self) -> dict[str, Windows]:
        """What scores are measured on: participants' later windows, all windows of unseen clients."""
        later = {c: self.parts[c].later for c in self.roles.participants}
        unseen = {c: self.dataset.clients[c] for c in self.roles.unseen}
        return {c: w for c, w in {**later, **unseen}.items() if len(w)}


def uplink_budgets(fleet: Fleet) -> tuple[int, ...]:
    """Most bytes of an answer, dealt to the participants in turn; empty where there is no limit.

    Raises:
        ConfigError: a link is too slow for any answer.
    """
    links = fleet.uplink_bits_per_second
    return fleet.uplink_bytes or tuple(link_budget(speed, fleet.answer_seconds) for speed in links)


def joined(parts: list[Windows]) -> Windows:
    """Several clients' windows, one after the other."""
    return Windows(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("x", "y", "group")))


def build_world(config: Config) -> World:
    """Read the data and give everyone a role.

    Raises:
        DataError: the data cannot be used, or a part of the life would have none.
        ConfigError: roles or settings do not fit the data.
    """
    task: Task = plugins.load("task", config.task).TASK
    plugins.load("distillation loss", config.student.loss)
    for name, link in (("uplink", config.uplink), ("downlink", config.downlink)):
        try:
            build_codec(Coding(link.codec, link.settings))
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from None
    if budgets := uplink_budgets(config.fleet):
        tight = {**config.uplink.settings, "budget_bytes": min(budgets)}
        try:
            build_codec(Coding(config.uplink.codec, tight))
        except ConfigError as error:
            raise ConfigError(f"fleet: the codec cannot keep to a budget: {error}") from None
    data = config.data
    dataset = _without_small(load(data.source, window=data.window, step=data.step), skip=data.skip_small)
    roles = assign_roles(
        list(dataset.clients), data.server_clients, data.unseen_clients, take=data.clients or None
    )
    judge_share = data.judge_share if redistils(config) else 0.0
    parts = {c: split_client(dataset.clients[c], judge_share=judge_share) for c in roles.participants}
    world = World(config, task, dataset, roles, parts)
    _check(world)
    return world


def _without_small(dataset: Dataset, *, skip: bool) -> Dataset:
    """Refuse, or leave out, clients with fewer than two windows: nothing can be learned and scored there."""
    small = [c for c, w in dataset.clients.items() if len(w) < 2]
    if not small:
        return dataset
    if not skip:
        names = ", ".join(repr(c) for c in small[:3]) + (" ..." if len(small) > 3 else "")
        raise DataError(
            f"{len(small)} client(s) have a single window ({names}); two or more are needed to learn and to "
            "be scored: leave them out, or --set data.skip_small=true"
        )
    return replace(dataset, clients={c: w for c, w in dataset.clients.items() if c not in small})


def redistils(config: Config) -> bool:
    """Whether this run ever tries a re-distilled student."""
    return config.redistill.mode != "none" and config.redistill.every < config.rounds.rounds


def _check(world: World) -> None:
    """Refuse data with which a stage of the life would have nothing to work on."""
    windows = world.server_windows()
    if len(windows) < 2 or len(np.unique(windows.y)) < 2:
        raise DataError(
            f"the server's own data ({', '.join(world.roles.server)}) hold {len(windows)} windows of "
            f"{len(np.unique(windows.y))} class(es); a teacher needs two classes: name others in "
            "data.server_clients"
        )
    if not any(len(p.train) for p in world.parts.values()):
        raise DataError("no client has a window left to train on after the split; record more per client")
    if not any(len(p.later) for p in world.parts.values()):
        raise DataError("no client has a later window left to be scored on; record more per client")
    if world.dataset.window[0] < 4:
        raise ConfigError(f"windows of {world.dataset.window[0]} samples are too short; give 4 or more")


@dataclass(frozen=True, eq=False)
class Scorer:
    """Scores global weights on everyone's held-out windows, in float, as the clients hold them."""

    world: World
    plan: Plan
    inputs: Mapping[str, torch.Tensor]

    @staticmethod
    def of(world: World, plan: Plan) -> "Scorer":
        """Preprocess everything once."""
        held = world.held_out()
        return Scorer(world, plan, {c: torch.from_numpy(plan.preprocess.apply(w.x)) for c, w in held.items()})

    def __call__(self, weights: Weights, *, quantized: bool = False) -> dict[str, Any]:
        """Means over participants and over unseen clients, and each client's score."""
        return self.summary(
            {c: logits(self.plan, weights, x, quantized=quantized) for c, x in self.inputs.items()}
        )

    def summary(self, answers: Mapping[str, Any]) -> dict[str, Any]:
        """The same from anyone's answers: scores ``[n, classes]`` by client."""
        held = self.world.held_out()
        each = {c: self.world.task.score(scores, held[c].y) for c, scores in answers.items()}
        return {
            "clients": mean([each[c] for c in self.world.roles.participants if c in each]),
            "unseen": mean([each[c] for c in self.world.roles.unseen if c in each]),
            "each": each,
        }


def mean(values: list[float]) -> float:
    """Their mean; of nothing, 0."""
    return sum(values) / len(values) if values else 0.0


def config_of(run_config: Mapping[str, Any]) -> Config:
    """The settings in Flower's run config: all of them as JSON, or a scenario with dotted overrides."""
    if CONFIG in run_config:
        raw = json.loads(str(run_config[CONFIG]))
        scenario = raw.pop("scenario")
        return load_config(None, raw, name=scenario)
    overrides = {k: v for k, v in run_config.items() if k not in ("scenario", "out")}
    return load_config(str(run_config.get("scenario", "watch")), overrides)


@lru_cache(maxsize=1)
def _cached_world(run_config: str) -> World:
    return build_world(config_of(json.loads(run_config)))


def to_run_config(config: Config) -> str:
    """The settings as one string for Flower's run config."""
    raw = config.to_dict()
    for link in ("uplink", "downlink"):
        raw[link] = {"codec": raw[link]["codec"], **raw[link]["settings"]}
    return json.dumps(raw, sort_keys=True)


def device_of(context: Context) -> Device:
    """The simulated device behind a Flower node; the world is built once per process."""
    world = _cached_world(json.dumps(dict(context.run_config), sort_keys=True))
    return world.device(int(context.node_config["partition-id"]), ContextStore(context))
