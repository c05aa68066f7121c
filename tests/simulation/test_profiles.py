"""Fleets: what a profile says, and what is refused."""

from collections import Counter
from pathlib import Path

import pytest

from fedge.errors import ConfigError
from fedge.simulation.profiles import DAY, Profile, deal, fleets, load_fleet

LINE = "share = 1.0\ncompute = 0.5\nuplink = 1e6\ndownlink = 2e6\nlatency = 0.1\n"


def _written(folder: Path, text: str) -> str:
    path = folder / "own.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_every_fleet_that_comes_along_is_sound() -> None:
    assert {"phones", "gateways", "lorawan", "5g"} <= set(fleets())
    for name in fleets():
        assert sum(p.share for p in load_fleet(name)) == pytest.approx(1)


def test_a_users_own_fleet(tmp_path: Path) -> None:
    (own,) = load_fleet(_written(tmp_path, f"[cam]\n{LINE}hours = ['22:00-06:30']\n"))
    assert own.name == "cam"
    assert own.hours == ((0.0, 6.5 * 3600), (22 * 3600.0, DAY))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "needs one table"),
        ("a = 1", "expected a table"),
        ("[a", "own.toml"),
        (f"[a]\n{LINE}wings = 2", "unknown key 'wings'"),
        (f"[a]\n{LINE}".replace("share = 1.0", "share = 0.4"), "add up to 0.4"),
        (f"[a]\n{LINE}[b]\n{LINE}", "add up to 2"),
        (f"[a]\n{LINE}".replace("compute = 0.5", "compute = 0"), "compute must be a number within"),
        (f"[a]\n{LINE}".replace("latency = 0.1", "latency = nan"), "latency must be"),
        (f"[a]\n{LINE}".replace("uplink = 1e6\n", ""), "uplink is missing"),
        (f"[a]\n{LINE}drop = true", "drop must be"),
        (f"[a]\n{LINE}hours = '9 to 5'", "hours are a list"),
        (f"[a]\n{LINE}hours = ['25:00-26:00']", "hours are a list"),
        (f"[a]\n{LINE}hours = ['09:00-09:00']", "begin when they end"),
        (f"[a]\n{LINE}hours = ['24:00-00:00']", "begin when they end"),
        (f"[a]\n{LINE}hours = ['1_0:00-11:00']", "hours are a list"),
        (f"[a]\n{LINE}hours = ['\u0663:00-05:00']", "hours are a list"),
        (f"[a]\n{LINE}drop = 1{'0' * 400}", "drop must be a number within 0 .. 0.99, not 1000"),
        (f"[a]\n{LINE}hours = ['09:00-12:00', '11:00-13:00']", "overlap"),
        (f"[a]\n{LINE}hours = []", "hours are a list"),
    ],
)
def test_a_fleet_that_contradicts_itself_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load_fleet(_written(tmp_path, text))
    assert len(str(caught.value)) < 400


def test_an_unknown_fleet_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="phones"):
        load_fleet("phone")


def test_hours_over_midnight() -> None:
    night = Profile("n", 1, 1, 1, 1, 0, ((0.0, 6 * 3600.0), (22 * 3600.0, DAY)))
    assert night.there(3 * DAY + 3600)
    assert not night.there(12 * 3600.0)
    assert night.next_there(12 * 3600.0) == 22 * 3600.0
    assert night.next_there(DAY + 12 * 3600.0) == DAY + 22 * 3600.0
    assert night.next_there(5.0) == 5.0


def test_shares_hold_for_every_beginning_of_the_fleet() -> None:
    profiles = load_fleet("phones")
    clients = [f"c{i}" for i in range(1000)]
    dealt = deal(profiles, clients)
    for count in (10, 20, 500, 1000):
        found = Counter(dealt[c].name for c in clients[:count])
        for profile in profiles:
            assert abs(found[profile.name] - profile.share * count) <= 1
