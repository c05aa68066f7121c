"""The state of a device's slots as one small file, and back, strictly."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar

from fedge.edge._sealed import seal, unseal
from fedge.edge.slots import MAX_FINDINGS, SLOTS, Held, Slots
from fedge.edge.watch import Finding, Promise, Watch
from fedge.errors import PayloadError

SCHEMA = 1
MAX_STATE_BYTES = 1 << 16
_MAX_INTEGER = (1 << 53) - 1
_HEX = re.compile(r"[0-9a-f]{64}")
_VOUCHERS = re.compile(r"([0-9a-f]{64})?")
_FEDERATION = re.compile(r"([0-9a-f]{16,64})?")
_CODE = re.compile(r"[a-z_]{1,32}")
_WHAT = "the state of this device's slots"
_Record = TypeVar("_Record", Watch, Promise)


def to_bytes(state: Slots) -> bytes:
    """The file's content."""
    return seal(asdict(state) | {"schema": SCHEMA})


def parse(content: bytes) -> Slots:
    """What :func:`to_bytes` was given.

    Raises:
        PayloadError: it is damaged, of another format, or says what no device's state can.
    """
    raw = unseal(content, _WHAT)
    if raw.get("schema") != SCHEMA:
        raise PayloadError(f"{_WHAT} has format {raw.get('schema')!r:.20}; this fedge reads {SCHEMA}")
    _keys(raw, {f.name for f in fields(Slots)} | {"schema"})
    state = Slots(
        active=_active(raw["active"]),
        a=_held(raw["a"]),
        b=_held(raw["b"]),
        highest=_integer(raw["highest"]),
        floor=_integer(raw["floor"]),
        federation=_hex(raw["federation"], _FEDERATION),
        vouchers=_hex(raw["vouchers"], _VOUCHERS),
        pinned=_boolean(raw["pinned"]),
        trial=_boolean(raw["trial"]),
        watch=_watch(raw["watch"]),
        lost=_held(raw["lost"]),
        findings=tuple(_finding(f) for f in _array(raw["findings"])),
    )
    if state.active is not None and state.current is None:
        raise _refused("an active slot with nothing in it")
    return state


def _held(raw: object) -> Held | None:
    if raw is None:
        return None
    table = _keys(raw, {f.name for f in fields(Held)})
    return Held(_integer(table["version"], 1), _hex(table["manifest"]), _hex(table["model"]))


def _watch(raw: object) -> Watch:
    table = dict(_keys(raw, {f.name for f in fields(Watch)}))
    promise = _numbers(Promise, table.pop("promise"))
    return _numbers(Watch, {**table, "promise": None}, promise=promise)


def _numbers(kind: type[_Record], raw: object, **given: Any) -> _Record:
    """A record of which every field but those ``given`` is a number, or may be None where its default is."""
    table, values = _keys(raw, {f.name for f in fields(kind)}), dict(given)
    for field in fields(kind):
        if field.name in given:
            continue
        value = table[field.name]
        if isinstance(field.default, int):
            values[field.name] = _integer(value)
        else:
            values[field.name] = value if value is None and field.default is None else _number(value)
    return kind(**values)


def _finding(raw: object) -> Finding:
    table = _keys(raw, {f.name for f in fields(Finding)})
    code = table["code"]
    if not isinstance(code, str) or not _CODE.fullmatch(code):
        raise _refused("a finding without a code")
    value, limit = (None if table[k] is None else _number(table[k]) for k in ("value", "limit"))
    return Finding(_integer(table["version"]), code, value, limit)


def _keys(raw: object, known: set[str]) -> Mapping[str, object]:
    if not isinstance(raw, dict) or set(raw) != known:
        raise _refused("other keys than it must have")
    return raw


def _array(raw: object) -> list[object]:
    if not isinstance(raw, list) or len(raw) > MAX_FINDINGS:
        raise _refused("no list of findings")
    return raw


def _active(raw: object) -> Any:
    if raw is not None and raw not in SLOTS:
        raise _refused("an unknown slot")
    return raw


def _hex(raw: object, pattern: re.Pattern[str] = _HEX) -> str:
    if not isinstance(raw, str) or not pattern.fullmatch(raw):
        raise _refused("no hex digits where there must be some")
    return raw


def _boolean(raw: object) -> bool:
    if not isinstance(raw, bool):
        raise _refused("neither true nor false where it must be one of them")
    return raw


def _integer(raw: object, low: int = 0) -> int:
    if type(raw) is not int or not low <= raw <= _MAX_INTEGER:
        raise _refused("no whole number where there must be one")
    return raw


def _number(raw: object) -> float:
    if type(raw) not in (int, float) or not math.isfinite(raw):  # type: ignore[arg-type]  # one of those two
        raise _refused("no number where there must be one")
    return float(raw)  # type: ignore[arg-type]


def _refused(what: str) -> PayloadError:
    return PayloadError(f"{_WHAT} has {what}")
