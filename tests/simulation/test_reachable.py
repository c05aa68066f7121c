"""Fleets that can never give a round what it needs, and those that just can."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedge.config import Config, load_config
from fedge.errors import ConfigError
from fedge.simulation.cost import Work
from fedge.simulation.profiles import DAY, Profile
from fedge.simulation.reachable import check_reachable, round_seconds, welcome_seconds

WORK = Work(multiply_adds=0, windows=32, later=0, epochs=1, batch=16)
HELLO = 99  # bytes of a hello: its kind, and key and signature, each with its length
HOUR = 3600.0


def _profile(**values: object) -> Profile:
    base = {"name": "p", "share": 1.0, "compute": 1.0, "uplink": 1e6, "downlink": 1e6, "latency": 0.0}
    return Profile(**{**base, **values})  # type: ignore[arg-type]


def _config(**rounds: object) -> Config:
    config = load_config(None, {})
    return replace(config, rounds=replace(config.rounds, **rounds))  # type: ignore[arg-type]


def _check(config: Config, profiles: Mapping[str, Profile], welcome: int = 0) -> None:
    check_reachable(config, profiles, dict.fromkeys(profiles, WORK), welcome)


def _refused(config: Config, profiles: Mapping[str, Profile], welcome: int = 0) -> str:
    with pytest.raises(ConfigError) as caught:
        _check(config, profiles, welcome)
    return str(caught.value)


# ----- the first download


def test_a_deadline_that_rounds_keep_and_the_first_download_does_not() -> None:
    """A LoRa device sends 200 bytes in half a minute, and takes seven kilobytes in a quarter of an hour."""
    fleet = {c: _profile(uplink=55.0, downlink=55.0, latency=1.0) for c in "abcd"}
    config = _config(deadline_seconds=300.0)
    _check(config, fleet)
    said = _refused(config, fleet, 7294)
    assert "0 of 4 devices" in said
    assert "take the first download (7,294 bytes) within rounds.deadline_seconds = 300" in said
    assert f"the fastest takes {(7294 + HELLO) * 8 / 55 + 2.02:,.0f} s" in said
    _check(_config(deadline_seconds=1100.0), fleet, 7294)
    _check(_config(deadline_seconds=0.0), fleet, 7294)


def test_whoever_cannot_take_the_first_download_does_not_count_for_the_quorum() -> None:
    fleet = {"a": _profile(), "b": _profile(), "c": _profile(downlink=200.0), "d": _profile(downlink=200.0)}
    _check(_config(deadline_seconds=60.0, quorum=0.75), fleet)
    said = _refused(_config(deadline_seconds=60.0, quorum=0.75), fleet, 5000)
    assert "needs 3 update(s); 2 of 4 devices" in said
    _check(_config(deadline_seconds=60.0, quorum=0.5), fleet, 5000)


def test_a_device_must_be_able_to_do_both() -> None:
    """Two take the download in time and are too slow to train; two train in time and never get to it."""
    slow = {c: _profile(compute=1e-4) for c in "ab"}
    far = {c: _profile(downlink=200.0) for c in "cd"}
    said = _refused(_config(deadline_seconds=60.0, least=2), slow | far, 5000)
    assert "0 of 4 devices" in said


# ----- hours


def test_a_quorum_is_of_those_who_are_there_as_in_the_rounds() -> None:
    """Half by day and half by night: no round has all six, and none needs five."""
    fleet = {c: _profile(hours=((0.0, DAY / 2),)) for c in "abc"}
    fleet |= {c: _profile(hours=((DAY / 2, DAY),)) for c in "def"}
    _check(_config(quorum=0.8), fleet)
    _check(_config(quorum=0.8, deadline_seconds=60.0), fleet)
    said = _refused(_config(least=4), fleet)
    assert "needs 4 update(s), and never are more than 3 of 6 devices" in said


def test_slow_devices_of_the_night_do_not_stand_in_the_way_of_the_day() -> None:
    fleet = {c: _profile(hours=((0.0, DAY / 2),)) for c in "abc"}
    fleet |= {c: _profile(hours=((DAY / 2, DAY),), compute=1e-4) for c in "defgh"}
    _check(_config(quorum=1.0, deadline_seconds=60.0), fleet)


def test_work_that_outlasts_the_hours_misses_a_deadline_of_the_same_day() -> None:
    """Two hours a day, three hours of work: the answer is sent on the next day, 22 hours later at best."""
    brief = _profile(hours=((10 * HOUR, 12 * HOUR),), compute=WORK.training_seconds() / (3 * HOUR))
    said = _refused(_config(deadline_seconds=21 * HOUR), {"a": brief})
    assert "0 of 1 devices" in said
    _check(_config(deadline_seconds=22 * HOUR + 60), {"a": brief})


_HOURS = st.lists(st.integers(0, 24), min_size=2, max_size=6, unique=True).map(
    lambda edges: tuple(
        (a * HOUR, b * HOUR) for a, b in zip(sorted(edges)[::2], sorted(edges)[1::2], strict=False)
    )
)


def _wider(hours: tuple[tuple[float, float], ...], by: float) -> tuple[tuple[float, float], ...]:
    found = [(max(0.0, start - by), min(DAY, end + by)) for start, end in hours]
    found += [(DAY - by, DAY) for start, _ in hours if start == 0] + [(0.0, by) for _, e in hours if e == DAY]
    return tuple(sorted(found))


@given(_HOURS, st.floats(0.1, 40.0), st.floats(0.0, 100.0))
def test_the_shortest_way_is_that_of_a_search_over_the_day(
    hours: tuple[tuple[float, float], ...], work: float, latency: float
) -> None:
    """Asked at each ten minutes at which it is there; wider hours bound it from below."""
    profile = _profile(hours=hours, latency=latency, compute=WORK.training_seconds() / (work * HOUR))
    down = latency + 1600 / 1e6 + work * HOUR

    def naive(one: Profile) -> float:
        asked = [t for i in range(144) if one.there(t := 600.0 * i)]
        return min(one.next_there(t + down) - t for t in asked) + latency + 1600 / 1e6

    least = naive(replace(profile, hours=_wider(hours, 600.0))) - 600.0
    assert least <= round_seconds(profile, WORK) <= naive(profile) + 1e-6


def test_a_welcome_is_the_download_the_greeting_and_no_training() -> None:
    profile = _profile(downlink=800.0, uplink=80.0, latency=3.0, compute=0.5)
    greeting = WORK.scoring_seconds() / 0.5
    assert welcome_seconds(profile, WORK, 1000) == pytest.approx(2 * 3.0 + 10.0 + HELLO * 8 / 80 + greeting)
