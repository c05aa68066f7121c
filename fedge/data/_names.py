"""Names of clients, classes and channels: checking, ordering, finding the nearest."""

import difflib
import re
from collections.abc import Sequence

from fedge.errors import DataError

MAX_NAME = 128
"""Longest name of a client, class or channel, in characters."""


def natural_key(name: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """Sort key that orders numbers inside names by value: ``p2`` before ``p10``, ``-1`` before ``0``."""
    if re.fullmatch(r"-[0-9]+", name):
        return ((0, int(name), ""),), name
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return tuple((0, int(p), "") if p[0] in "0123456789" else (1, 0, p) for p in parts), name


def natural_sorted(names: Sequence[str]) -> list[str]:
    """The names in natural order."""
    return sorted(names, key=natural_key)


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a sentence: the known name nearest to ``name``, or some of the known ones."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {shorten(known)}"


def shorten(names: Sequence[str], most: int = 8) -> str:
    """A list of names for a message, cut after ``most`` of them."""
    shown = ", ".join(repr(n) for n in names[:most])
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"


def check_name(name: str, what: str) -> str:
    """``name`` itself, if it can be the name of a client, class or channel.

    Raises:
        DataError: empty, longer than ``MAX_NAME``, blank at an end, or with unprintable characters.
    """
    if not name:
        raise DataError(f"{what} is empty; give it a name")
    if len(name) > MAX_NAME:
        raise DataError(f"{what} is {len(name)} characters long; at most {MAX_NAME} are allowed")
    if not name.isprintable() or name != name.strip():
        raise DataError(f"{what} {name!r} has a blank at an end or characters that cannot be printed")
    return name
