"""What the server remembers from round to round, and how it becomes one byte string in the journal."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedge.errors import PayloadError
from fedge.federated.coding import Weights
from fedge.federated.frames import HASH_BYTES, Scores, Step, StepKind
from fedge.packing import pack, unpack

Steps = tuple[Step, ...]

_NUMBERS = ("counted", "offences", "barred", "bars", "release")
_UNKNOWN = -1  # the version of a client that holds none, as it is stored


@dataclass(frozen=True, slots=True)
class ClientRecord:
    """What the server knows of one client.

    Attributes:
        version: of the global weights that it holds; ``None`` where that is not known.
        lineage: the name of the weights that it holds (``lineage.py``).
        counted: the last round in which an update of it was counted; 0 for none.
        offences: sound signatures under unsound content, one after the other.
        barred: the last round that it takes no part in for that; 0 for none.
        bars: how often it was barred.
        release: the release that it runs; 0 where that is not known.
    """

    version: int | None = None
    lineage: bytes = b""
    counted: int = 0
    offences: int = 0
    barred: int = 0
    bars: int = 0
    release: int = 0


@dataclass(frozen=True)
class Candidate:
    """A re-distilled student that is being judged.

    Attributes:
        made: the round after which it was made.
        step: from the global weights of that round to the candidate.
        scores: numbers of judges on the server, by name, where those judge.
    """

    made: int
    step: Step
    scores: Mapping[str, Scores] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class FederationState:
    """The federation after ``round`` completed rounds.

    Attributes:
        round: rounds completed; also the version of ``weights``.
        weights: the global weights as the clients hold them.
        residual: the downlink codec's state: what the clients have not been told yet.
        history: ``{version: steps}``, the steps that led to each of the last versions.
        clients: what is known of each client, by id.
        candidate: a re-distilled student on trial, if there is one.
        released: number of releases so far.
        optimizer: the server optimizer's state.
        nudged: whether, in ``gradient`` mode, the judges want the server's step in every round.
        taught: the round after which the teacher last learned from the federation; 0 for never.
        late: clients whose answer may still come: its round, and the version and name of what they hold.
    """

    round: int
    weights: Weights
    residual: Mapping[str, NDArray[np.generic]]
    history: Mapping[int, Steps] = field(default_factory=dict)
    clients: Mapping[str, ClientRecord] = field(default_factory=dict)
    candidate: Candidate | None = None
    released: int = 0
    optimizer: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    nudged: bool = False
    taught: int = 0
    late: Mapping[str, tuple[int, int, bytes]] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Everything, exact."""
        blobs: list[bytes] = []

        def blob(step: Step) -> list[int]:
            blobs.append(step.payload)
            return [int(step.kind), len(blobs) - 1]

        meta: dict[str, Any] = {
            "round": self.round,
            "history": [[v, [blob(s) for s in steps]] for v, steps in self.history.items()],
            "clients": list(self.clients),
            "candidate": None if (c := self.candidate) is None else [c.made, blob(c.step), _numbers(c)],
            "released": self.released,
            "nudged": self.nudged,
            "taught": self.taught,
            "late": {c: [number, version, name.hex()] for c, (number, version, name) in self.late.items()},
        }
        arrays: dict[str, NDArray[Any]] = {f"weights/{n}": w for n, w in self.weights.items()}
        arrays |= {f"residual/{n}": np.asarray(r) for n, r in self.residual.items()}
        arrays |= {f"optimizer/{n}": np.asarray(o) for n, o in self.optimizer.items()}
        arrays |= {f"blob/{i}": np.frombuffer(b, np.uint8) for i, b in enumerate(blobs)}
        arrays |= _columns(self.clients.values())
        return pack(meta, arrays)

    @staticmethod
    def from_bytes(content: bytes) -> "FederationState":
        """What ``to_bytes`` wrote.

        Raises:
            PayloadError: damaged.
        """
        try:
            return FederationState._restored(*unpack(content))
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise PayloadError(f"the saved state is damaged: {error}") from None

    @staticmethod
    def _restored(meta: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> "FederationState":
        def step(saved: list[int]) -> Step:
            return Step(StepKind(saved[0]), arrays[f"blob/{saved[1]}"].tobytes())

        def below(prefix: str) -> dict[str, NDArray[Any]]:
            return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}

        candidate = meta["candidate"]
        return FederationState(
            round=meta["round"],
            weights=below("weights/"),
            residual=below("residual/"),
            history={v: tuple(step(s) for s in steps) for v, steps in meta["history"]},
            clients=dict(zip(meta["clients"], _records(below("clients/")), strict=True)),
            candidate=None if candidate is None else _candidate(candidate, step(candidate[1])),
            released=meta["released"],
            optimizer=below("optimizer/"),
            nudged=meta["nudged"],
            taught=meta["taught"],
            late={c: (n, v, bytes.fromhex(name)) for c, (n, v, name) in meta["late"].items()},
        )


def _columns(records: Collection[ClientRecord]) -> dict[str, NDArray[Any]]:
    """What is known of all clients, a column for each field: some 60 bytes a client, and no text to parse."""
    numbers = {n: np.fromiter((getattr(r, n) for r in records), np.int64, len(records)) for n in _NUMBERS}
    versions = np.fromiter((_UNKNOWN if r.version is None else r.version for r in records), np.int64)
    names = np.frombuffer(b"".join(r.lineage.ljust(HASH_BYTES, b"\0") for r in records), np.uint8)
    sizes = np.fromiter((len(r.lineage) for r in records), np.uint8, len(records))
    columns: dict[str, NDArray[Any]] = {"version": versions, "lineage": names, "lineage_size": sizes}
    columns |= numbers
    return {f"clients/{name}": column for name, column in columns.items()}


def _records(columns: Mapping[str, NDArray[Any]]) -> Iterator[ClientRecord]:
    """The records that ``_columns`` took apart; those that are the same are one object."""
    alike = dict[ClientRecord, ClientRecord]()
    names = columns["lineage"].reshape(-1, HASH_BYTES)
    numbers = zip(*(columns[n].tolist() for n in _NUMBERS), strict=True)
    known = zip(columns["version"].tolist(), names, columns["lineage_size"].tolist(), numbers, strict=True)
    for version, name, size, rest in known:
        record = ClientRecord(None if version == _UNKNOWN else version, name[:size].tobytes(), *rest)
        yield alike.setdefault(record, record)


def _numbers(candidate: Candidate) -> dict[str, list[Any]]:
    """JSON has no NaN: a score that is not defined is null."""
    return {
        name: [s.windows, *(None if v != v else v for v in astuple(s)[1:])]
        for name, s in candidate.scores.items()
    }


def _candidate(saved: list[Any], step: Step) -> Candidate:
    nan = float("nan")
    scores = {n: Scores(v[0], *(nan if x is None else x for x in v[1:])) for n, v in saved[2].items()}
    return Candidate(saved[0], step, scores)
