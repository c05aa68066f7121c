"""What a gateway lets a stranger, an address and a client take from it. No sockets, no clock."""

import ipaddress
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limits:
    """Of a gateway.

    Attributes:
        connections: most connections at a time.
        strangers: most connections that have not said a valid hello yet.
        strangers_per_address: of those, most from one address.
        per_address: most connections from one address; many devices may stand behind one.
        arrivals: new connections per second from one address.
        arrivals_burst: how many at once.
        greeting: seconds for TLS, WebSocket and hello together.
        silence: seconds after which a device that says nothing is hung up on.
        messages: per second and client; a faster one is read more slowly.
        messages_burst: how many at once.
        address_messages: per second and address, likewise.
        address_burst: how many at once.
        answer: most bytes of one answer.
        memory: most bytes of all answers that are on their way.
        task: most bytes of one task.
        linger: seconds that a client may be gone before the upstream is told.
        stalled: seconds between two looks at answers of which nothing comes.
        takeovers: how often another process may take a client's place, per minute.
        takeovers_burst: how often at once.
    """

    connections: int = 20_000
    strangers: int = 256
    strangers_per_address: int = 24
    per_address: int = 4096
    arrivals: float = 20.0
    arrivals_burst: int = 200
    greeting: float = 10.0
    silence: int = 300
    messages: float = 200.0
    messages_burst: int = 1000
    address_messages: float = 2000.0
    address_burst: int = 10_000
    answer: int = 64 << 20
    memory: int = 512 << 20
    task: int = 256 << 20
    linger: float = 30.0
    stalled: float = 2.0
    takeovers: float = 1.0
    takeovers_burst: int = 5


@dataclass
class Bucket:
    """A token bucket: ``rate`` tokens per second, at most ``burst`` of them. It starts full."""

    rate: float
    burst: float
    _level: float = field(init=False)
    _then: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._level = self.burst

    def allows(self, now: float) -> bool:
        """Take a token if there is one. ``now``: seconds that only go up."""
        self._fill(now)
        if self._level < 1:
            return False
        self._level -= 1
        return True

    def wait(self, now: float) -> float:
        """Take a token in any case; gives the seconds to wait before the next one."""
        self._fill(now)
        self._level -= 1
        return max(0.0, -self._level / self.rate)

    def full(self, now: float) -> bool:
        """Whether it is as if nothing had ever been taken."""
        self._fill(now)
        return self._level >= self.burst

    def _fill(self, now: float) -> None:
        self._level = min(self.burst, self._level + max(0.0, now - self._then) * self.rate)
        self._then = max(now, self._then)


def prefix(address: str) -> str:
    """What counts as one address: an IPv4 address, or the /64 of an IPv6 address."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((int(found) >> 64 << 64, 64)))


@dataclass
class Address:
    """What one address has taken."""

    arrivals: Bucket
    messages: Bucket
    connections: int = 0
    strangers: int = 0


class Addresses:
    """All addresses that have taken anything lately; those that have not are forgotten."""

    def __init__(self, limits: Limits, most: int = 65_536) -> None:
        """At most ``most`` addresses are told apart; the rest share one record."""
        self._limits, self._most = limits, most
        self._known: dict[str, Address] = {}
        self.connections = self.strangers = 0

    def arrive(self, address: str, now: float) -> Address | None:
        """A new connection from ``address``; ``None`` if it is refused."""
        limits = self._limits
        if self.connections >= limits.connections or self.strangers >= limits.strangers:
            return None
        known = self._of(prefix(address), now)
        crowded = known.connections >= limits.per_address or known.strangers >= limits.strangers_per_address
        if not known.arrivals.allows(now) or crowded:
            return None
        self._count(known, 1, 1)
        return known

    def greeted(self, known: Address) -> None:
        """A connection is no stranger's any more."""
        self._count(known, 0, -1)

    def leave(self, known: Address, *, stranger: bool) -> None:
        """A connection has ended."""
        self._count(known, -1, -1 if stranger else 0)

    def _count(self, known: Address, connections: int, strangers: int) -> None:
        known.connections += connections
        known.strangers += strangers
        self.connections += connections
        self.strangers += strangers

    def _of(self, key: str, now: float) -> Address:
        if key not in self._known and len(self._known) >= self._most:
            self.forget(now)
        if key not in self._known and len(self._known) >= self._most:
            key = ""
        if key not in self._known:
            limits = self._limits
            self._known[key] = Address(
                Bucket(limits.arrivals, limits.arrivals_burst),
                Bucket(limits.address_messages, limits.address_burst),
            )
        return self._known[key]

    def forget(self, now: float) -> None:
        """Drop the addresses of which there is nothing to remember."""
        self._known = {
            k: a
            for k, a in self._known.items()
            if a.connections or not (a.arrivals.full(now) and a.messages.full(now))
        }

    def __len__(self) -> int:
        return len(self._known)
