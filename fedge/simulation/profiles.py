"""What simulated devices are like: how fast, on what link, when they are there, what their energy costs.

A fleet is a TOML file with one table for each kind of device. It says nothing about this machine: times come
from a cost model (``cost.py``), so a run repeats bit for bit anywhere.
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from fedge.config import SCENARIOS
from fedge.errors import ConfigError
from fedge.plugins import nearest

DAY = 86_400.0
_LARGEST = 1 << 20
_ALWAYS = "00:00-24:00"


@dataclass(frozen=True)
class Profile:
    """One kind of device.

    Attributes:
        name: what it is called.
        share: how many of the fleet are like this, as a share; what all kinds say adds up to 1.
        compute: training speed relative to the reference core of ``cost.py``.
        uplink: bits per second.
        downlink: bits per second.
        latency: seconds, one way.
        hours: when it can be reached, in seconds of the day: pairs of from and to, ascending.
        drop: probability that a task is never answered.
        compute_watts: power drawn while it trains, beyond idling.
        joules_per_byte: energy of the radio, either way.
        joules_per_message: energy to wake the radio, once each way.
        battery_joules: what it may spend on this in a day; 0 for no bound.
    """

    name: str
    share: float
    compute: float
    uplink: float
    downlink: float
    latency: float
    hours: tuple[tuple[float, float], ...] = ((0.0, DAY),)
    drop: float = 0.0
    compute_watts: float = 0.0
    joules_per_byte: float = 0.0
    joules_per_message: float = 0.0
    battery_joules: float = 0.0

    def there(self, now: float) -> bool:
        """Whether it can be reached at ``now``, in seconds since a midnight."""
        return any(start <= now % DAY < end for start, end in self.hours)

    def next_there(self, now: float) -> float:
        """``now`` if it is there, else when it is there again."""
        if self.there(now):
            return now
        midnight = now - now % DAY
        starts = [midnight + day * DAY + start for day in (0, 1) for start, _ in self.hours]
        return min(start for start in starts if start > now)


_RANGES: Mapping[str, tuple[float, float]] = {
    "share": (0.0, 1.0),
    "compute": (1e-6, 1e6),
    "uplink": (1.0, 1e12),
    "downlink": (1.0, 1e12),
    "latency": (0.0, 3600.0),
    "drop": (0.0, 0.99),
    "compute_watts": (0.0, 1e5),
    "joules_per_byte": (0.0, 1e3),
    "joules_per_message": (0.0, 1e5),
    "battery_joules": (0.0, 1e9),
}


def fleets() -> list[str]:
    """Names of the fleets that come with fedge."""
    return sorted({p.stem for folder in SCENARIOS for p in (folder / "fleets").glob("*.toml")})


def load_fleet(fleet: str) -> tuple[Profile, ...]:
    """The profiles of a named fleet, or of a TOML file.

    Raises:
        ConfigError: no such fleet, or a profile that is malformed or contradicts itself or the others.
    """
    places = [folder / "fleets" / f"{fleet}.toml" for folder in SCENARIOS]
    if fleet.endswith(".toml"):
        places = [Path(fleet)]
    path = next((p for p in places if p.is_file()), None)
    if path is None:
        hint = "no such file" if fleet.endswith(".toml") else nearest(fleet, fleets())
        raise ConfigError(f"fleet.devices: unknown fleet {fleet!r}; {hint}")
    try:
        if path.stat().st_size > _LARGEST:
            raise ConfigError(f"{path}: larger than 1 MiB, not a fleet")
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from None
    return _parse(raw, str(path))


def _parse(raw: Mapping[str, Any], where: str) -> tuple[Profile, ...]:
    if not raw:
        raise ConfigError(f"{where}: a fleet needs one table or more, one for each kind of device")
    profiles = tuple(_profile(name, table, f"{where}: {name}") for name, table in raw.items())
    total = sum(p.share for p in profiles)
    if abs(total - 1) > 1e-6:
        raise ConfigError(f"{where}: the shares of the kinds add up to {total:g}, not to 1")
    return profiles


def _profile(name: str, table: Any, where: str) -> Profile:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: expected a table of numbers, got {table!r:.60}")
    names = [f.name for f in fields(Profile) if f.name != "name"]
    for key in table:
        if key not in names:
            raise ConfigError(f"{where}: unknown key {key!r}; {nearest(key, names)}")
    for key in ("share", "compute", "uplink", "downlink", "latency"):
        if key not in table:
            raise ConfigError(f"{where}: {key} is missing")
    values: dict[str, Any] = {k: _number(v, k, where) for k, v in table.items() if k != "hours"}
    return Profile(name, **values, hours=_hours(table.get("hours", [_ALWAYS]), where))


def _number(value: Any, key: str, where: str) -> float:
    low, high = _RANGES[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"{where}: {key} must be a number within {low:g} .. {high:g}, not {value!r:.60}")
    return float(value)


def _hours(raw: Any, where: str) -> tuple[tuple[float, float], ...]:
    """``["22:00-06:00"]`` as seconds of the day; a span over midnight becomes two."""
    spans: list[tuple[float, float]] = []
    for text in raw if isinstance(raw, list) and raw else [raw]:
        start, end = _span(text, where)
        spans += [(start, end)] if start < end else [(0.0, end), (start, DAY)]
    spans = sorted(s for s in spans if s[0] < s[1])
    for (_, end), (start, _) in pairwise(spans):
        if start < end:
            raise ConfigError(f"{where}: the hours {raw!r:.200} overlap")
    return tuple(spans)


def _span(text: Any, where: str) -> tuple[float, float]:
    ends = text.split("-") if isinstance(text, str) else []
    try:
        start, end = (_seconds(part) for part in ends)
    except ValueError:
        raise ConfigError(f"{where}: hours are a list such as ['22:00-06:00'], not {text!r:.60}") from None
    if start == end or (start, end) == (DAY, 0.0):
        raise ConfigError(f"{where}: the hours {text!r} begin when they end")
    return start, end


def _seconds(text: str) -> float:
    found = re.fullmatch(r"\s*([0-9]{1,2}):([0-9]{2})\s*", text)
    hours, minutes = map(int, found.groups()) if found else (25, 0)
    if minutes > 59 or hours * 60 + minutes > 1440:
        raise ValueError(text)
    return hours * 3600.0 + minutes * 60.0


def deal(profiles: Sequence[Profile], clients: Sequence[str]) -> dict[str, Profile]:
    """A profile for each client: the shares hold for every run of clients, not only for all of them.

    Each client gets the kind that is furthest behind its share so far.
    """
    given = [0] * len(profiles)
    dealt = {}
    for number, client in enumerate(clients, 1):
        behind = [p.share * number - g for p, g in zip(profiles, given, strict=True)]
        chosen = behind.index(max(behind))
        given[chosen] += 1
        dealt[client] = profiles[chosen]
    return dealt
