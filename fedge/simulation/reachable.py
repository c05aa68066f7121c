"""Whether a fleet can ever give a round what it needs: said before the run, with the numbers."""

from collections.abc import Mapping

from fedge.config import Config
from fedge.errors import ConfigError
from fedge.federated import frames
from fedge.federated.frames import Hello, Welcome
from fedge.federated.prepare import Prepared
from fedge.federated.strategy import needed
from fedge.simulation.cost import Work
from fedge.simulation.profiles import Profile

_FRAME = 200
"""Bytes that a round takes at the very least, either way."""

_HELLO = len(frames.encode_reply(Hello(bytes(32), bytes(64))))


def welcome_bytes(prepared: Prepared) -> int:
    """Size of the first download, plan and student, as it travels."""
    return len(frames.encode_task(Welcome(bytes(16), prepared.plan.to_dict(), prepared.snapshot)))


def check_reachable(
    config: Config, profiles: Mapping[str, Profile], work: Mapping[str, Work], welcome: int = 0
) -> None:
    """Refuse a fleet that can never give a round what it needs.

    Args:
        config: the run's settings.
        profiles: of each client.
        work: of each client's round.
        welcome: bytes of the first download, which every client has to take within the deadline before it
            takes part; 0 where it is not known yet.

    Raises:
        ConfigError: too few devices answer within the deadline, or are there at the same time.
    """
    edges = sorted({start for p in profiles.values() for start, _ in p.hours})
    there = [[c for c, p in profiles.items() if p.there(edge)] for edge in edges]
    most, least = max(map(len, there)), max(1, config.rounds.least)
    if most < least:
        raise ConfigError(
            f"a round needs {least} update(s), and never are more than {most} of {len(profiles)} devices "
            f"there at the same time; see hours in {config.fleet.devices}"
        )
    if not (deadline := config.rounds.deadline_seconds):
        return
    seconds = {c: round_seconds(p, work[c]) for c, p in profiles.items()}
    _check_deadline(config, there, seconds, "answer")
    if welcome:
        first = {c: welcome_seconds(p, work[c], welcome) for c, p in profiles.items()}
        late = {c: max(s, first[c]) if seconds[c] <= deadline else s for c, s in seconds.items()}
        _check_deadline(config, there, late, f"take the first download ({welcome:,} bytes)")


def _check_deadline(config: Config, there: list[list[str]], seconds: Mapping[str, float], what: str) -> None:
    """Refuse where at no time of the day enough of those who are there can do ``what`` in time."""
    deadline = config.rounds.deadline_seconds

    def fast(group: list[str]) -> int:
        return sum(seconds[c] <= deadline for c in group)

    def wanted(group: list[str]) -> int:
        return max(1, needed(config, len(group)))

    best = max(there, key=lambda group: fast(group) - wanted(group))
    if fast(best) < wanted(best):
        devices = "devices" if len(best) == len(seconds) else "devices that are there at the same time"
        raise ConfigError(
            f"a round needs {wanted(best)} update(s); {fast(best)} of {len(best)} {devices} can {what} "
            f"within rounds.deadline_seconds = {deadline:g}; the fastest takes "
            f"{_shown(min(seconds.values()))} s"
        )


def _shown(seconds: float) -> str:
    return f"{seconds:.3g}" if seconds < 1000 else f"{seconds:,.0f}"


def round_seconds(profile: Profile, work: Work) -> float:
    """A round of the smallest frames, asked for at the best time of the day."""
    down, up = 8 * _FRAME / profile.downlink, 8 * _FRAME / profile.uplink
    return _soonest(profile, down + work.training_seconds() / profile.compute, up)


def welcome_seconds(profile: Profile, work: Work, size: int) -> float:
    """The first download of ``size`` bytes and the answer to it, likewise."""
    down, up = 8 * size / profile.downlink, 8 * _HELLO / profile.uplink
    return _soonest(profile, down + work.scoring_seconds() / profile.compute, up)


def _soonest(profile: Profile, before: float, after: float) -> float:
    """From a task to its answer: the device must be there when it is asked, and again to send.

    It is best asked when a span of its hours begins or ends, or so that the work is done when one begins.
    """
    busy = profile.latency + before
    starts = [start for start, _ in profile.hours]
    asked = [edge for span in profile.hours for edge in span]
    asked += [start - busy for start in starts if profile.there(start - busy)]
    return min(profile.next_there(t + busy) - t for t in asked) + profile.latency + after
