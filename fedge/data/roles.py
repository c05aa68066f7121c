"""Who is the server's, who takes part, and who is never seen in training."""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import combinations

from fedge.data._names import natural_sorted, nearest, shorten
from fedge.data.types import Roles
from fedge.errors import ConfigError, DataError


def assign_roles(
    ids: Sequence[str],
    server_clients: Sequence[str] = (),
    unseen_clients: Sequence[str] = (),
    take: int | None = None,
    *,
    unlabelled_clients: Sequence[str] = (),
) -> Roles:
    """Give each client its role.

    By default the first fifth of the sorted ids (rounded down, one at least) is the server's own labelled
    data and the last fifth is unseen; the rest take part. For ``watch`` that makes persons 1 and 2 the
    server's and 9 and 10 unseen.

    Args:
        ids: all clients.
        server_clients: the server's instead of the default: ids, or patterns such as ``p03-*``.
        unseen_clients: the unseen ones instead of the default, likewise.
        take: how many of the participants take part (the first ones); None for all.
        unlabelled_clients: whose windows the server has without labels, likewise; by default nobody's. They
            have no other role, and the defaults are taken from the others.

    Raises:
        DataError: fewer than 3 clients.
        ConfigError: an unknown id, an overlap, nobody left to take part, or ``take`` out of range.
    """
    everyone = natural_sorted(list(dict.fromkeys(ids)))
    if len(everyone) < 3:
        raise DataError(f"there are {len(everyone)} client(s) ({shorten(everyone)}); 3 or more are needed")
    fifth = max(1, len(everyone) // 5)
    named = {
        setting: _matching(everyone, wanted, setting)
        for setting, wanted in (
            ("data.server_clients", server_clients),
            ("data.unseen_clients", unseen_clients),
            ("data.server_unlabelled", unlabelled_clients),
        )
    }
    _check_apart(named)
    server, unseen, unlabelled = named.values()
    others = [c for c in everyone if c not in unlabelled]
    if not unseen:
        unseen = [c for c in others if c not in server][-fifth:]
    if not server:
        server = [c for c in others if c not in unseen][:fifth]
    rest = [c for c in others if c not in server and c not in unseen]
    if not rest or not server or not unseen:
        raise ConfigError(
            f"of {len(everyone)} clients {len(server)} are the server's, {len(unseen)} unseen and "
            f"{len(unlabelled)} unlabelled, which leaves too few; name fewer in data.server_clients, "
            "data.unseen_clients or data.server_unlabelled"
        )
    return Roles(tuple(server), tuple(_first(rest, take)), tuple(unseen), tuple(unlabelled))


def _check_apart(named: Mapping[str, list[str]]) -> None:
    """Refuse a client that two settings name."""
    for (one, first), (other, second) in combinations(named.items(), 2):
        both = [c for c in first if c in second]
        if both:
            raise ConfigError(f"{shorten(both)}: in {one} and in {other}; choose one")


def _matching(everyone: list[str], wanted: Sequence[str], setting: str) -> list[str]:
    """The clients that ``wanted`` names, as ids or as patterns, in sorted order."""
    known = set(everyone)
    found: set[str] = set()
    for name in wanted:
        hits = {name} & known or (
            {c for c in everyone if fnmatchcase(c, name)} if re.search(r"[*?[]", name) else set()
        )
        if not hits:
            raise ConfigError(f"{setting} names {name!r}, which no client is; {nearest(name, everyone)}")
        found |= hits
    return [c for c in everyone if c in found]


def _first(participants: list[str], take: int | None) -> list[str]:
    if take is None:
        return participants
    if take < 1:
        raise ConfigError(f"{take} clients asked for; 1 or more must take part")
    if take > len(participants):
        raise ConfigError(
            f"{take} clients asked for, but {len(participants)} can take part "
            "(the others are the server's or unseen); ask for fewer"
        )
    return participants[:take]
