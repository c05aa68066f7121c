"""Virtual time: the server's real loop, with answers that come when such devices would have sent them.

``VirtualClients`` stands between the server's loop and whoever runs the clients. Every task is run at once;
its answer is handed on in the order, and at the virtual time, in which it would have arrived: the frame's way
down, the client's work (``cost.py``), the answer's way up, and waiting for the hours at which the device is
there. Deadlines, quorum, over-selection and late answers are those of the server's own loop, which knows
nothing of this. Nothing here looks at a clock.
"""

import heapq
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from fedge.errors import ConfigError, FedgeError, PayloadError
from fedge.federated import frames
from fedge.federated.federation import Clients, NotYetError
from fedge.federated.frames import Train
from fedge.packing import pack, unpack
from fedge.seeding import derive
from fedge.simulation.cost import Work
from fedge.simulation.profiles import DAY, Profile

_GIVEN_UP = 60.0
"""Seconds that a client which left may take to come back, where there is no deadline; as on machines
(``fedge/flower/grid_clients.py``)."""

LONGEST_WAIT = 30 * DAY
"""If for so long nobody is there, nobody will be."""

Flight = tuple[float, str, bytes | FedgeError]
"""When an answer arrives, whose it is, and the answer; or when it is known that there will be none."""


@dataclass
class Spent:
    """What a client has spent.

    Attributes:
        seconds: of work.
        joules: of work and radio.
        today: joules since midnight of ``day``.
        day: number of the day.
        tasks: that it was sent.
    """

    seconds: float = 0.0
    joules: float = 0.0
    today: float = 0.0
    day: int = 0
    tasks: int = 0


@dataclass
class VirtualClients:
    """``Clients`` of a simulated fleet in virtual time.

    Attributes:
        inner: runs the clients.
        profiles: of each client.
        work: of each client's round.
        seed: of who drops out.
        keeps_late: hand answers on that come after their round.
        now: virtual seconds since the midnight before the start.
        spent: by client.
    """

    inner: Clients
    profiles: Mapping[str, Profile]
    work: Mapping[str, Work]
    seed: int
    keeps_late: bool = False
    now: float = 0.0
    spent: dict[str, Spent] = field(default_factory=dict)
    _busy: dict[str, float] = field(default_factory=dict)
    _late: list[Flight] = field(default_factory=list)

    def present(self) -> Collection[str]:
        """Clients that can be reached now, and are not at work, nor out of energy for today."""
        return [c for c in self.profiles if self._ready(c, self.now)]

    def wait(self) -> None:
        """Let time pass until somebody else is there."""
        later = min(self._next_ready(c) for c in self.profiles)
        if later - self.now > LONGEST_WAIT:
            raise ConfigError(f"fleet.devices: for {LONGEST_WAIT / DAY:g} days no device is there")
        self.now = max(later, math.nextafter(self.now, math.inf))

    def sleep(self, seconds: float) -> None:
        """Let so much time pass."""
        self.now += seconds

    def to_bytes(self) -> bytes:
        """Everything that a run which goes on later needs to know."""
        meta = {
            "now": self.now,
            "spent": {c: asdict(s) for c, s in self.spent.items()},
            "busy": self._busy,
            "late": [[w, c, str(a) if isinstance(a, FedgeError) else None] for w, c, a in self._late],
        }
        answers = {str(i): a for i, (_, _, a) in enumerate(self._late) if isinstance(a, bytes)}
        return pack(meta, {i: np.frombuffer(a, np.uint8) for i, a in answers.items()})

    def restore(self, content: bytes) -> None:
        """Go on from what ``to_bytes`` gave.

        Raises:
            PayloadError: it is something else.
        """
        meta, arrays = unpack(content)
        try:
            self.now, self._busy = float(meta["now"]), dict(meta["busy"])
            self.spent = {c: Spent(**s) for c, s in meta["spent"].items()}
            self._late = [
                (w, c, arrays[str(i)].tobytes() if error is None else FedgeError(error))
                for i, (w, c, error) in enumerate(meta["late"])
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PayloadError(f"the virtual clock was not kept whole: {error}") from None

    def ask(
        self, tasks: Mapping[str, bytes], deadline: float | None = None, enough: int | None = None
    ) -> Iterator[tuple[str, bytes | FedgeError]]:
        """See ``Clients``; ``deadline`` is in virtual seconds."""
        end = math.inf if deadline is None else self.now + deadline
        flights = [self._arrival(c, tasks[c], answer, end) for c, answer in self.inner.ask(tasks)]
        heapq.heapify(flights)
        self._forget(tasks)
        good = 0
        while (found := self._next(flights, end, late=enough is not None)) is not None:
            client, answer = found
            good += isinstance(answer, bytes)
            yield client, answer
            if enough is not None and good >= enough:
                self._keep(flights, tasks)
                return
        if flights:
            self.now = end
            self._keep(flights, tasks)
            for _, client, _ in sorted(flights, key=lambda f: (f[0], f[1])):
                yield client, NotYetError(f"no answer within {deadline:g} s")

    def _next(
        self, flights: list[Flight], end: float, *, late: bool
    ) -> tuple[str, bytes | FedgeError] | None:
        """What comes next by ``end``; ``late``: answers to earlier tasks are waited for too."""
        first = flights[0][0] if flights else math.inf
        older = self._late[0][0] if self._late else math.inf
        if older <= min(first, end) and (late or flights):
            found = heapq.heappop(self._late)
        elif flights and first <= end:
            found = heapq.heappop(flights)
        else:
            return None
        self.now = max(self.now, found[0])
        return found[1:]

    def _keep(self, flights: Iterable[Flight], tasks: Mapping[str, bytes]) -> None:
        """Answers that nobody waits for any more, and that may still count: those to rounds.

        A client that has dropped out is kept too, so that the server learns of it and asks it again.
        """
        if self.keeps_late:
            for flight in flights:
                if isinstance(frames.decode_task(tasks[flight[1]]), Train):
                    heapq.heappush(self._late, flight)

    def _forget(self, tasks: Collection[str]) -> None:
        """Answers to older tasks of clients that have a new one: they must not pass for answers to that."""
        self._late = [flight for flight in self._late if flight[1] not in tasks]
        heapq.heapify(self._late)

    def _arrival(self, client: str, frame: bytes, answer: bytes | FedgeError, end: float) -> Flight:
        """When this answer is there; or that the device dropped out, which is known by ``end``."""
        profile, spent = self.profiles[client], self.spent.setdefault(client, Spent())
        spent.tasks += 1
        asked = max(self.now, self._busy.get(client, 0.0))
        seconds, sent = self._seconds(client, frame), len(answer) if isinstance(answer, bytes) else 0
        done = profile.next_there(asked + profile.latency + 8 * len(frame) / profile.downlink + seconds)
        arrival = done + profile.latency + 8 * sent / profile.uplink
        self._spend(spent, profile, seconds, len(frame) + sent, done)
        self._busy[client] = arrival
        if self._drops(client, spent.tasks):
            known = asked + _GIVEN_UP if end == math.inf else math.nextafter(end, math.inf)
            return known, client, FedgeError("the client left and did not come back")
        return arrival, client, answer

    def _seconds(self, client: str, frame: bytes) -> float:
        task = frames.decode_task(frame)
        work, speed = self.work[client], self.profiles[client].compute
        trains = isinstance(task, Train) and task.learning_rate > 0
        return (work.training_seconds() if trains else work.scoring_seconds()) / speed

    def _drops(self, client: str, task: int) -> bool:
        generator = np.random.default_rng(derive(self.seed, "drop", client, task))
        return bool(generator.random() < self.profiles[client].drop)

    def _spend(self, spent: Spent, profile: Profile, seconds: float, size: int, when: float) -> None:
        joules = (
            seconds * profile.compute_watts + size * profile.joules_per_byte + 2 * profile.joules_per_message
        )
        if int(when // DAY) != spent.day:
            spent.day, spent.today = int(when // DAY), 0.0
        spent.seconds += seconds
        spent.joules += joules
        spent.today += joules

    def _ready(self, client: str, now: float) -> bool:
        return self._next_ready(client) <= now

    def _next_ready(self, client: str) -> float:
        """When it is there, done with its work, and has energy left."""
        profile, spent = self.profiles[client], self.spent.get(client, Spent())
        when = profile.next_there(max(self.now, self._busy.get(client, 0.0)))
        tired = 0 < profile.battery_joules <= spent.today and int(when // DAY) == spent.day
        return profile.next_there((spent.day + 1) * DAY) if tired else when
