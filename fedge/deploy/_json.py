"""Reading JSON that is not trusted: every value has a type and bounds, and whatever else is refused."""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from fedge.errors import PayloadError

_HEX = re.compile(r"(?:[0-9a-f]{2})*")


def encode(raw: Mapping[str, object]) -> bytes:
    """``raw`` as JSON that people can read: indented, in the order of its keys, ASCII."""
    return (json.dumps(raw, indent=1, allow_nan=False) + "\n").encode("ascii")


def load(content: bytes, what: str, limit: int) -> dict[str, object]:
    """The JSON object in ``content``: UTF-8, at most ``limit`` bytes, no key twice, no NaN.

    Raises:
        PayloadError: it is something else; the message says that ``what`` is.
    """
    if len(content) > limit:
        raise PayloadError(f"{what} has more than {limit} bytes, the limit")
    try:
        raw = json.loads(content.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise PayloadError(f"{what} is not JSON: {str(error) or 'it nests too deep'}") from None
    if not isinstance(raw, dict):
        raise PayloadError(f"{what} is not a JSON object")
    return raw


def keys(
    raw: object, what: str, needed: Collection[str], optional: Collection[str] = ()
) -> dict[str, object]:
    """``raw`` as an object with all of ``needed``, perhaps some of ``optional``, and no other key."""
    if not isinstance(raw, dict):
        raise PayloadError(f"{what} must be an object")
    if missing := sorted(set(needed) - raw.keys()):
        raise PayloadError(f"{what} lacks {missing[0]!r}")
    if unknown := sorted(raw.keys() - set(needed) - set(optional)):
        raise PayloadError(f"{what} has an unknown key {unknown[0]!r:.40}")
    return raw


def schema(raw: Mapping[str, object], what: str, known: int) -> None:
    """Refuse another version of a format, before its keys are looked at.

    Raises:
        PayloadError: ``raw["schema"]`` is another number than ``known``, or none.
    """
    found = raw.get("schema")
    if type(found) is not int:
        raise PayloadError(f"{what} lacks 'schema', the number of its format")
    if found != known:
        remedy = "update fedge" if found > known else "make it again"
        raise PayloadError(f"{what} has format {found}; this fedge reads {known}: {remedy}")


def integer(raw: object, what: str, low: int, high: int) -> int:
    """A whole number within ``[low, high]``."""
    if type(raw) is not int or not low <= raw <= high:
        raise PayloadError(f"{what} must be a whole number from {low} to {high}")
    return raw


def text(raw: object, what: str, limit: int) -> str:
    """Text of 1 to ``limit`` printable characters."""
    if not isinstance(raw, str) or not 0 < len(raw) <= limit or not raw.isprintable():
        raise PayloadError(f"{what} must be text of 1 to {limit} characters")
    return raw


def binary(raw: object, what: str, size: int) -> bytes:
    """``size`` bytes from lower-case hex digits."""
    if not isinstance(raw, str) or len(raw) != 2 * size or not _HEX.fullmatch(raw):
        raise PayloadError(f"{what} must be {2 * size} hex digits")
    return bytes.fromhex(raw)


def array(raw: object, what: str, low: int, high: int) -> list[object]:
    """A list of ``low`` to ``high`` values."""
    if not isinstance(raw, list) or not low <= len(raw) <= high:
        raise PayloadError(f"{what} must be a list of {low} to {high} values")
    return raw


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands in it twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
