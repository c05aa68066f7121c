"""The simulated world: everyone's data on one machine, who is who, and a device for each client."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from flwr.app import Context

from fedge import plugins
from fedge.config import Config, Fleet, config_from, config_text, load_config, redistils
from fedge.data import load
from fedge.data.partition import lacking, missing_classes, skewed
from fedge.data.roles import assign_roles
from fedge.data.split import split_client
from fedge.data.types import ClientData, Dataset, Roles, Windows
from fedge.errors import ConfigError, DataError
from fedge.federated.client import Device, link_budget
from fedge.federated.client_state import StateStore
from fedge.federated.coding import build_codec
from fedge.federated.consider import Releases
from fedge.federated.judges import held_back
from fedge.federated.plan import Coding
from fedge.federated.prepare import check_window, turning_of
from fedge.federated.pupil import distillation
from fedge.federated.server_data import ServerData
from fedge.flower.client_app import ContextStore
from fedge.release.keys import Keys, OnlineKeys
from fedge.release.offline import create
from fedge.seeding import derive, derive_bytes
from fedge.signing import SigningKey
from fedge.simulation.copies import Parts, copied
from fedge.simulation.torch_settings import repeatable
from fedge.tasks import Task

CONFIG = "config"
"""Key of Flower's run config under which the whole of ``Config`` travels as JSON, where fedge starts it."""


BEGINNING = 1_767_225_600
"""When everything in a simulation is signed, so that each run gives the same bytes: the start of 2026."""

FOREVER = 36_500.0
"""Days for which what a simulation signs is valid: its releases can be tried out at any time."""

_SKEWED = 2  # classes that a client trains on
_MISSING = 2  # classes that the server lacks


@dataclass(frozen=True, eq=False)
class World:
    """Everyone, as only a simulation can see them.

    Attributes:
        config: the run's settings.
        task: what is learned.
        dataset: everyone's windows.
        roles: who is the server's, who takes part, who is unseen.
        parts: each participant's data, split as that client would.
        owner: by participant, whose data it has, where some are copies of others (``data.copies``).
    """

    config: Config
    task: Task
    dataset: Dataset
    roles: Roles
    parts: Mapping[str, ClientData]
    owner: Mapping[str, str] = field(default_factory=dict)

    def person(self, client: str) -> str:
        """Whose data a client has: its own, unless it is a copy. A copy has as many windows."""
        return self.owner.get(client, client)

    def judges(self) -> tuple[str, ...]:
        """The server's people who are held back whole to judge candidates; nobody where clients judge."""
        return held_back(self.config, self.roles.server)

    def server_data(self) -> ServerData:
        """What the server has to learn from."""
        everyone, judges = self.dataset.clients, self.judges()
        labelled = Windows.joined([everyone[c] for c in self.roles.server if c not in judges]).to_train_on()
        unlabelled = [everyone[c] for c in self.roles.unlabelled]
        if self.config.data.split == "missing":
            labelled = lacking(labelled, self.missing())
        return ServerData(
            labelled,
            Windows.joined(unlabelled).to_train_on() if unlabelled else None,
            {c: everyone[c].to_train_on() for c in judges},
        )

    def missing(self) -> tuple[int, ...]:
        """The two classes that the server has no window of, where the split says so."""
        seed = derive(self.config.seed, "missing classes")
        return missing_classes(len(self.dataset.classes), _MISSING, seed)

    def key(self, client: str) -> SigningKey:
        """A participant's signing key. It follows from the seed, so it protects nothing but the protocol."""
        return _key(self.config.seed, "client key", client)

    def release_keys(self) -> Keys:
        """The federation's keys for releases, likewise."""
        return _release_keys(self.config.seed)

    def trust(self) -> dict[str, bytes]:
        """The root of trust that every simulated device is enrolled with, and the first list of targets."""
        return _trust(self.config.seed)

    def device(self, partition: int, store: StateStore) -> Device:
        """The device of participant number ``partition``."""
        client, budgets = self.roles.participants[partition], uplink_budgets(self.config.fleet)
        return Device(
            id=client,
            key=self.key(client),
            data=self.parts[client],
            store=store,
            releases=Releases(self.trust()["1.root.json"], self.config.release.margin, now=lambda: BEGINNING),
            seed=derive(self.config.seed, "device", client),
            uplink_budget=budgets[partition % len(budgets)] if budgets else None,
        )

    def held_out(self) -> dict[str, Windows]:
        """What scores are measured on: participants' later windows (no copy's), all windows of the unseen."""
        people = [c for c in self.roles.participants if self.person(c) == c]
        later = {c: self.parts[c].later for c in people}
        unseen = {c: self.dataset.clients[c] for c in self.roles.unseen}
        return {c: w for c, w in {**later, **unseen}.items() if len(w)}


@lru_cache(maxsize=1 << 16)
def _key(seed: int, *purpose: str) -> SigningKey:
    """Kept, since a client is asked for it in every round."""
    return SigningKey.from_seed(derive_bytes(seed, *purpose))


def _release_keys(seed: int) -> Keys:
    def key(role: str) -> SigningKey:
        return SigningKey.from_seed(derive_bytes(seed, "release key", role))

    online = OnlineKeys(key("snapshot"), key("timestamp"), key("rounds"))
    return Keys(key("root"), key("targets"), online)


@lru_cache(maxsize=4)
def _trust(seed: int) -> dict[str, bytes]:
    return create(BEGINNING, FOREVER, FOREVER, _release_keys(seed))


def uplink_budgets(fleet: Fleet) -> tuple[int, ...]:
    """Most bytes of an answer, dealt to the participants in turn; empty where there is no limit.

    Raises:
        ConfigError: a link is too slow for any answer.
    """
    links = fleet.uplink_bits_per_second
    return fleet.uplink_bytes or tuple(link_budget(speed, fleet.answer_seconds) for speed in links)


def build_world(config: Config) -> World:
    """Read the data and give everyone a role.

    Raises:
        DataError: the data cannot be used, or a part of the life would have none.
        ConfigError: roles or settings do not fit the data.
    """
    task: Task = plugins.load("task", config.task).TASK
    distillation(config, task)
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
    dataset = load(
        data.source,
        window=data.window,
        step=data.step,
        target=task.target,
        key=data.target,
        normal=data.normal,
    )
    dataset = _capped(_without_small(dataset, skip=data.skip_small), data.most)
    check_window(task, dataset.window)
    turning = turning_of(config, dataset.channels)  # refuses channels that do not exist
    roles = assign_roles(
        list(dataset.clients),
        data.server_clients,
        data.unseen_clients,
        take=None if data.copies else data.clients or None,
        unlabelled_clients=data.server_unlabelled,
    )
    judge_share = data.judge_share if redistils(config) and config.redistill.judge == "clients" else 0.0
    people = {c: _part(config, task, c, dataset.clients[c], judge_share) for c in roles.participants}
    owner = _owners(config, roles.participants)
    parts = Parts(people, owner, turning.triples, turning.degrees, config.seed) if data.copies else people
    world = World(config, task, dataset, replace(roles, participants=tuple(owner)), parts, owner)
    _check(world)
    return world


def _owners(config: Config, people: tuple[str, ...]) -> dict[str, str]:
    """Whose data each participant has; the first ``data.clients`` of them."""
    everyone, wanted = copied(people, config.data.copies), config.data.clients
    if wanted > len(everyone):
        raise ConfigError(f"data.clients = {wanted}, but with their copies {len(everyone)} can take part")
    return dict(list(everyone.items())[: wanted or None])


def _part(config: Config, task: Task, client: str, windows: Windows, judge_share: float) -> ClientData:
    """One participant's data, split as that client would."""
    part = split_client(windows, config.data.later_share, judge_share, target=task.target)
    if config.data.split == "skewed":
        part = skewed(part, _SKEWED, derive(config.seed, "skewed", client))
    return part


def _capped(dataset: Dataset, most: float) -> Dataset:
    """Targets above ``most`` count as ``most``; 0 leaves them as they are."""
    if not most:
        return dataset
    if dataset.classes:
        raise ConfigError("data.most bounds numbers; this task has classes")
    capped = {c: replace(w, y=np.minimum(w.y, np.float32(most))) for c, w in dataset.clients.items()}
    return replace(dataset, clients=capped)


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


def _check(world: World) -> None:
    """Refuse data with which a stage of the life would have nothing to work on."""
    _check_split(world)
    world.judges()  # refuses people who cannot judge, or who leave nothing to learn from
    windows = world.server_data().labelled
    found = len(np.unique(windows.y))
    if len(windows) < 2 or (world.task.target == "class" and found < 2):
        what = f"{len(windows)} windows" + (f" of {found} class(es)" if world.task.target == "class" else "")
        raise DataError(
            f"the server's own data ({', '.join(world.roles.server)}) hold {what} to learn from; a teacher "
            "needs two, of two classes: name others in data.server_clients"
        )
    if not any(len(p.train) for p in world.parts.values()):
        raise DataError("no client has a window left to train on after the split; record more per client")
    if world.config.data.later_share and not any(len(p.later) for p in world.parts.values()):
        raise DataError("no client has a later window left to be scored on; record more per client")
    if (edges := world.config.fleet.edges) > len(world.roles.participants):
        raise ConfigError(
            f"fleet.edges = {edges}, but there are {len(world.roles.participants)} participants to share out"
        )
    if edges and (least := world.config.rounds.least) > (group := len(world.roles.participants) // edges):
        raise ConfigError(
            f"fleet.edges = {edges} leaves an edge server {group} participants, and rounds.least = {least} "
            "of them have to answer: fewer edge servers, or a smaller rounds.least"
        )
    if min(world.dataset.window[:-1]) < 4:
        raise ConfigError(f"windows of {world.dataset.window[0]} samples are too short; give 4 or more")


def _check_split(world: World) -> None:
    """Refuse splits that the data do not have the classes for."""
    split, classes = world.config.data.split, len(world.dataset.classes)
    if split != "natural" and world.task.target != "class":
        raise ConfigError(f"data.split = {split!r} is for classes; task {world.task.name!r} has none")
    if split == "missing" and classes < _MISSING + 2:
        raise ConfigError(
            f"data.split = 'missing' takes {_MISSING} of {classes} classes from the server: too few left"
        )


def config_of(run_config: Mapping[str, Any]) -> Config:
    """The settings in Flower's run config: all of them as JSON, or a scenario with dotted overrides."""
    if CONFIG in run_config:
        return config_from(str(run_config[CONFIG]))
    overrides = {k: v for k, v in run_config.items() if k not in ("scenario", "set", "out")}
    settings = shlex.split(str(run_config.get("set", "")))
    return load_config(str(run_config.get("scenario", "watch")), overrides, settings)


@lru_cache(maxsize=1)
def _cached_world(settings: str) -> World:
    """Built once per process, whichever engine started it, with torch set up as everywhere else."""
    repeatable()
    return build_world(config_of(json.loads(settings)))


def to_run_config(config: Config) -> str:
    """The settings as one string for Flower's run config."""
    return config_text(config)


def device_of(context: Context) -> Device:
    """The simulated device behind a Flower node; the world is built once per process."""
    world = _cached_world(json.dumps(dict(context.run_config), sort_keys=True))
    return world.device(int(context.node_config["partition-id"]), ContextStore(context))
