"""More clients than people: each further client is a person's windows, seen through another sensor.

A fleet of ten thousand needs data of ten thousand, which nobody has. A copy is not a new person: it does what
the person did, at the same time, with a sensor that is mounted a little turned, has a gain of its own on each
channel, and noise. So copies say how a large fleet behaves (time, bytes, memory, who takes part), and little
about how well a model would generalise; scores are taken on the people only.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from fedge.augment import Triple, rotations
from fedge.data.types import ClientData, Windows
from fedge.errors import ConfigError
from fedge.seeding import derive

GAIN = 0.05
"""Standard deviation of the factor on a channel, around 1."""

NOISE = 0.05
"""Standard deviation of what is added to each sample, in standard deviations of the channel."""

MOST_CLIENTS = 100_000


def copied(people: Sequence[str], copies: int) -> dict[str, str]:
    """Whose data each participant has: the people themselves, then the first copy of each, and so on.

    Raises:
        ConfigError: too many, or a copy has the name of a person.
    """
    if len(people) * (1 + copies) > MOST_CLIENTS:
        raise ConfigError(
            f"data.copies = {copies} makes {len(people) * (1 + copies)} clients of {len(people)}; "
            f"{MOST_CLIENTS} are the most"
        )
    owner = {person: person for person in people}
    for number in range(1, copies + 1):
        owner |= {f"{person}~{number}": person for person in people}
    if len(owner) < len(people) * (1 + copies):
        raise ConfigError("data.copies: a client has the name of another one's copy, such as 'a~1'")
    return owner


@dataclass(frozen=True, eq=False)
class Parts(Mapping[str, ClientData]):
    """Everyone's data by client; a copy's is made when it is asked for, the same each time, and not kept.

    Attributes:
        people: the data that there are.
        owner: by participant, whose they are; see ``copied``.
        triples: channels of 3-axis sensors, which turn together.
        degrees: largest angle by which they turn.
        seed: of all copies.
    """

    people: Mapping[str, ClientData]
    owner: Mapping[str, str]
    triples: tuple[Triple, ...]
    degrees: float
    seed: int

    def __getitem__(self, client: str) -> ClientData:
        """The data of one participant."""
        data = self.people[self.owner[client]]
        if self.owner[client] == client:
            return data
        return seen(data, self.triples, self.degrees, derive(self.seed, "copy", client))

    def __iter__(self) -> Iterator[str]:
        """All participants."""
        return iter(self.owner)

    def __len__(self) -> int:
        return len(self.owner)


def seen(data: ClientData, triples: tuple[Triple, ...], degrees: float, seed: int) -> ClientData:
    """The same windows through another sensor: all parts through the same one.

    Args:
        data: of one client.
        triples: channels that are turned together, about one axis for all of them (sensors in one case).
        degrees: largest angle.
        seed: everything follows from it.
    """
    random, channels = np.random.default_rng(seed), data.later.x.shape[-1]
    gain = np.asarray(1 + GAIN * random.standard_normal(channels), np.float32)
    turn = np.eye(channels, dtype=np.float32)
    if triples and degrees:
        drawn = rotations(1, degrees, torch.Generator().manual_seed(seed))[0].numpy()
        for triple in triples:
            turn[np.ix_(triple, triple)] = drawn.T
    every = [w for w in (data.train, data.judge, data.later) if len(w)]
    axes = tuple(range(data.later.x.ndim - 1))
    spread = np.stack([w.x.std(axis=axes) for w in every]) if every else np.zeros((1, channels))
    noise = np.asarray(NOISE * spread.mean(axis=0), np.float32)

    def through(windows: Windows) -> Windows:
        hiss: NDArray[np.float32] = random.standard_normal(windows.x.shape, dtype=np.float32)
        return replace(windows, x=(windows.x @ turn) * gain + hiss * noise)

    return replace(data, train=through(data.train), judge=through(data.judge), later=through(data.later))
