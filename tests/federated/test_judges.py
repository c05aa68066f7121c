"""Who is held back to judge, and who cannot be."""

from pathlib import Path

import pytest

from fedge.errors import ConfigError
from fedge.federated.judges import held_back
from tests.federated.build import config_for

PEOPLE = ["p01-left", "p01-right", "p02-left", "p02-right", "p04-left", "p04-right"]


def _judges(fleet_file: Path, names: list[str], people: list[str] = PEOPLE, **settings: str) -> list[str]:
    changed = {"redistill__mode": "ensemble", "redistill__judge": "server", "redistill__judge_clients": names}
    return list(held_back(config_for(fleet_file, **(changed | settings)), people))


def test_ids_and_patterns_name_people_in_their_own_order(fleet_file: Path) -> None:
    assert _judges(fleet_file, ["p04-*"]) == ["p04-left", "p04-right"]
    assert _judges(fleet_file, ["p04-left", "p0[12]-left"]) == ["p01-left", "p02-left", "p04-left"]


def test_unless_named_they_are_the_last_quarter_and_two_at_least(fleet_file: Path) -> None:
    assert _judges(fleet_file, []) == PEOPLE[-2:]
    assert len(_judges(fleet_file, [], [str(n) for n in range(20)])) == 5


def test_nobody_is_held_back_where_clients_judge_or_nothing_is_judged(fleet_file: Path) -> None:
    assert _judges(fleet_file, [], redistill__judge="clients") == []
    assert _judges(fleet_file, [], redistill__mode="none") == []


@pytest.mark.parametrize(
    ("names", "words"),
    [(["p07-*"], "p07"), (["p01-left"], "two or more"), (["*"], "give it more"), (["p04-*", "x"], "'x'")],
)
def test_who_cannot_judge_is_refused(fleet_file: Path, names: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        _judges(fleet_file, names)


def test_two_people_cannot_both_teach_and_judge(fleet_file: Path) -> None:
    with pytest.raises(ConfigError, match="give it more"):
        _judges(fleet_file, [], PEOPLE[:2])
