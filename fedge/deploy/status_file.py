"""``status.json``: a federation in a few numbers, written by its run, read by whoever looks.

It is replaced whole, so a reader never sees half of it. It holds nothing that has to survive: the journal
does, and what is missing here is made again from it. Scores are what clients say of the weights they
received, on their own later data; bytes are the encoded payloads of training, without framing, TLS and
releases.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args

from fedge.deploy import _files, _json
from fedge.errors import PayloadError, SetupError

STATUS = "status.json"
MAX_BYTES = 64 << 20
MAX_CLIENTS = 1 << 17
ROUNDS, LAST = 1000, 50
"""So many rounds, and so many refused updates and releases, are kept; the journal and ``metrics.jsonl`` have
all of them."""

_SCHEMA = 1

Number = int | float
_T = TypeVar("_T")


@dataclass(frozen=True)
class RoundRow:
    """One completed round.

    Attributes:
        number: 1, 2, 3, ...
        ended: Unix time; ``None`` if that is not known any more.
        seconds: that it took.
        asked: clients that got a task.
        counted: clients whose update is in the global weights.
        score: mean over the clients that gave one.
        loss: mean training loss.
        up: bytes, all clients together.
        down: bytes, likewise.
        release: version that was published in it.
        redistilled: whether a re-distilled student was accepted in it; ``None`` where none was judged.
    """

    number: int
    ended: Number | None
    seconds: Number
    asked: int
    counted: int
    score: Number | None
    loss: Number | None
    up: int
    down: int
    release: int | None
    redistilled: bool | None


@dataclass(frozen=True)
class ClientRow:
    """One client.

    Attributes:
        last: the last round in which an update of it was counted; 0 for none.
        counted: how many were.
        refused: how many answers were not taken, or did not come.
        offences: sound signatures under unsound content, one after the other.
        barred: the last round that it takes no part in for that; 0 for none.
        up: bytes.
        down: bytes.
        score: the last that it gave.
    """

    last: int = 0
    counted: int = 0
    refused: int = 0
    offences: int = 0
    barred: int = 0
    up: int = 0
    down: int = 0
    score: Number | None = None


@dataclass(frozen=True)
class Refusal:
    """An answer that did not count. ``kind`` is the error's name, or ``failed`` where none came."""

    time: Number
    round: int
    client: str
    kind: str
    reason: str


@dataclass(frozen=True)
class ReleaseRow:
    """A release: its size in bytes, and how many clients took it into use or refused it."""

    version: int
    round: int
    bytes: int
    taken: int
    refused: int
    path: str
    sha256: str


@dataclass(frozen=True)
class Totals:
    """Since the federation began: updates, bytes, attempts given up, releases, verdicts."""

    counted: int = 0
    up: int = 0
    down: int = 0
    given_up: int = 0
    releases: int = 0
    taken: int = 0
    not_taken: int = 0
    accepted: int = 0
    rejected: int = 0


@dataclass(frozen=True)
class About:
    """Whose status it is: id and name of the federation, what it learns, how long, how it is scored."""

    federation: str
    name: str
    scenario: str
    task: str
    metric: str
    planned: int  # 0: nobody here knows

    def done(self, rounds: int) -> bool:
        """Whether so many rounds are all."""
        return 0 < self.planned <= rounds


@dataclass
class Snapshot:
    """Everything in ``status.json``.

    Attributes:
        about: whose it is.
        written: Unix time.
        rounds: completed.
        stages: the open ones: name and the Unix time of its beginning, outermost first.
        waiting: clients there and needed, while a round waits for them.
        enrolled: clients that may take part.
        present: clients that were there at the last look.
        totals: sums.
        refused: answers that did not count, by kind.
        log: the last rounds, in order.
        refusals: the last of them, in order.
        releases: the last of them, in order.
        clients: by name.
    """

    about: About
    written: Number = 0
    rounds: int = 0
    stages: list[tuple[str, Number]] = field(default_factory=list)
    waiting: tuple[int, int] | None = None
    enrolled: int = 0
    present: list[str] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)
    refused: dict[str, int] = field(default_factory=dict)
    log: list[RoundRow] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    releases: list[ReleaseRow] = field(default_factory=list)
    clients: dict[str, ClientRow] = field(default_factory=dict)

    def encode(self) -> bytes:
        """As ``status.json``."""
        raw = {"schema": _SCHEMA, **vars(self)}
        return json.dumps(raw, default=vars, allow_nan=False, separators=(",", ":")).encode()

    @staticmethod
    def parse(content: bytes) -> "Snapshot":
        """What ``encode`` gave.

        Raises:
            PayloadError: damaged, of another format, or beyond a limit.
        """
        raw = _json.load(content, "it", MAX_BYTES)
        _json.schema(raw, "it", _SCHEMA)
        given = _json.keys(raw, "it", ["schema", *(f.name for f in fields(Snapshot))])
        try:
            return _snapshot(given)
        except (TypeError, ValueError, AttributeError) as error:
            raise PayloadError(f"it holds something else than a status: {error}") from None


def load(state: Path) -> Snapshot:
    """The status of the federation in the state directory ``state``.

    Raises:
        SetupError: there is none, or it is damaged.
    """
    path = state / STATUS
    if not path.exists():
        raise SetupError(f"{path} is missing: no run has begun there yet; is it the right --state?")
    try:
        return Snapshot.parse(_files.read(path, MAX_BYTES))
    except PayloadError as error:
        raise SetupError(f"{path} is damaged: {error}; the server writes it again when it starts") from None


def _snapshot(raw: Mapping[str, Any]) -> Snapshot:
    waiting, stages, clients = raw["waiting"], raw["stages"], raw["clients"]
    if len(clients) > MAX_CLIENTS:
        raise PayloadError(f"it names more than {MAX_CLIENTS} clients")
    return Snapshot(
        about=_made(About, raw["about"]),
        written=_a(Number, raw["written"]),
        rounds=_a(int, raw["rounds"]),
        stages=[(_a(str, name), _a(Number, since)) for name, since in stages],
        waiting=None if waiting is None else (_a(int, waiting[0]), _a(int, waiting[1])),
        enrolled=_a(int, raw["enrolled"]),
        present=[_a(str, name) for name in _json.array(raw["present"], "present", 0, MAX_CLIENTS)],
        totals=_made(Totals, raw["totals"]),
        refused={kind: _a(int, n) for kind, n in raw["refused"].items()},
        log=[_made(RoundRow, r) for r in _json.array(raw["log"], "log", 0, ROUNDS)],
        refusals=[_made(Refusal, r) for r in _json.array(raw["refusals"], "refusals", 0, LAST)],
        releases=[_made(ReleaseRow, r) for r in _json.array(raw["releases"], "releases", 0, LAST)],
        clients={name: _made(ClientRow, r) for name, r in clients.items()},
    )


def _a(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and bool not in get_args(kind)):
        raise PayloadError(f"{value!r:.40} stands where it should be {getattr(kind, '__name__', kind)}")
    return value


def _made(kind: type[_T], raw: object) -> _T:
    """A row from an object with exactly its fields, each of its type."""
    expected = fields(kind)  # type: ignore[arg-type]  # every row is a dataclass
    given = _json.keys(raw, kind.__name__, [f.name for f in expected])
    return kind(**{f.name: _a(f.type, given[f.name]) for f in expected})
