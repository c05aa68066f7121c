"""Reading JSON that is not trusted: every value has a type and bounds, and whatever else is refused."""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from typing import NoReturn

from fedge.errors import ReleaseError

MAX_INTEGER = (1 << 53) - 1  # what every JSON reader holds exactly
MAX_NUMBER = 3e38  # within float32
_MAX_DEPTH = 16
_MAX_ENTRIES = 64
_MAX_TEXT = 64
_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
_HEX = re.compile(r"[0-9a-f]*")


def canonical(raw: object) -> bytes:
    """The one way of writing ``raw`` as JSON: keys sorted, no spaces, ASCII, no NaN."""
    try:
        text = json.dumps(raw, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ReleaseError(f"the manifest cannot be written as JSON: {error}") from error
    return text.encode("ascii")


def load(content: bytes, limit: int) -> Mapping[str, object]:
    """The JSON object in ``content``, which must be canonical and at most ``limit`` bytes."""
    if len(content) > limit:
        raise ReleaseError(f"the manifest has {len(content)} bytes; the limit is {limit}")
    try:
        raw = json.loads(content.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise ReleaseError("the manifest is not JSON") from error
    _check_depth(raw, _MAX_DEPTH)
    if canonical(raw) != content:
        raise ReleaseError("the manifest is not canonical JSON (sorted keys, no spaces, ASCII)")
    return obj(raw, "manifest")


def _check_depth(raw: object, left: int) -> None:
    if left == 0:
        raise ReleaseError(f"the manifest nests more than {_MAX_DEPTH} deep")
    inner = raw.values() if isinstance(raw, dict) else raw if isinstance(raw, list) else ()
    for value in inner:
        _check_depth(value, left - 1)


def _refuse(what: str, expected: str, found: object) -> NoReturn:
    shown = repr(found) if isinstance(found, int | float | None) else type(found).__name__
    raise ReleaseError(f"the manifest's {what} must be {expected}, not {shown:.40}")


def keys(raw: Mapping[str, object], what: str, known: set[str]) -> None:
    """Refuse an unknown and a missing key."""
    unknown, missing = sorted(set(raw) - known), sorted(known - set(raw))
    if unknown:
        raise ReleaseError(f"the {what} has an unknown key {unknown[0]!r:.40}")
    if missing:
        raise ReleaseError(f"the {what} lacks the key {missing[0]!r}")


def obj(raw: object, what: str) -> Mapping[str, object]:
    """A JSON object."""
    return raw if isinstance(raw, dict) else _refuse(what, "an object", raw)


def table(raw: object, what: str) -> Mapping[str, object]:
    """A JSON object with a few entries, whose keys are names."""
    entries = obj(raw, what)
    if len(entries) > _MAX_ENTRIES:
        _refuse(what, f"at most {_MAX_ENTRIES} entries", len(entries))
    return {name(key, f"key in {what}"): value for key, value in entries.items()}


def array(raw: object, what: str, low: int, high: int) -> list[object]:
    """A JSON list of ``low`` to ``high`` values."""
    if not isinstance(raw, list) or not low <= len(raw) <= high:
        _refuse(what, f"a list of {low} to {high} values", len(raw) if isinstance(raw, list) else raw)
    return raw


def integer(raw: object, what: str, low: int, high: int = MAX_INTEGER) -> int:
    """A whole number in ``low..high``; a boolean is none."""
    if isinstance(raw, bool) or not isinstance(raw, int) or not low <= raw <= high:
        _refuse(what, f"a whole number in {low}..{high}", raw)
    return raw


def number(raw: object, what: str, low: float = -MAX_NUMBER, high: float = MAX_NUMBER) -> float:
    """A finite float, written as one (with a point or an exponent)."""
    if not isinstance(raw, float) or not low <= raw <= high:
        _refuse(what, f"a number with a decimal point in {low:g}..{high:g}", raw)
    return raw


def name(raw: object, what: str) -> str:
    """A short lower-case name, such as a task's."""
    if not isinstance(raw, str) or not _NAME.fullmatch(raw):
        _refuse(what, "a name of at most 64 of a-z, 0-9, '_', '.' and '-', starting with a letter", raw)
    return raw


def names(raw: object, what: str, most: int, least: int = 1) -> tuple[str, ...]:
    """Different printable texts of at most 64 characters, ``least`` to ``most`` of them."""
    values = array(raw, what, least, most)
    texts = tuple(v for v in values if isinstance(v, str) and 0 < len(v) <= _MAX_TEXT and v.isprintable())
    if len(texts) != len(values) or len(set(texts)) != len(texts):
        _refuse(what, f"different printable texts of at most {_MAX_TEXT} characters", raw)
    return texts


def hex_digits(raw: object, what: str, low: int, high: int) -> str:
    """``low`` to ``high`` lower-case hex digits."""
    if not isinstance(raw, str) or not low <= len(raw) <= high or not _HEX.fullmatch(raw):
        _refuse(what, f"{low} to {high} lower-case hex digits", raw)
    return raw


def binary(raw: object, what: str, size: int) -> bytes:
    """Exactly ``size`` bytes in base64."""
    if not isinstance(raw, str) or len(raw) != 4 * ((size + 2) // 3):
        _refuse(what, f"{size} bytes in base64", raw)
    try:
        content = base64.b64decode(raw, validate=True)
    except binascii.Error as error:
        raise ReleaseError(f"the manifest's {what} is not base64") from error
    if len(content) != size or base64.b64encode(content).decode() != raw:
        _refuse(what, f"{size} bytes in base64", raw)
    return content
